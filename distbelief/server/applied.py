"""Sets of item numbers, kept as intervals so that they stay small however long the run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from distbelief.types import Intervals


class ItemSet:
    """A set of item numbers as sorted, disjoint, non-adjacent half-open intervals.

    A shard's applied set is one of these. Items are applied nearly in order, so there is one
    long interval and a few short ones above it: membership and insertion cost a bisection of a
    short list. Not thread-safe.
    """

    __slots__ = ("_begins", "_ends")

    def __init__(self, intervals: Intervals = ()) -> None:
        self._begins = [begin for begin, _ in intervals]
        self._ends = [end for _, end in intervals]

    def __contains__(self, item: int) -> bool:
        at = bisect_right(self._begins, item) - 1
        return at >= 0 and item < self._ends[at]

    def __len__(self) -> int:
        return sum(end - begin for begin, end in self.intervals)

    def __iter__(self) -> Iterator[int]:
        for begin, end in self.intervals:
            yield from range(begin, end)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ItemSet) and self.intervals == other.intervals

    def __repr__(self) -> str:
        return f"ItemSet({self.intervals})"

    @property
    def intervals(self) -> Intervals:
        """The set as plain values."""
        return tuple(zip(self._begins, self._ends, strict=True))

    @property
    def below(self) -> int:
        """The number below which every item is in the set."""
        return self._ends[0] if self._begins and self._begins[0] == 0 else 0

    def gaps(self, end: int) -> Intervals:
        """The intervals below ``end`` that are not in the set."""
        found = []
        begin = 0
        for low, high in self.intervals:
            if low >= end:
                break
            if begin < low:
                found.append((begin, low))
            begin = high
        if begin < end:
            found.append((begin, end))
        return tuple(found)

    def add(self, item: int) -> bool:
        """Adds ``item``; returns whether it was new."""
        at = bisect_right(self._begins, item) - 1
        if at >= 0 and item < self._ends[at]:
            return False
        joins_left = at >= 0 and self._ends[at] == item
        joins_right = at + 1 < len(self._begins) and self._begins[at + 1] == item + 1
        if joins_left and joins_right:
            self._ends[at] = self._ends.pop(at + 1)
            self._begins.pop(at + 1)
        elif joins_left:
            self._ends[at] = item + 1
        elif joins_right:
            self._begins[at + 1] = item
        else:
            self._begins.insert(at + 1, item)
            self._ends.insert(at + 1, item + 1)
        return True

    def contains_all(self, items: range) -> bool:
        """Whether every item of a range of step 1 is in the set."""
        if len(items) == 0:
            return True
        at = bisect_right(self._begins, items[0]) - 1
        return at >= 0 and items[-1] < self._ends[at]


def union(sets: Iterable[ItemSet]) -> ItemSet:
    """Items that are in any of the sets."""
    merged: list[list[int]] = []
    for begin, end in sorted(interval for s in sets for interval in s.intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return ItemSet(tuple((begin, end) for begin, end in merged))


def intersection(sets: Iterable[ItemSet]) -> ItemSet:
    """Items that are in all of the sets, of which there must be one at least."""
    first, *rest = (s.intervals for s in sets)
    common = first
    for other in rest:
        found = []
        i = j = 0
        while i < len(common) and j < len(other):
            begin = max(common[i][0], other[j][0])
            end = min(common[i][1], other[j][1])
            if begin < end:
                found.append((begin, end))
            if common[i][1] < other[j][1]:
                i += 1
            else:
                j += 1
        common = tuple(found)
    return ItemSet(common)
