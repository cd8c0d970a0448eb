"""Whole runs inside one process, audited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from distbelief.audit import audit
from distbelief.config import TrainConfig
from distbelief.observe.events import read_events
from distbelief.observe.view import Lines
from distbelief.runtime.beginning import begin
from distbelief.runtime.local import LocalWorld
from distbelief.runtime.prepare import prepare
from distbelief.runtime.signals import Stop
from distbelief.runtime.supervisor import Supervisor
from distbelief.runtime.task import Task
from distbelief.storage import storage_at


def run(config: TrainConfig, **world: Any) -> tuple[Path, dict[str, Any]]:
    prepared = prepare(config)
    begin(prepared)
    with LocalWorld(prepared, n_loaders=0, **world) as running:
        result = Supervisor(running, prepared, Stop(), Lines(lambda line: None)).run()
    return Path(prepared.storage.url), result


@pytest.mark.parametrize(
    "changes",
    [
        {"replicas": 3, "shards": 2},
        {"replicas": 2, "shards": 3, "n_push": 3, "n_fetch": 1, "rule": "adagrad"},
        {"replicas": 2, "shards": 1, "n_push": 2, "n_fetch": 5, "overlap": False},
        {"replicas": 1, "shards": 5, "average": "uniform", "schedule": "step", "step_epochs": 0.5},
        {"replicas": 2, "shards": 2, "average": "none", "schedule": "polynomial"},
    ],
)
@pytest.mark.parametrize("transport", ["direct", "grpc"])
def test_every_example_is_applied_once(
    tiny: Callable[..., TrainConfig], changes: dict[str, Any], transport: str
) -> None:
    run_dir, result = run(tiny(**changes), transport=transport)
    found = audit(run_dir)
    assert found.clean, found.counter_example
    assert (found.examples, found.epochs_finished) == (180, 2)
    assert result["status"] == "finished"
    assert result["examples_applied"] == 180
    assert result["pushes"]["refused"] == {}


def test_the_folder_is_as_the_documentation_says(tiny: Callable[..., TrainConfig]) -> None:
    run_dir, result = run(tiny())
    assert sorted(p.name for p in run_dir.iterdir() if p.name[0] != ".") == [
        "config.json",
        "events.jsonl",
        "model.safetensors",
        "pushes",
        "serving.json",
        "snapshots",
        "summary.json",
        "tensorboard",
    ]
    assert json.loads((run_dir / "summary.json").read_text()) == result
    record = json.loads((run_dir / "config.json").read_text())
    assert TrainConfig.from_dict(record["config"]).model.width == 0.0625
    assert len(record["classes"]) == 10
    events = read_events(storage_at(run_dir))
    kinds = {event["kind"] for event in events}
    assert {"replica_started", "replica_joined", "items", "epoch", "evaluation", "end"} <= kinds
    documented = (Path(__file__).parents[2] / "docs" / "run-folder.md").read_text()
    assert not [kind for kind in kinds if f"`{kind}`" not in documented]
    items = [i for event in events if event["kind"] == "items" for i in event["items"]]
    # One that straggles may be done by two replicas, and is applied once.
    assert sorted(set(items)) == list(range(24))
    assert set(result) >= {
        "status",
        "wall_seconds",
        "examples_applied",
        "images_per_second",
        "pushes",
        "staleness",
        "learning_rate",
        "train_loss",
        "validation",
        "recoveries",
    }


def test_the_model_file_holds_the_averaged_weights(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(replicas=1, average="none")
    prepared = prepare(config)
    begin(prepared)
    with LocalWorld(prepared, n_loaders=0) as world:
        Supervisor(world, prepared, Stop(), Lines(lambda line: None)).run()
        newest = torch.empty(prepared.layout.size)
        for e in world.serving.shards:
            with world.shard_at(e) as shard:
                shard.fetch(newest[e.begin : e.end], begin=e.begin)
    with safe_open(Path(prepared.storage.url) / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == list(prepared.classes)
        model = Task().build_model(config, prepared.n_outputs)
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    views = prepared.layout.views(newest)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), views[name])
    assert not torch.equal(newest, prepared.initial)


def test_running_statistics_are_recomputed(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(model="torchvision.models:shufflenet_v2_x0_5", image_size=32, lr=1e-3)
    run_dir, _ = run(config)
    with safe_open(run_dir / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.endswith("running_mean")]  # noqa: SIM118
        assert names
        assert any(bool(file.get_tensor(name).abs().sum()) for name in names)
    assert audit(run_dir).clean


def test_a_stop_ends_in_order(tiny: Callable[..., TrainConfig]) -> None:
    prepared = prepare(tiny(epochs=1000))
    begin(prepared)
    stop = Stop()

    def say(line: str) -> None:
        stop.event.set()  # at the first progress line

    with LocalWorld(prepared, n_loaders=0) as world:
        result = Supervisor(world, prepared, stop, Lines(say)).run()
    assert result["status"] == "interrupted"
    assert 0 < result["examples_applied"] < 90_000
    assert (Path(prepared.storage.url) / "model.safetensors").exists()
    found = audit(Path(prepared.storage.url))
    assert found.clean, found.counter_example
    assert found.examples == result["examples_applied"]
