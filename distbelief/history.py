"""The surviving history of a run, from the push logs of all its starts.

A run that was resumed has several logs of a shard, of which some pushes were forgotten. What counts
is a log's own pushes, and before them those of the logs that its snapshot rests on, up to the clock
that they had in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from distbelief.coordinator.schedule import Schedule
from distbelief.errors import DataError
from distbelief.server.applied import ItemSet, union
from distbelief.server.pushlog import LogEntry, LogHeader, SetAside, read_log
from distbelief.storage import Storage


@dataclass(frozen=True, slots=True)
class CounterExample:
    """The first thing found that contradicts the promise."""

    log: str
    line: int
    problem: str

    def __str__(self) -> str:
        where = f"{self.log}, line {self.line}" if self.line else self.log
        return f"{where}: {self.problem}"


@dataclass
class Log:
    """What one log says: its pushes in the order of the clock, which starts at ``header.clock``."""

    name: str
    header: LogHeader
    items: list[int] = field(default_factory=list)
    examples: dict[int, int] = field(default_factory=dict)
    set_aside: list[tuple[int, int]] = field(default_factory=list)
    """The clock, and the item that was set aside then."""
    cuts: list[int] = field(default_factory=list)
    """Clocks up to which it is part of a surviving history."""

    @property
    def key(self) -> tuple[int, int, int]:
        """Shard, number of shards, incarnation."""
        return self.header.shard, self.header.n_shards, self.header.incarnation

    @property
    def end(self) -> int:
        """The clock after its last push."""
        return self.header.clock + len(self.items)


@dataclass
class History:
    """What a shard had done at some moment, over all its logs."""

    applied: ItemSet = field(default_factory=ItemSet)
    set_aside: ItemSet = field(default_factory=ItemSet)
    examples: dict[int, int] = field(default_factory=dict)

    @property
    def accounted(self) -> ItemSet:
        """Items that were applied or set aside."""
        return union([self.applied, self.set_aside])


class ContradictionError(Exception):
    """The logs contradict what the run promises."""

    def __init__(self, found: CounterExample) -> None:
        super().__init__(found)
        self.found = found


def contradiction(log: str, line: int, problem: str) -> ContradictionError:
    """What is wrong in a line of a log; 0 for the whole of it."""
    return ContradictionError(CounterExample(log, line, problem))


def read_history(storage: Storage, name: str, schedule: Schedule) -> Log:
    """A log, each push of which has been held against the schedule.

    Raises:
        ContradictionError: a push is not as it must be.
    """
    header, entries = read_log(storage, name)
    log = Log(name, header)
    applied, aside = ItemSet(), ItemSet()
    for number, entry in enumerate(entries, start=2):
        if isinstance(entry, SetAside):
            aside.add(entry.item)
            log.set_aside.append((log.end, entry.item))
            continue
        problem = _problem(log, entry, applied, aside, schedule)
        if problem:
            raise contradiction(log.name, number, problem)
        applied.add(entry.item)
        log.items.append(entry.item)
        log.examples[entry.item] = entry.examples
    return log


def _problem(
    log: Log, entry: LogEntry, applied: ItemSet, aside: ItemSet, schedule: Schedule
) -> str:
    plan, clock = schedule.plan, log.end
    if entry.clock != clock + 1:
        return f"clock {entry.clock} follows {clock}"
    if not 0 <= entry.item < plan.n_items:
        return f"item {entry.item} is none of the run's {plan.n_items}"
    if entry.item in applied:
        return f"item {entry.item} is applied a second time"
    if entry.item in aside:
        return f"item {entry.item} is applied after it was set aside"
    incarnation, base = entry.base
    if incarnation > log.header.incarnation or (
        incarnation == log.header.incarnation and base > clock
    ):
        return f"item {entry.item} rests on version {entry.base}, which was not there yet"
    rate = schedule.rate(entry.item)
    if entry.rate != rate:
        return f"item {entry.item} has rate {entry.rate}, the schedule says {rate}"
    covered = plan.item(entry.item).n_examples
    if entry.examples + len(entry.skipped) != covered:
        return (
            f"item {entry.item} covers {covered} examples; {entry.examples} were used and "
            f"{len(entry.skipped)} skipped"
        )
    return ""


def final_logs(storage: Storage, logs: list[Log], n_parameters: int) -> list[Log]:
    """The logs of the newest start of which every shard has one.

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
            return final
        problems.append(problem)
    if not any(log.items for log in logs):
        raise DataError(storage.url, "has applied nothing yet: not all of its shards have begun")
    raise ContradictionError(problems[0])


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


class Histories:
    """The surviving history of each log, as far as it is asked for."""

    def __init__(self, logs: list[Log]) -> None:
        self._logs = {log.key: log for log in logs}

    def of(self, shard: int, n_shards: int, incarnation: int) -> Log | None:
        """The log of that name."""
        return self._logs.get((shard, n_shards, incarnation))

    def at(self, log: Log, clock: int) -> History:
        """What the log's shard had done when its clock was ``clock``."""
        if not log.header.clock <= clock <= log.end:
            problem = f"clock {clock} is asked of it; it goes from {log.header.clock} to {log.end}"
            raise contradiction(log.name, 0, problem)
        log.cuts.append(clock)
        history = self._base(log)
        if len(history.applied) != log.header.clock:
            problem = f"starts at clock {log.header.clock}, from {len(history.applied)} items"
            raise contradiction(log.name, 1, problem)
        for number, item in enumerate(log.items[: clock - log.header.clock], start=2):
            if item in history.applied or item in history.set_aside:
                problem = f"item {item} is applied a second time, or after it was set aside"
                raise contradiction(log.name, number, problem)
            history.applied.add(item)
            history.examples[item] = log.examples[item]
        for at, item in log.set_aside:
            if at <= clock:
                history.set_aside.add(item)
        return history

    def _base(self, log: Log) -> History:
        """What it started with."""
        parts = []
        for shard, n_shards, incarnation, clock in log.header.sources:
            source = self.of(shard, n_shards, incarnation)
            if source is None:
                problem = f"rests on a log of shard {shard} of {n_shards} that is not there"
                raise contradiction(log.name, 1, problem)
            parts.append(self.at(source, clock))
        if not parts:
            return History()
        aside_then = set(log.header.set_aside)
        applied = union(part.applied for part in parts)
        known = [
            union([part.applied, _those(part.set_aside, lambda i: i in aside_then or i in applied)])
            for part in parts
        ]
        if any(other != known[0] for other in known[1:]):
            raise contradiction(log.name, 1, "rests on shards that had done different items")
        aside = ItemSet()
        for item in log.header.set_aside:
            if not any(item in part.set_aside for part in parts):
                raise contradiction(log.name, 1, f"item {item} was set aside nowhere before")
            aside.add(item)
        examples = {k: n for part in parts for k, n in part.examples.items()}
        return History(applied, aside, examples)


def _those(items: ItemSet, wanted: Callable[[int], bool]) -> ItemSet:
    found = ItemSet()
    for item in items:
        if wanted(item):
            found.add(item)
    return found
