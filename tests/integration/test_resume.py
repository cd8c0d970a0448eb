"""Runs that are stopped, or killed, and go on from a snapshot."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from distbelief.audit import audit
from distbelief.config import TrainConfig
from distbelief.errors import ConfigError, DataError
from distbelief.observe.events import read_events
from distbelief.observe.report import Report
from distbelief.observe.view import Lines
from distbelief.runtime.beginning import begin
from distbelief.runtime.claim import claimed
from distbelief.runtime.local import LocalWorld
from distbelief.runtime.prepare import prepare
from distbelief.runtime.runs import Resume
from distbelief.runtime.signals import Stop
from distbelief.runtime.snapshots import manifests
from distbelief.runtime.supervisor import Supervisor
from distbelief.runtime.train import train
from distbelief.server.statefile import read_vector
from distbelief.storage import Storage, storage_at


class StopAt(Lines):
    """Stops a run once it has applied so many examples."""

    def __init__(self, examples: int) -> None:
        super().__init__(lambda line: None)
        self.stop = Stop()
        self.examples = examples
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def show(self, report: Report, *, last: bool = False) -> None:
        if report.examples_applied >= self.examples:
            self.stop.event.set()


def go(
    config: TrainConfig, *, until: int = 10**9, resume: Resume | None = None, **world: Any
) -> tuple[Storage, dict[str, Any]]:
    """A run inside this process whose loader is a thread of it."""
    prepared = prepare(config, resume=resume)
    view = StopAt(until)
    with claimed(prepared.storage):
        begin(prepared)
        with LocalWorld(prepared, n_loaders=0, **world) as world:
            result = Supervisor(world, prepared, view.stop, view).run()
    return prepared.storage, result


def vectors(storage: Storage) -> dict[str, torch.Tensor]:
    """All vectors of the newest snapshot."""
    newest = manifests(storage)[0][-1]
    names = ("parameters", "momentum", "average")
    return {name: read_vector(storage, newest.number, newest.files, name) for name in names}


@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("rule", ["momentum", "nesterov"])
def test_one_replica_interrupted_and_resumed_ends_bit_for_bit_as_one_that_was_not(
    tiny: Callable[..., TrainConfig], tmp_path: Path, n_shards: int, rule: str
) -> None:
    changes = {"replicas": 1, "shards": n_shards, "overlap": False, "epochs": 8, "rule": rule}
    config = tiny(**changes, heads=True, predict_weights=True, schedule="polynomial")
    whole, _ = go(replace(config, run_dir=str(tmp_path / "whole")))
    config = replace(config, run_dir=str(tmp_path / "parts"))
    storage, first = go(config, until=100)
    assert first["status"] == "interrupted"
    assert 0 < first["examples_applied"] < 720
    _, last = go(config, resume=Resume(storage.url))
    assert (last["status"], last["examples_applied"]) == ("finished", 720)
    for name, expected in vectors(whole).items():
        assert torch.equal(vectors(storage)[name], expected), name
    model, expected_model = (load(s.read("model.safetensors")) for s in (storage, whole))
    assert model.keys() == expected_model.keys()
    assert all(torch.equal(model[name], expected_model[name]) for name in model)
    found = audit(storage.url)
    assert found.clean, found.counter_example
    assert found.forgotten == 0


def test_an_older_snapshot_does_again_what_came_after_it(
    tiny: Callable[..., TrainConfig],
) -> None:
    changes = {"replicas": 1, "shards": 2, "overlap": False, "epochs": 20}
    config = tiny(**changes, snapshot_every=90, keep_snapshots=9)
    storage, first = go(config, until=900)
    older = manifests(storage)[0][1]
    assert older.examples_applied < first["examples_applied"]
    _, last = go(config, resume=Resume(storage.url, older.number))
    assert last["examples_applied"] == 1800
    found = audit(storage.url)
    assert found.clean, found.counter_example
    assert found.examples == 1800
    assert found.forgotten > 0
    assert "resumed" in {event["kind"] for event in read_events(storage)}


@pytest.mark.parametrize("transport", ["direct", "grpc"])
def test_two_shards_go_on_as_three_and_then_as_one(
    tiny: Callable[..., TrainConfig], transport: str
) -> None:
    config = tiny(replicas=2, shards=2, epochs=24, average="exponential", snapshot_every=180)
    storage, _ = go(config, until=400, transport=transport)
    for n_shards, n_replicas, until in [(3, 3, 1000), (1, 1, 10**9)]:
        cluster = replace(config.cluster, shards=n_shards, replicas=n_replicas)
        resumed = Resume(storage.url)
        before = manifests(storage)[0][-1]
        config = replace(config, cluster=cluster)
        _, result = go(config, until=until, resume=resumed, transport=transport)
        assert result["examples_applied"] > before.examples_applied
        found = audit(storage.url)
        assert found.clean, found.counter_example
        assert found.n_shards == n_shards
    assert (result["status"], found.examples) == ("finished", 2160)
    replicas = [e["replica"] for e in read_events(storage) if e["kind"] == "replica_started"]
    assert len(replicas) == len(set(replicas)) == 6


def test_a_run_can_be_made_longer(tiny: Callable[..., TrainConfig]) -> None:
    storage, _ = go(tiny(epochs=1))
    with pytest.raises(ConfigError, match="raise it to train further") as caught:
        go(tiny(epochs=1), resume=Resume(storage.url))
    assert caught.value.field == "epochs"
    _, result = go(tiny(epochs=3), resume=Resume(storage.url))
    assert (result["status"], result["examples_applied"]) == ("finished", 270)
    assert audit(storage.url).clean


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_run_lives_at_a_url(
    tiny: Callable[..., TrainConfig], tmp_path: Path, scheme: str
) -> None:
    url = f"file://{tmp_path}/run" if scheme == "file" else f"memory://{uuid.uuid4()}/run"
    config = replace(tiny(epochs=14), run_dir=url)
    view = StopAt(300)
    result = train(config, view, view.stop)
    assert result["status"] == "interrupted"
    result = train(config, Lines(view.say), resume=Resume(url))
    assert (result["status"], result["examples_applied"]) == ("finished", 1260)
    storage = storage_at(url)
    assert json.loads(storage.read("summary.json"))["status"] == "finished"
    assert storage.read("model.safetensors")
    found = audit(url)
    assert found.clean, found.counter_example
    assert found.examples == 1260


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_during_a_snapshot_leaves_the_last_good_one(
    tiny: Callable[..., TrainConfig], kill: signal.Signals
) -> None:
    config = tiny(epochs=100, snapshot_every=90)
    script = textwrap.dedent(
        """
        import json, sys, threading
        from distbelief.config import TrainConfig
        from distbelief.observe.view import Lines
        from distbelief.runtime import snapshots
        from distbelief.runtime.train import train

        write, told = snapshots.write_json, threading.Event()

        def slowly(storage, name, value):
            if value["number"] == 3:
                print("writing", flush=True)
                told.wait(2.0)  # long enough for the signal to come first
            write(storage, name, value)

        snapshots.write_json = slowly
        config = TrainConfig.from_dict(json.loads(sys.argv[1]))
        print(train(config, Lines(lambda line: None))["status"], flush=True)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(config.to_dict())],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(kill)
        rest = process.stdout.read()
    assert rest == ("interrupted\n" if kill is signal.SIGTERM else "")
    storage = storage_at(str(config.run_dir))
    found, _ = manifests(storage)
    newest = found[-1]
    assert newest.number == (4 if kill is signal.SIGTERM else 2)
    assert newest.examples_applied >= 180
    _, result = go(config, until=newest.examples_applied + 500, resume=Resume(storage.url))
    assert result["examples_applied"] > newest.examples_applied
    checked = audit(storage.url)
    assert checked.clean, checked.counter_example
    numbers = [e["number"] for e in read_events(storage) if e["kind"] == "snapshot"]
    assert len(numbers) == len(set(numbers)), "a snapshot's number was used twice"


def test_a_damaged_snapshot_is_named_and_the_one_before_offered(
    tiny: Callable[..., TrainConfig],
) -> None:
    config = tiny(epochs=14, snapshot_every=90)
    storage, _ = go(config, until=500)
    before, newest = manifests(storage)[0][-2:]
    path = Path(storage.url) / "snapshots" / f"{newest.number:06d}" / newest.files[1].name
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"--resume-snapshot {before.number}") as caught:
        prepare(config, resume=Resume(storage.url))
    assert caught.value.path == str(path)
    _, result = go(config, resume=Resume(storage.url, before.number))
    assert result["status"] == "finished"
    assert audit(storage.url).clean


def test_a_run_that_goes_is_not_resumed(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(epochs=40)
    storage, _ = go(config, until=100)
    record = storage.read("config.json")
    with (
        claimed(storage),
        pytest.raises(ConfigError, match="is in use by process") as caught,
    ):
        train(config, Lines(lambda line: None), resume=Resume(storage.url))
    assert caught.value.field == "run_dir"
    assert storage.read("config.json") == record
