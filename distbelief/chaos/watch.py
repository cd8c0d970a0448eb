"""What is seen of a run while things are done to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from distbelief.serving import Serving

WARM_UP = 0.25
"""The share of the time after which memory is expected to be flat."""


@dataclass
class Memory:
    """What processes take, from time to time."""

    samples: dict[tuple[int, int], list[tuple[float, int]]] = field(default_factory=dict)
    """By the process: seconds, and bytes."""

    def add(self, identity: tuple[int, int], at: float, nbytes: int) -> None:
        """Takes note of one."""
        self.samples.setdefault(identity, []).append((at, nbytes))

    def growth(self, identity: tuple[int, int]) -> int:
        """Bytes by which a process has grown since it had warmed up, between two medians."""
        mine = self.samples.get(identity, [])
        if len(mine) < 8:
            return 0
        eighth = len(mine) // 8
        begin = int(len(mine) * WARM_UP)
        first = [nbytes for _, nbytes in mine[begin : begin + eighth]]
        last = [nbytes for _, nbytes in mine[-eighth:]]
        return int(median(last) - median(first))

    def n_processes(self) -> tuple[int, int]:
        """How many there were at the first moment and at the last."""
        if not self.samples:
            return 0, 0
        first, last = self._span()
        begins = [mine[0][0] for mine in self.samples.values()]
        ends = [mine[-1][0] for mine in self.samples.values()]
        return begins.count(first), ends.count(last)

    def survivors(self) -> list[tuple[int, int]]:
        """Those that were there from the first moment to the last."""
        if not self.samples:
            return []
        whole = self._span()
        return [i for i, mine in self.samples.items() if (mine[0][0], mine[-1][0]) == whole]

    def _span(self) -> tuple[float, float]:
        first = min(mine[0][0] for mine in self.samples.values())
        return first, max(mine[-1][0] for mine in self.samples.values())


@dataclass
class Changes:
    """Who served, from when on."""

    seen: list[tuple[float, Serving]] = field(default_factory=list)

    def look(self, at: float, serving: Serving | None) -> None:
        """Takes note of who serves, if that has changed."""
        if serving is not None and (not self.seen or self.seen[-1][1].number != serving.number):
            self.seen.append((at, serving))

    def another_twin(self, shard: int, incarnation: int, since: float) -> float | None:
        """When a shard had another twin than that one, which had been at work ``since``."""
        for at, serving in self.seen:
            mine = [e.incarnation for e in serving.twins if e.shard == shard]
            if at >= since and mine and mine != [incarnation]:
                return at
        return None
