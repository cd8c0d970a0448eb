"""How the push logs of a run rest on one another: the surviving history of each shard.

A shard that was started again has several logs, of which some pushes were forgotten. What counts
is the log of the start that serves, and before it those that it rests on, each up to the clock that
it had in the snapshot, or when its twin took over its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from distbelief.audit.history import ContradictionError, CounterExample, Log, contradiction
from distbelief.errors import DataError
from distbelief.server.applied import ItemSet, union
from distbelief.serving import NAME as SERVING
from distbelief.serving import Serving

Key = tuple[int, int, int]
"""A log's: shard, number of shards, incarnation."""


@dataclass
class History:
    """What a shard had done at some moment, over all its logs."""

    applied: ItemSet = field(default_factory=ItemSet)
    set_aside: ItemSet = field(default_factory=ItemSet)

    @property
    def accounted(self) -> ItemSet:
        """Items that were applied or set aside."""
        return union([self.applied, self.set_aside])


class Histories:
    """The surviving history of each log, as far as it is asked for; each push is read once."""

    def __init__(self, logs: Iterable[Log]) -> None:
        self._logs = {log.key: log for log in logs}
        self._bases: dict[Key, History] = {}
        """What each log started with."""
        self._reached: dict[Key, dict[int, History]] = {}
        """What is known beyond that, by the clock."""

    def of(self, shard: int, n_shards: int, incarnation: int) -> Log | None:
        """The log of that name."""
        return self._logs.get((shard, n_shards, incarnation))

    def sources(self, log: Log) -> list[tuple[Log, int]]:
        """The logs that it rests on, each up to which clock.

        Raises:
            ContradictionError: one is not there, or never had that clock.
        """
        found = []
        for shard, n_shards, incarnation, clock in log.header.sources:
            source = self.of(shard, n_shards, incarnation)
            if source is None:
                problem = f"rests on start {incarnation} of shard {shard} of {n_shards}, which has"
                raise contradiction(log.name, 1, f"{problem} no push log")
            if not source.header.clock <= clock <= source.end:
                goes = f"goes from {source.header.clock} to {source.end}"
                problem = f"rests on clock {clock} of {source.name}, which {goes}"
                raise contradiction(log.name, 1, problem)
            found.append((source, clock))
        reached = log.header.begin
        for source, _ in sorted(found, key=lambda pair: pair[0].header.begin):
            if source.header.begin <= reached:
                reached = max(reached, source.header.end)
        if found and reached < log.header.end:
            raise contradiction(log.name, 1, f"rests on logs that have nothing of {reached}")
        return found

    def ancestry(self, log: Log) -> list[Log]:
        """All logs that it rests on, and it: each after those that it rests on itself."""
        order: list[Log] = []
        begun, done = set(), set()
        stack = [(log, False)]
        while stack:
            at, its_sources_are_there = stack.pop()
            if its_sources_are_there:
                done.add(at.key)
                order.append(at)
            elif at.key not in done:
                if at.key in begun:
                    raise contradiction(at.name, 1, "rests on itself")
                begun.add(at.key)
                stack.append((at, True))
                stack += [(source, False) for source, _ in self.sources(at)]
        return order

    def followed(self, log: Log) -> list[Log]:
        """The log, and those whose places it has taken as a twin, one after the other."""
        found = [log]
        while found[-1].is_twin:
            found.append(self.sources(found[-1])[0][0])
        return found

    def at(self, log: Log, clock: int) -> History:
        """What the log's shard had done when its clock was ``clock``, one that it had; read only.

        Raises:
            ContradictionError: an item was applied twice, or not as the sources say.
        """
        if log.key not in self._bases:
            for ancestor in self.ancestry(log):
                if ancestor.key not in self._bases:
                    self._bases[ancestor.key] = self._base(ancestor)
        return self._walk(log, clock)

    def _walk(self, log: Log, clock: int) -> History:
        base, first = self._bases[log.key], log.header.clock
        reached = self._reached.setdefault(log.key, {})
        if clock in reached:
            return reached[clock]
        start = max((known for known in reached if known < clock), default=first)
        before = reached.get(start, base)
        applied = ItemSet(before.applied.intervals)
        aside = ItemSet(before.set_aside.intervals)
        for at, item in enumerate(log.items[start - first : clock - first], start=start + 1):
            if not applied.add(item) or item in base.set_aside:
                problem = f"item {item} is applied a second time, or after it was set aside"
                raise contradiction(log.name, log.line_of(at), problem)
        for number, entry in enumerate(log.set_aside, start=2):
            if entry.clock <= clock:
                if entry.item in base.applied:
                    problem = f"item {entry.item} is set aside after it was applied"
                    raise contradiction(log.name, number + entry.clock - first, problem)
                aside.add(entry.item)
        reached[clock] = History(applied, aside)
        return reached[clock]

    def _base(self, log: Log) -> History:
        """What it started with."""
        sources = self.sources(log)
        parts = [self._walk(source, clock) for source, clock in sources]
        aside_then = set(log.header.set_aside)
        applied = union(part.applied for part in parts)
        known = [
            union([part.applied, _those(part.set_aside, lambda i: i in aside_then or i in applied)])
            for part in parts
        ]
        if any(other != known[0] for other in known[1:]):
            raise contradiction(log.name, 1, "rests on shards that had done different items")
        for item in sorted(aside_then):
            if not any(item in part.set_aside for part in parts):
                raise contradiction(log.name, 1, f"item {item} was set aside nowhere before")
        for source, clock in sources:
            for item in sorted(source.settled(clock) - aside_then):
                if item not in applied:
                    problem = f"item {item} was set aside in {source.name}, and is no more"
                    raise contradiction(log.name, 1, problem)
        if len(applied) != log.header.clock:
            problem = f"starts at clock {log.header.clock}, from {len(applied)} items"
            raise contradiction(log.name, 1, problem)
        return History(applied, _those(union(p.set_aside for p in parts), aside_then.__contains__))


