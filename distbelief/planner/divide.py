"""Where to divide a network: plain costs in, a division out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Literal, NoReturn

from distbelief.errors import ConfigError
from distbelief.planner.costs import Costs, Cuts, in_mb, spans
from distbelief.planner.predict import predict

FEW = 2000
"""So many divisions are all tried; of more, those near the one whose longest stage is shortest."""

Weight = Callable[[int, int, int], float]
"""What a stage, made of the blocks from one to before another, counts; infinite if it cannot be."""


def divide(costs: Costs, by: Literal["time", "memory"] = "time", limit: str = "stages") -> Cuts:
    """The division whose step is predicted to be shortest, or whose largest stage is smallest.

    Every stage trains something and fits its device. Of divisions by memory that are equal the
    faster one is taken, of those by time the smaller one.

    Args:
        costs: Blocks, devices and flow; without measured times only a division by memory is sound.
        by: What counts.
        limit: The option to name if a stage does not fit.

    Raises:
        ConfigError: there are fewer blocks than stages, or a stage fits nowhere.
    """
    n_blocks, n_stages = len(costs.blocks), costs.n_stages
    n_learned = sum(block.n_parameters > 0 for block in costs.blocks)
    if n_learned < n_stages:
        raise ConfigError(
            "stages",
            f"{n_stages} of a network in which {n_learned} blocks have something to train; take "
            f"at most so many",
        )

    def possible(index: int, begin: int, end: int) -> bool:
        trains = costs.n_parameters(begin, end) > 0
        return trains and _share(costs, index, begin, end) <= 1

    def weight(index: int, begin: int, end: int) -> float:
        if not possible(index, begin, end):
            return math.inf
        if by == "memory":
            return costs.memory(index, begin, end)
        return costs.stage(index, begin, end).total_s

    start = even(n_blocks, n_stages, weight)
    if start is None:
        _refuse(costs, limit)

    def key(cuts: Cuts) -> tuple[float, float]:
        step_s = predict(costs.stages(cuts), costs.flow).step_s
        largest = float(max(costs.memories(cuts)))
        return (step_s, largest) if by == "time" else (largest, step_s)

    def all_possible(cuts: Cuts) -> bool:
        return all(possible(i, *span) for i, span in enumerate(spans(cuts, n_blocks)))

    if math.comb(n_blocks - 1, n_stages - 1) <= FEW:
        every = itertools.combinations(range(1, n_blocks), n_stages - 1)
        return min(filter(all_possible, every), key=key)
    best, best_key = start, key(start)
    moves = 1
    while moves <= 2:
        near = [cuts for cuts in _neighbours(best, n_blocks, moves) if all_possible(cuts)]
        found = min(near, key=key, default=best)
        found_key = key(found)
        if found_key < best_key:
            best, best_key, moves = found, found_key, 1
        else:
            moves += 1
    return best


def even(n_blocks: int, n_stages: int, weight: Weight) -> Cuts | None:
    """The division whose heaviest stage is lightest, by dynamic programming; None if none can be.

    Args:
        n_blocks: How many blocks there are.
        n_stages: How many stages.
        weight: Of one stage.
    """
    # best[end]: the heaviest of the stages so far, if they hold the blocks before end; and the cuts
    best: dict[int, tuple[float, Cuts]] = {0: (-math.inf, ())}
    for index in range(n_stages):
        last = index == n_stages - 1
        ends = [n_blocks] if last else range(index + 1, n_blocks)
        following: dict[int, tuple[float, Cuts]] = {}
        for end in ends:
            options = (
                (max(heaviest, weight(index, begin, end)), (*cuts, begin))
                for begin, (heaviest, cuts) in best.items()
                if begin < end
            )
            found = min(options, default=(math.inf, ()))
            if found[0] < math.inf:
                following[end] = found
        best = following
    return best[n_blocks][1][1:] if n_blocks in best else None


def _neighbours(cuts: Cuts, n_blocks: int, n_moves: int) -> Iterator[Cuts]:
    """Divisions of which so many boundaries lie up to two blocks away."""
    moves = itertools.product(range(len(cuts)), (-2, -1, 1, 2))
    for chosen in itertools.combinations(moves, n_moves):
        moved = list(cuts)
        for at, by in chosen:
            moved[at] += by
        if all(begin < end for begin, end in itertools.pairwise([0, *moved, n_blocks])):
            yield tuple(moved)


def refuse_too_large(costs: Costs, cuts: Cuts, limit: str = "stages") -> None:
    """Refuses a division of which a stage does not fit its device.

    Raises:
        ConfigError: with what the largest such stage needs, and what its device has, in MB.
    """
    worst, stage = max(
        (_share(costs, i, *span), i) for i, span in enumerate(spans(cuts, len(costs.blocks)))
    )
    if worst <= 1:
        return
    begin, end = spans(cuts, len(costs.blocks))[stage]
    device = costs.devices[stage]
    of = costs.blocks
    raise ConfigError(
        limit,
        f"stage {stage} of {costs.n_stages} ({of[begin].name} to {of[end - 1].name}) needs "
        f"{in_mb(costs.memory(stage, begin, end))}, and {device.name} has "
        f"{in_mb(device.memory or 0)}; take more stages, more micro-batches, a smaller batch or "
        f"another --device-memory-gb",
    )


def _refuse(costs: Costs, limit: str) -> NoReturn:
    """Says why no division can be, by the one that comes nearest to it."""

    def share(index: int, begin: int, end: int) -> float:
        return _share(costs, index, begin, end) if costs.n_parameters(begin, end) else math.inf

    nearest = even(len(costs.blocks), costs.n_stages, share)
    if nearest is not None:
        refuse_too_large(costs, nearest, limit)
    raise ConfigError("stages", f"{costs.n_stages} of this network would train nothing; take fewer")


def _share(costs: Costs, index: int, begin: int, end: int) -> float:
    """What a stage needs, of what its device has."""
    most = costs.devices[index].memory
    return 0.0 if most is None else costs.memory(index, begin, end) / most
