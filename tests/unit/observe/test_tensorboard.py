"""Event files, read back by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distbelief.observe.histograms import Histogram
from distbelief.observe.report import Report
from distbelief.observe.tensorboard import UPLOAD_S, TensorBoard
from distbelief.storage import LocalStorage, Storage, storage_at


def report(examples: int, **changes: Any) -> Report:
    fields: dict[str, Any] = {
        "elapsed_s": 1.0,
        "finished": False,
        "failure": "",
        "epoch": 1,
        "n_epochs": 1,
        "examples_applied": examples,
        "examples_skipped": 0,
        "examples_set_aside": 0,
        "total_examples": 100,
        "images_per_second": 12.5,
        "mean_images_per_second": 10.0,
        "left_s": 9.0,
        "losses": {"loss": 1.5, "aux1": 2.0},
        "learning_rate": 0.25,
        "staleness": {0: 5},
        "applied": 1,
        "repeated": 3,
        "refused": {"stale": 1, "norm": 2},
        "replicas": (
            {"replica": 0, "images_per_second": 6.25},
            {"replica": 1, "images_per_second": None},
        ),
        "shards": ({"shard": 0, "queued": 2, "mb_per_second": 0.5},),
        "snapshot": {"number": 1, "examples_applied": 10, "t": 1.0, "seconds": 0.75},
        "validation": None,
        "mean_waiting": 0.125,
    }
    return Report(**{**fields, **changes})


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    found.Reload()
    return found


def scalars(found: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_scalars_and_histograms_come_back(tmp_path: Path) -> None:
    board = TensorBoard(LocalStorage(tmp_path))
    board.progress(report(10), {0: 3, 2: 1})
    board.progress(report(20, losses={"loss": 1.25}), {})
    weights = Histogram.of_values(torch.arange(30.0))
    assert weights is not None
    result = {"top1": 0.5, "top5": 0.75, "loss": 2.5, "weights": "averaged", "n_examples": 9}
    board.evaluation(20, result, {"stem.weight": weights})
    board.close()
    found = read(tmp_path / "tensorboard")
    expected = {
        "examples_applied": [(10, 10.0), (20, 20.0)],
        "images_per_second": [(10, 12.5), (20, 12.5)],
        "rate": [(10, 0.25), (20, 0.25)],
        "waiting_share": [(10, 0.125), (20, 0.125)],
        "pushes/refused": [(10, 3.0), (20, 3.0)],
        "pushes/repeated": [(10, 3.0), (20, 3.0)],
        "loss/loss": [(10, 1.5), (20, 1.25)],
        "loss/aux1": [(10, 2.0)],
        "staleness/mean": [(10, 0.5)],
        "staleness/p99": [(10, 2.0)],
        "shard_0/mb_per_second": [(10, 0.5), (20, 0.5)],
        "shard_0/queued": [(10, 2.0), (20, 2.0)],
        "replica_0/images_per_second": [(10, 6.25), (20, 6.25)],
        "snapshot/seconds": [(10, 0.75), (20, 0.75)],
        "validation/top1": [(20, 0.5)],
        "validation/top5": [(20, 0.75)],
        "validation/loss": [(20, 2.5)],
    }
    assert {tag: scalars(found, tag) for tag in found.Tags()["scalars"]} == expected
    assert sorted(found.Tags()["histograms"]) == ["staleness", "weights/stem.weight"]
    (staleness,) = found.Histograms("staleness")
    assert staleness.step == 10
    value = staleness.histogram_value
    assert (list(value.bucket_limit), list(value.bucket)) == ([0.5, 1.5, 2.5], [3.0, 0.0, 1.0])
    assert (value.min, value.max, value.num, value.sum) == (0.0, 2.0, 4.0, 2.0)
    (stem,) = found.Histograms("weights/stem.weight")
    assert stem.histogram_value.num == 30


def test_what_is_written_can_be_read_before_the_end(tmp_path: Path) -> None:
    board = TensorBoard(LocalStorage(tmp_path))
    board.progress(report(10), {})
    assert scalars(read(tmp_path / "tensorboard"), "rate") == [(10, 0.25)]
    board.close()
    board.close()


def test_a_resumed_run_takes_the_place_of_what_was_lost(tmp_path: Path) -> None:
    first = TensorBoard(LocalStorage(tmp_path), clock=lambda: 1000.0)
    for examples in (10, 20, 30):
        first.progress(report(examples), {})
    first.close()
    second = TensorBoard(LocalStorage(tmp_path), clock=lambda: 2000.0)
    second.progress(report(20, learning_rate=0.5), {})
    second.close()
    found = scalars(read(tmp_path / "tensorboard"), "rate")
    assert found == [(10, 0.25), (20, 0.5)]


def test_a_remote_storage_gets_copies(tmp_path: Path) -> None:
    storage = storage_at("memory://observe-tensorboard-test")
    now = 0.0
    board = TensorBoard(storage, monotonic=lambda: now)
    board.progress(report(10), {})
    assert storage.names("tensorboard") == []
    now = UPLOAD_S
    board.progress(report(20), {})
    (name,) = storage.names("tensorboard")
    now += UPLOAD_S / 2
    board.progress(report(30), {})
    for n in (2, 3):
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / name).write_bytes(storage.read(f"tensorboard/{name}"))
        assert len(scalars(read(folder), "rate")) == n
        board.close()
    temporary = board._path
    assert not temporary.exists()
    storage.remove("tensorboard")


def test_a_copy_that_fails_is_an_error_and_is_tried_again() -> None:
    storage: Storage = storage_at("memory://observe-tensorboard-broken")
    now = 0.0
    board = TensorBoard(storage, monotonic=lambda: now)
    answers = [OSError("away"), None]
    write = storage.write

    def failing(name: str, *parts: bytes) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        write(name, *parts)

    object.__setattr__(storage, "write", failing)
    now = UPLOAD_S
    with pytest.raises(OSError, match="away"):
        board.progress(report(10), {})
    board.progress(report(20), {})  # not at once
    now += UPLOAD_S
    board.progress(report(30), {})
    assert answers == []
    object.__setattr__(storage, "write", write)
    board.close()
    storage.remove("tensorboard")
