"""The audit: whether a run did what it promises, from the files of its folder alone.

From the push logs, on every shard: no gap in the clock, no item applied twice, each rate as
scheduled, each push with all its item's examples but those it skipped; and every item of each
finished epoch applied, or set aside with a reason.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distbelief.config import ScheduleConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.errors import ConfigError, DataError
from distbelief.items import ItemPlan
from distbelief.observe.events import read_events
from distbelief.server.applied import ItemSet, intersection, union
from distbelief.server.pushlog import LogEntry, LogHeader, SetAside, read_log


@dataclass(frozen=True, slots=True)
class CounterExample:
    """The first thing found that contradicts the promise."""

    log: str
    line: int
    problem: str

    def __str__(self) -> str:
        where = f"{self.log}, line {self.line}" if self.line else self.log
        return f"{where}: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result of an audit; clean if ``counter_example`` is None."""

    counter_example: CounterExample | None
    n_shards: int = 0
    pushes: int = 0
    items: int = 0
    examples: int = 0
    skipped: int = 0
    set_aside: int = 0
    epochs_finished: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing contradicts the promise."""
        return self.counter_example is None


@dataclass
class _Log:
    """What one shard's log says."""

    name: str
    header: LogHeader
    applied: ItemSet = field(default_factory=ItemSet)
    set_aside: ItemSet = field(default_factory=ItemSet)
    examples: dict[int, int] = field(default_factory=dict)


class _ContradictionError(Exception):
    def __init__(self, found: CounterExample) -> None:
        super().__init__(found)
        self.found = found


def audit(run_dir: Path) -> Audit:
    """Audits the run in ``run_dir``.

    Raises:
        DataError: the folder holds no run, or a file of it cannot be read.
    """
    record = _read_json(run_dir / "config.json")
    try:
        plan = ItemPlan(**record["plan"])
        schedule = Schedule(ScheduleConfig(**record["config"]["schedule"]), plan)
        n_parameters = int(record["parameters"])
        n_shards = int(record["config"]["cluster"]["shards"])
        schedule.rate(0)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, ConfigError) as error:
        raise DataError(str(run_dir / "config.json"), f"is no run's record: {error!r}") from error
    paths = sorted((run_dir / "pushes").glob("*.jsonl"))
    if not paths:
        raise DataError(str(run_dir), "has no push logs; has a shard ever started?")
    ended = _summary(run_dir)
    try:
        logs = [_read(path, schedule) for path in paths]
        _check_shards(logs, n_parameters, n_shards)
        claimed = _claimed(run_dir, plan, logs, ended)
        return _check_items(logs, plan, claimed, ended)
    except _ContradictionError as contradiction:
        return Audit(counter_example=contradiction.found, n_shards=len(paths))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(str(path.parent), f"is no run's folder: there is no {path.name}") from error
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(str(path), "is not an object")
    return value


def _read(path: Path, schedule: Schedule) -> _Log:
    header, entries = read_log(path)
    log = _Log(path.name, header)
    clock = header.clock
    for number, entry in enumerate(entries, start=2):
        if isinstance(entry, SetAside):
            log.set_aside.add(entry.item)
            continue
        problem = _problem(log, entry, clock, schedule)
        if problem:
            raise _ContradictionError(CounterExample(log.name, number, problem))
        clock = entry.clock
        log.applied.add(entry.item)
        log.examples[entry.item] = entry.examples
    return log


def _problem(log: _Log, entry: LogEntry, clock: int, schedule: Schedule) -> str:
    plan = schedule.plan
    if entry.clock != clock + 1:
        return f"clock {entry.clock} follows {clock}"
    if not 0 <= entry.item < plan.n_items:
        return f"item {entry.item} is none of the run's {plan.n_items}"
    if entry.item in log.applied:
        return f"item {entry.item} is applied a second time"
    if entry.item in log.set_aside:
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


def _check_shards(logs: list[_Log], n_parameters: int, n_shards: int) -> None:
    """The logs are of all shards, one each, and their ranges make up the whole vector."""
    expected = 0
    for log in sorted(logs, key=lambda log: log.header.begin):
        if log.header.begin != expected:
            raise _ContradictionError(
                CounterExample(log.name, 1, f"starts at {log.header.begin}, not at {expected}")
            )
        expected = log.header.end
    if expected != n_parameters or len(logs) != n_shards:
        problem = f"{len(logs)} logs cover {expected} of {n_parameters} parameters"
        raise _ContradictionError(CounterExample("pushes", 0, problem))


def _summary(run_dir: Path) -> dict[str, Any]:
    """What the run says of its end; nothing if it has not ended in order."""
    path = run_dir / "summary.json"
    found = _read_json(path) if path.exists() else {}
    return found if found.get("status") in ("finished", "interrupted") else {}


def _claimed(run_dir: Path, plan: ItemPlan, logs: list[_Log], ended: dict[str, Any]) -> range:
    """The items that must have been applied, or set aside, on every shard.

    All if the run says that it is finished; else those of the epochs that its events call done, and
    of those before the two from which leases came when the latest item was applied.
    """
    if ended.get("status") == "finished":
        return range(plan.n_items)
    events = run_dir / "events.jsonl"
    epochs = [0]
    if events.exists():
        try:
            epochs += [int(e["epoch"]) for e in read_events(events) if e["kind"] == "epoch"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(str(events), f"is damaged: {error!r}") from error
    latest = max((log.applied.intervals[-1][1] - 1 for log in logs if len(log.applied)), default=0)
    epochs.append(latest // plan.items_per_epoch - 1)
    return range(min(max(epochs) * plan.items_per_epoch, plan.n_items))


def _check_items(logs: list[_Log], plan: ItemPlan, claimed: range, ended: dict[str, Any]) -> Audit:
    accounted = [union([log.applied, log.set_aside]) for log in logs]
    for log, items in zip(logs, accounted, strict=True):
        missing = next((begin for begin, _ in items.gaps(claimed.stop)), None)
        if missing is not None:
            problem = f"item {missing} was not applied, though it must have been"
            raise _ContradictionError(CounterExample(log.name, 0, problem))
    first = logs[0]
    for log in logs[1:]:
        for item, examples in first.examples.items():
            if log.examples.get(item, examples) != examples:
                problem = f"item {item} has {log.examples[item]} examples here, {examples} there"
                raise _ContradictionError(CounterExample(log.name, 0, problem))
    everywhere = intersection(accounted)
    applied = intersection(log.applied for log in logs)
    covered = sum(plan.item(item).n_examples for item in applied)
    said = ended.get("examples_applied", covered)
    # A run that was cut off may have applied more than it had heard of.
    if said > covered or (said < covered and ended.get("status") == "finished"):
        problem = f"says {said} examples, the logs say {covered}"
        raise _ContradictionError(CounterExample("summary.json", 0, problem))
    return Audit(
        counter_example=None,
        n_shards=len(logs),
        pushes=sum(len(log.applied) for log in logs),
        items=len(applied),
        examples=sum(first.examples[item] for item in applied),
        skipped=covered - sum(first.examples[item] for item in applied),
        set_aside=len(everywhere) - len(applied),
        epochs_finished=min(everywhere.below // plan.items_per_epoch, plan.n_epochs),
    )
