"""Replicas that are divided into stages: whole runs, beside undivided ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distbelief.audit import audit
from distbelief.config import TrainConfig
from distbelief.observe.events import read_events
from distbelief.observe.view import Lines
from distbelief.runtime.prepare import prepare
from distbelief.runtime.runs import Resume
from distbelief.runtime.train import train
from distbelief.storage import storage_at

pytestmark = pytest.mark.timeout(240)

Tiny = Callable[..., TrainConfig]

IN_TWO, IN_THREE = "inception4b", "inception4a,inception4d"


def silent(line: str) -> None:
    pass


def finished(config: TrainConfig, **how: Any) -> dict[str, Any]:
    result = train(config, Lines(silent), **how)
    assert result["status"] == "finished"
    found = audit(result["run_dir"])
    assert found.clean, found.counter_example
    assert found.examples == result["examples_applied"]
    return result


def weights(result: dict[str, Any]) -> torch.Tensor:
    tensors = load_file(Path(result["run_dir"]) / "model.safetensors")
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def last_progress(result: dict[str, Any]) -> dict[str, Any]:
    events = read_events(storage_at(result["run_dir"]))
    return [e for e in events if e["kind"] == "progress"][-1]


def test_two_stages_follow_the_steps_of_one(tiny: Tiny, tmp_path: Path) -> None:
    """Twenty-one steps without overlap, with heads and dropout, the last item a ragged one."""
    options: dict[str, Any] = {
        "replicas": 1,
        "shards": 3,  # cut through the stages and through tensors
        "overlap": False,
        "average": "none",
        "heads": True,
        "clip_norm": 1.0,
        "evaluate": False,
        "drawn_train": 84,
        "epochs": 2,
        "micro_batches": 4,
    }
    whole = finished(tiny(run_dir=str(tmp_path / "whole"), **options))
    divided = finished(
        tiny(run_dir=str(tmp_path / "divided"), stages=2, boundaries=IN_TWO, **options)
    )
    assert whole["examples_applied"] == divided["examples_applied"] == 168
    expected, found = weights(whole), weights(divided)
    assert torch.linalg.vector_norm(found - expected) <= 1e-5 * torch.linalg.vector_norm(expected)
    assert divided["stages"] == 2
    assert divided["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-5)


def test_the_paper_network_in_three_stages_learns_the_same_bits(tiny: Tiny, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "replicas": 1,
        "image_size": 224,
        "width": 1.0,
        "lrn": True,
        "heads": True,
        "batch_size": 4,
        "drawn_train": 7,
        "drawn_val": 1,
        "epochs": 1,
        "micro_batches": 4,
        "average": "none",
        "evaluate": False,
    }
    whole = finished(tiny(run_dir=str(tmp_path / "whole"), **options))
    cut = {"stages": 3, "boundaries": "stem.norm2,inception4a"}
    divided = finished(tiny(run_dir=str(tmp_path / "divided"), **options, **cut))
    assert torch.equal(weights(whole), weights(divided))


def test_steps_that_are_summed_and_fetched_seldom(tiny: Tiny) -> None:
    result = finished(
        tiny(replicas=2, stages=2, boundaries=IN_TWO, n_push=3, n_fetch=2, pipeline="gpipe")
    )
    assert result["pushes"]["refused"] == {}


def test_a_stage_talks_to_the_shards_that_it_overlaps(tiny: Tiny) -> None:
    config = tiny(
        replicas=2,
        shards=3,
        stages=2,
        boundaries="inception5b",
        overlap=False,
        evaluate=False,
        epochs=6,
    )
    prepared = prepare(config)
    names = [p.name for p in prepared.layout.parameters]
    first = next(i for i, name in enumerate(names) if name.startswith("inception5b"))
    cut = prepared.layout.parameters[first].begin
    result = finished(config)
    for shard in last_progress(result)["shards"]:
        begin, end = prepared.layout.shard_ranges(3)[shard["shard"]]
        of_stage = {"0": max(0, min(end, cut) - begin), "1": max(0, end - max(begin, cut))}
        assert shard["traffic"], "nothing was counted"
        for sender, nbytes in shard["traffic"].items():
            own = 4 * of_stage[sender.partition(".")[2]]
            assert own, f"{sender} has nothing on shard {shard['shard']}, and sent {nbytes} bytes"
            # Pushes and fetches of exactly its own part.
            assert nbytes % own == 0
        stages = {sender.partition(".")[2] for sender in shard["traffic"]}
        assert stages == {stage for stage, n in of_stage.items() if n}


def test_a_run_goes_on_with_other_stages(tiny: Tiny, tmp_path: Path) -> None:
    """Snapshots do not know of stages: of one, then three, then unequal replicas."""
    config = tiny(replicas=1, shards=2, epochs=1)
    run = str(config.run_dir)
    finished(config)
    finished(
        tiny(replicas=1, shards=3, epochs=2, stages=3, boundaries=IN_THREE), resume=Resume(run)
    )
    groups = (f"1x stages=2,boundaries={IN_TWO}", "1x micro_batches=4")
    result = finished(
        tiny(shards=2, epochs=40, replica_group=groups, drawn_train=90), resume=Resume(run)
    )
    assert result["stages"] == [2, 1]
    assert result["examples_applied"] == 3600
    items = [e for e in read_events(storage_at(run)) if e["kind"] == "items"]
    joined = [e for e in read_events(storage_at(run)) if e["kind"] == "replica_joined"]
    assert [e["stages"] for e in joined][:2] == [1, 3]
    worked = {r for e in items for r in e["replicas"]}
    assert {e["replica"] for e in joined if e["stages"] == 2} <= worked


def test_the_planner_chooses_where_nothing_is_said(tiny: Tiny) -> None:
    said: list[str] = []
    config = tiny(replicas=1, stages=2, epochs=1)
    result = train(config, Lines(said.append))
    assert result["status"] == "finished"
    assert any("divided before" in line for line in said)


on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@on_cuda
def test_two_stages_on_one_accelerator_follow_the_steps_of_one(tiny: Tiny, tmp_path: Path) -> None:
    """Two processes share it, and hand over through the host's memory."""
    options: dict[str, Any] = {
        "replicas": 1,
        "overlap": False,
        "average": "none",
        "evaluate": False,
        "drawn_train": 84,
        "micro_batches": 4,
        "device": "cuda",
    }
    whole = finished(tiny(run_dir=str(tmp_path / "whole"), **options))
    divided = finished(
        tiny(run_dir=str(tmp_path / "divided"), stages=2, boundaries=IN_TWO, **options)
    )
    expected, found = weights(whole), weights(divided)
    assert torch.linalg.vector_norm(found - expected) <= 1e-5 * torch.linalg.vector_norm(expected)


@on_cuda
@pytest.mark.parametrize("devices", ["cpu+cuda", "cuda+cpu"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stages_on_devices_of_two_kinds(tiny: Tiny, devices: str, precision: str) -> None:
    finished(tiny(stages=2, boundaries=IN_TWO, device=devices, precision=precision))
