"""Fixtures for tests that run the whole system, and the watch for processes left behind."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distbelief.config import (
    AveragingConfig,
    ClusterConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ReplicaConfig,
    TrainConfig,
)

MARK = "DISTBELIEF_TEST_SESSION"
ORPHAN_LIMIT_S = 30.0


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Every process that the tests start inherits a mark; at the end none with it may be left."""
    mark = str(uuid.uuid4())
    os.environ[MARK] = mark
    yield
    give_up_at = time.monotonic() + ORPHAN_LIMIT_S
    while (left := _marked(mark)) and time.monotonic() < give_up_at:
        time.sleep(0.2)
    assert not left, f"processes left behind: {left}"


def _marked(mark: str) -> dict[int, str]:
    wanted = f"{MARK}={mark}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if command and not _is_a_helper_of_this_process(folder, command):
                    found[int(folder.name)] = command
        except OSError:
            continue
    return found


def _is_a_helper_of_this_process(folder: Path, command: str) -> bool:
    """Multiprocessing's tracker and fork server live as long as the process that started them."""
    status = (folder / "status").read_text()
    parent = next(line.split()[1] for line in status.splitlines() if line.startswith("PPid"))
    helper = (
        "multiprocessing.resource_tracker" in command or "multiprocessing.forkserver" in command
    )
    return helper and int(parent) == os.getpid()


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., TrainConfig]:
    """A run of a few seconds; a keyword names a field of any part of the configuration."""

    def make(**changes: Any) -> TrainConfig:
        config = TrainConfig(
            recipe="tiny",
            epochs=2,
            run_dir=str(tmp_path / "run"),
            model=ModelConfig(width=0.0625, lrn=False, heads=False, init="he"),
            data=DataConfig(image_size=16, normalize="unit", drawn_train=90, drawn_val=20),
            optimizer=OptimizerConfig(weight_decay=1e-3),
            averaging=AveragingConfig(average_every=2),
            replica=ReplicaConfig(batch_size=8, threads=1),
            cluster=ClusterConfig(replicas=2, shards=2, address="inprocess", patience_s=30.0),
        )
        for name, value in changes.items():
            for part in (
                "model",
                "data",
                "optimizer",
                "schedule",
                "averaging",
                "replica",
                "cluster",
                "snapshots",
            ):
                if hasattr(getattr(config, part), name):
                    config = replace(
                        config, **{part: replace(getattr(config, part), **{name: value})}
                    )
                    break
            else:
                config = replace(config, **{name: value})
        return config

    return make
