"""What each push log of a run says, and whether every line of it is as it must be."""

from __future__ import annotations

from dataclasses import dataclass, field

from distbelief.coordinator.schedule import Schedule
from distbelief.items import ItemPlan
from distbelief.server.applied import ItemSet
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


@dataclass(frozen=True, slots=True)
class Aside:
    """An item that was set aside when the shard's clock was so."""

    clock: int
    item: int
    reason: str


@dataclass
class Log:
    """What one log says: its pushes in the order of the clock, which starts at ``header.clock``.

    Attributes:
        name: Of its file.
        header: Its first line.
        items: Of its pushes.
        examples: That went into each.
        set_aside: What was set aside meanwhile.
        foreign: Pushes that rest on a version of an earlier incarnation: the clock before the push,
            and the version.
    """

    name: str
    header: LogHeader
    items: list[int] = field(default_factory=list)
    examples: list[int] = field(default_factory=list)
    set_aside: list[Aside] = field(default_factory=list)
    foreign: list[tuple[int, tuple[int, int]]] = field(default_factory=list)

    @property
    def key(self) -> tuple[int, int, int]:
        """Shard, number of shards, incarnation."""
        return self.header.shard, self.header.n_shards, self.header.incarnation

    @property
    def end(self) -> int:
        """The clock after its last push."""
        return self.header.clock + len(self.items)

    @property
    def is_twin(self) -> bool:
        """Whether it was headed with the state of another start of the shard, not a snapshot."""
        return self.header.snapshot is None and bool(self.header.sources)

    def overlaps(self, other: Log) -> bool:
        """Whether both have a part of the flat vector."""
        a, b = self.header, other.header
        return a.begin < b.end and b.begin < a.end

    def item_at(self, clock: int) -> int:
        """The item that brought it to that clock."""
        return self.items[clock - self.header.clock - 1]

    def examples_at(self, clock: int) -> int:
        """The examples of that item."""
        return self.examples[clock - self.header.clock - 1]

    def line_of(self, clock: int) -> int:
        """The line of the push that brought it to that clock."""
        return 1 + clock - self.header.clock + sum(a.clock < clock for a in self.set_aside)

    def settled(self, clock: int) -> set[int]:
        """Items that a state of that clock must have set aside."""
        return {*self.header.set_aside, *(a.item for a in self.set_aside if a.clock < clock)}


class ContradictionError(Exception):
    """The logs contradict what the run promises."""

    def __init__(self, found: CounterExample) -> None:
        super().__init__(found)
        self.found = found


def contradiction(log: str, line: int, problem: str) -> ContradictionError:
    """What is wrong in a line of a log; 0 for the whole of it."""
    return ContradictionError(CounterExample(log, line, problem))


def read_history(storage: Storage, name: str, schedule: Schedule) -> Log:
    """A log, each line of which has been held against the schedule and against those before.

    Raises:
        ContradictionError: one is not as it must be.
    """
    header, entries = read_log(storage, name)
    log = Log(name, header)
    applied, aside = ItemSet(), ItemSet()
    for number, entry in enumerate(entries, start=2):
        if isinstance(entry, SetAside):
            problem = _aside_problem(entry, applied, schedule.plan)
            aside.add(entry.item)
            log.set_aside.append(Aside(log.end, entry.item, entry.reason))
        else:
            problem = _problem(log, entry, applied, aside, schedule)
            if entry.base[0] != header.incarnation:
                log.foreign.append((log.end, entry.base))
            applied.add(entry.item)
            log.items.append(entry.item)
            log.examples.append(entry.examples)
        if problem:
            raise contradiction(log.name, number, problem)
    return log


def _aside_problem(entry: SetAside, applied: ItemSet, plan: ItemPlan) -> str:
    if not 0 <= entry.item < plan.n_items:
        return f"item {entry.item} is none of the run's {plan.n_items}"
    if not entry.reason.strip():
        return f"item {entry.item} is set aside without a reason"
    if entry.item in applied:
        return f"item {entry.item} is set aside after it was applied"
    return ""


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
    if incarnation == log.header.incarnation and base < log.header.clock:
        return f"item {entry.item} rests on version {entry.base}, which never was"
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
