"""Builders that the planner's tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from distbelief.planner.costs import BlockSize, BlockTime, Costs, Device, Flow, Link

AT_ONCE = Link(bytes_per_s=float("inf"), latency_s=0.0)


@pytest.fixture
def make_costs() -> Callable[..., Costs]:
    """Blocks of so many seconds each, half of them forwards, on devices of given slowness."""

    def make(
        seconds: Sequence[float],
        slowness: Sequence[float] = (1.0, 1.0),
        *,
        micro_batches: int = 8,
        pipeline: Any = "1f1b",
        link: Link = AT_ONCE,
        parameters: Sequence[int] | int = 10,
        handed_on: Sequence[int] | int = 0,
        kept: Sequence[int] | int = 0,
        memory: int | None = None,
        is_host: bool = True,
        batch: int = 0,
    ) -> Costs:
        def each(value: Sequence[int] | int) -> Sequence[int]:
            return [value] * len(seconds) if isinstance(value, int) else value

        before = [0, *each(handed_on)][: len(seconds)]
        columns = zip(each(parameters), each(handed_on), each(kept), before, strict=True)
        blocks = tuple(
            BlockSize(name=f"b{i}", n_parameters=p, handed_on=h, kept=k, kept_if_first=b)
            for i, (p, h, k, b) in enumerate(columns)
        )
        times = [BlockTime(s / 2, s / 2) for s in seconds]
        devices = tuple(
            Device(
                name=f"d{i}",
                times=tuple(t.slowed(factor) for t in times),
                memory=memory,
                is_host=is_host,
            )
            for i, factor in enumerate(slowness)
        )
        flow = Flow(micro_batches=micro_batches, pipeline=pipeline, link=link)
        return Costs(blocks, devices, flow, batch)

    return make
