"""Builders that several test modules share."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from distbelief.config import AveragingConfig, OptimizerConfig
from distbelief.layout import Segment
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.storage import LocalStorage, RemoteStorage, Storage
from distbelief.types import Push, Version

LAYOUT = "fingerprint"


@pytest.fixture
def make_spec(tmp_path: Path) -> Callable[..., ShardSpec]:
    """A shard's spec: plain gradient descent without decay or average, unless told."""

    def make(size: int = 4, *, begin: int = 0, **changes: Any) -> ShardSpec:
        fields: dict[str, Any] = {
            "index": 0,
            "n_shards": 1,
            "begin": begin,
            "end": begin + size,
            "segments": (Segment(0, size, 1.0, 1.0),),
            "layout": LAYOUT,
            "incarnation": 1,
            "examples_per_item": 10,
            "total_examples": 1000,
            "n_ports": 2,
            "optimizer": OptimizerConfig(momentum=0.0, weight_decay=0.0, kernel="unfused"),
            "averaging": AveragingConfig(average="none"),
            "storage": LocalStorage(tmp_path),
        }
        return ShardSpec(**{**fields, **changes})

    return make


@pytest.fixture
def start_shard(make_spec: Callable[..., ShardSpec]) -> Iterator[Callable[..., Shard]]:
    """Starts shards, with zeros as their initial values unless told; all end with the test."""
    with ExitStack() as stack:

        def start(
            size: int = 4, *, load: bool = True, busy_after_s: float = 30.0, **changes: Any
        ) -> Shard:
            spec = make_spec(size, **changes)
            shard = stack.enter_context(Shard(spec, busy_after_s=busy_after_s))
            if load:
                shard.load(torch.zeros(size))
            return shard

        yield start


@pytest.fixture
def make_push() -> Callable[..., Push]:
    """A push that :func:`start_shard`'s shards admit; ``gradient`` may be values or one number."""

    def make(
        item: int, gradient: torch.Tensor | Sequence[float] | float = 1.0, **changes: Any
    ) -> Push:
        if isinstance(gradient, float | int):
            gradient = torch.full((changes.pop("size", 4),), float(gradient))
        elif not isinstance(gradient, torch.Tensor):
            gradient = torch.tensor(list(gradient), dtype=torch.float32)
        fields: dict[str, Any] = {
            "item": item,
            "lease": item + 1,
            "replica": 0,
            "begin": 0,
            "incarnation": 1,
            "base": Version(1, 0),
            "rate": 1.0,
            "examples": 10,
            "skipped": (),
            "layout": LAYOUT,
            "gradient": gradient,
        }
        return Push(**{**fields, **changes})

    return make


@pytest.fixture(params=["local", "remote"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A folder that is not there yet, of each kind."""
    if request.param == "local":
        return LocalStorage(tmp_path / "folder" / "run")
    return RemoteStorage(f"memory://{uuid.uuid4()}/run")


@pytest.fixture
def in_threads() -> Callable[[Sequence[Callable[[], Any]]], list[Any]]:
    """Runs functions at once, one thread each; returns their results, or raises what one raised."""

    def run(functions: Sequence[Callable[[], Any]]) -> list[Any]:
        with ThreadPoolExecutor(len(functions)) as pool:
            futures = [pool.submit(function) for function in functions]
            return [future.result(timeout=60) for future in futures]

    return run