def final_logs(
    url: str, logs: Sequence[Log], n_parameters: int, serving: Serving | None
) -> list[Log]:
    """Of each shard the log of the start that serves, or served when the run ended.

    Raises:
        DataError: no shard can have applied anything yet.
        ContradictionError: one has no log, or they do not cover the vector.
    """
    if serving is None:
        return _probably_final(url, logs, n_parameters)
    final = []
    by_key = {log.key: log for log in logs}
    for endpoint in serving.shards:
        shard, incarnation = endpoint.shard, endpoint.incarnation
        log = by_key.get((shard, len(serving.shards), incarnation))
        if log is None:
            problem = f"names start {incarnation} of shard {shard}, of which there is no push log"
            raise contradiction(SERVING, 0, problem)
        final.append(log)
    found = _uncovered(final, n_parameters)
    if found is not None:
        raise ContradictionError(found)
    return final


def _probably_final(url: str, logs: Sequence[Log], n_parameters: int) -> list[Log]:
    """Those of the newest start of the run of which every shard has one, or what came after them.

    Those of a later start that was killed before all shards had begun hold no push.
    """
    starts: dict[tuple[int, int], list[Log]] = {}
    for log in logs:
        starts.setdefault((log.header.incarnation, log.header.n_shards), []).append(log)
    problems = []
    for start in sorted(starts, reverse=True):
        final = sorted(starts[start], key=lambda log: log.header.shard)
        problem = _uncovered(final, n_parameters)
        if problem is None:
            return [_last_after(log, logs) for log in final]
        problems.append(problem)
    if not any(log.items for log in logs):
        raise DataError(url, "has applied nothing yet: not all of its shards have begun")
    raise ContradictionError(problems[0])


def _last_after(log: Log, logs: Sequence[Log]) -> Log:
    """The last start of a shard that applied something; a twin only if it went on alone."""
    last = log
    for other in sorted(logs, key=lambda other: other.header.incarnation):
        later = other.header.incarnation > last.header.incarnation and other.items
        if later and other.key[:2] == log.key[:2] and not (other.is_twin and other.end <= last.end):
            last = other
    return last


def _uncovered(final: list[Log], n_parameters: int) -> CounterExample | None:
    expected = 0
    for log in final:
        if log.header.begin != expected:
            return CounterExample(log.name, 1, f"starts at {log.header.begin}, not at {expected}")
        expected = log.header.end
    if expected != n_parameters or len(final) != final[0].header.n_shards:
        problem = f"{len(final)} logs cover {expected} of {n_parameters} parameters"
        return CounterExample("pushes", 0, problem)
    return None


def _those(items: ItemSet, wanted: Callable[[int], bool]) -> ItemSet:
    found = ItemSet()
    for item in items:
        if wanted(item):
            found.add(item)
    return found
