"""The audit: whether a run did what it promises, from the files of its folder alone.

A run that was resumed has several logs of a shard, of which some pushes were forgotten: those that
came after the snapshot that it went on from. What counts is the surviving history: a log's own
pushes, and before them those of the logs that its snapshot rests on, up to the clock that they had
in it. There, on every shard: no gap in the clock, no item applied twice, each rate as scheduled,
each push with all its item's examples but those it skipped; and every item of each finished epoch
applied, or set aside with a reason. Snapshots that are there hold what the history says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from distbelief.config import ScheduleConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.coordinator.snapshots import MANIFEST, Manifest, is_even
from distbelief.errors import ConfigError, DataError
from distbelief.items import ItemPlan
from distbelief.observe.events import read_events
from distbelief.server.applied import ItemSet, intersection, union
from distbelief.server.pushlog import LogEntry, LogHeader, SetAside, read_log
from distbelief.server.statefile import SNAPSHOTS
from distbelief.storage import Storage, storage_at


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
    """The result of an audit; clean if ``counter_example`` is None.

    ``pushes`` are those of the surviving history, ``forgotten`` those that a resumption left behind
    and that were done again; ``snapshots`` were held against the logs.
    """

    counter_example: CounterExample | None
    n_shards: int = 0
    pushes: int = 0
    items: int = 0
    examples: int = 0
    skipped: int = 0
    set_aside: int = 0
    epochs_finished: int = 0
    forgotten: int = 0
    snapshots: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing contradicts the promise."""
        return self.counter_example is None


@dataclass
class _Log:
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
class _History:
    """What a shard had done at some moment, over all its logs."""

    applied: ItemSet = field(default_factory=ItemSet)
    set_aside: ItemSet = field(default_factory=ItemSet)
    examples: dict[int, int] = field(default_factory=dict)

    @property
    def accounted(self) -> ItemSet:
        """Items that were applied or set aside."""
        return union([self.applied, self.set_aside])


class _ContradictionError(Exception):
    def __init__(self, found: CounterExample) -> None:
        super().__init__(found)
        self.found = found


def audit(run: str | os.PathLike[str]) -> Audit:
    """Audits the run in a folder, by path or URL.

    Raises:
        DataError: the folder holds no run, or a file of it cannot be read.
    """
    try:
        storage = storage_at(run)
    except ConfigError as error:
        raise DataError(os.fspath(run), error.problem) from error
    record = _read_json(storage, "config.json")
    try:
        plan = ItemPlan(**record["plan"])
        schedule = Schedule(ScheduleConfig(**record["config"]["schedule"]), plan)
        n_parameters = int(record["parameters"])
        schedule.rate(0)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, ConfigError) as error:
        place = f"{storage.url}/config.json"
        raise DataError(place, f"is no run's record: {error!r}") from error
    # What is said of the logs comes first, for a run that goes on writes them meanwhile.
    ended, events, manifests = _summary(storage), read_events(storage), _manifests(storage)
    # A shard that was killed before it had headed its log has applied nothing.
    names = [n for n in storage.logs("pushes") if "\n" in _text(storage, n)]
    if not names:
        raise DataError(storage.url, "has no push logs; has a shard ever started?")
    try:
        logs = [_read(storage, name, schedule) for name in names]
        final = _final(storage, logs, n_parameters)
        histories = _Histories(logs)
        shards = {log.name: histories.at(log, log.end) for log in final}
        forgotten = sum(log.end - max([log.header.clock, *log.cuts]) for log in logs)
        _check_snapshots(manifests, histories)
        claimed = _claimed(storage, plan, list(shards.values()), ended, events)
        found = _check_items(shards, plan, claimed, ended)
        return replace(found, forgotten=forgotten, snapshots=len(manifests))
    except _ContradictionError as contradiction:
        return Audit(counter_example=contradiction.found)


def _text(storage: Storage, name: str) -> str:
    try:
        return storage.read_log(f"pushes/{name}")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{storage.url}/pushes/{name}", f"cannot be read: {error}") from error


def _read_json(storage: Storage, name: str) -> dict[str, Any]:
    path = f"{storage.url}/{name}"
    try:
        value = json.loads(storage.read(name))
    except FileNotFoundError as error:
        raise DataError(storage.url, f"is no run's folder: there is no {name}") from error
    except (OSError, ValueError) as error:
        raise DataError(path, f"cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(path, "is not an object")
    return value


def _contradiction(log: str, line: int, problem: str) -> _ContradictionError:
    return _ContradictionError(CounterExample(log, line, problem))


def _read(storage: Storage, name: str, schedule: Schedule) -> _Log:
    header, entries = read_log(storage, name)
    log = _Log(name, header)
    applied, aside = ItemSet(), ItemSet()
    for number, entry in enumerate(entries, start=2):
        if isinstance(entry, SetAside):
            aside.add(entry.item)
            log.set_aside.append((log.end, entry.item))
            continue
        problem = _problem(log, entry, applied, aside, schedule)
        if problem:
            raise _contradiction(log.name, number, problem)
        applied.add(entry.item)
        log.items.append(entry.item)
        log.examples[entry.item] = entry.examples
    return log


def _problem(
    log: _Log, entry: LogEntry, applied: ItemSet, aside: ItemSet, schedule: Schedule
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


def _final(storage: Storage, logs: list[_Log], n_parameters: int) -> list[_Log]:
    """The logs of the newest start of which every shard has one.

    Those of a later start that was killed before all shards had begun hold no push.
    """
    starts: dict[tuple[int, int], list[_Log]] = {}
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
    raise _ContradictionError(problems[0])


def _uncovered(final: list[_Log], n_parameters: int) -> CounterExample | None:
    expected = 0
    for log in final:
        if log.header.begin != expected:
            return CounterExample(log.name, 1, f"starts at {log.header.begin}, not at {expected}")
        expected = log.header.end
    if expected != n_parameters or len(final) != final[0].header.n_shards:
        problem = f"{len(final)} logs cover {expected} of {n_parameters} parameters"
        return CounterExample("pushes", 0, problem)
    return None


class _Histories:
    """The surviving history of each log, as far as it is asked for."""

    def __init__(self, logs: list[_Log]) -> None:
        self._logs = {log.key: log for log in logs}

    def of(self, shard: int, n_shards: int, incarnation: int) -> _Log | None:
        """The log of that name."""
        return self._logs.get((shard, n_shards, incarnation))

    def at(self, log: _Log, clock: int) -> _History:
        """What the log's shard had done when its clock was ``clock``."""
        if not log.header.clock <= clock <= log.end:
            problem = f"clock {clock} is asked of it; it goes from {log.header.clock} to {log.end}"
            raise _contradiction(log.name, 0, problem)
        log.cuts.append(clock)
        history = self._base(log)
        if len(history.applied) != log.header.clock:
            problem = f"starts at clock {log.header.clock}, from {len(history.applied)} items"
            raise _contradiction(log.name, 1, problem)
        for number, item in enumerate(log.items[: clock - log.header.clock], start=2):
            if item in history.applied or item in history.set_aside:
                problem = f"item {item} is applied a second time, or after it was set aside"
                raise _contradiction(log.name, number, problem)
            history.applied.add(item)
            history.examples[item] = log.examples[item]
        for at, item in log.set_aside:
            if at <= clock:
                history.set_aside.add(item)
        return history

    def _base(self, log: _Log) -> _History:
        """What it started with."""
        parts = []
        for shard, n_shards, incarnation, clock in log.header.sources:
            source = self.of(shard, n_shards, incarnation)
            if source is None:
                problem = f"rests on a log of shard {shard} of {n_shards} that is not there"
                raise _contradiction(log.name, 1, problem)
            parts.append(self.at(source, clock))
        if not parts:
            return _History()
        aside_then = set(log.header.set_aside)
        applied = union(part.applied for part in parts)
        known = [
            union([part.applied, _those(part.set_aside, lambda i: i in aside_then or i in applied)])
            for part in parts
        ]
        if any(other != known[0] for other in known[1:]):
            raise _contradiction(log.name, 1, "rests on shards that had done different items")
        aside = ItemSet()
        for item in log.header.set_aside:
            if not any(item in part.set_aside for part in parts):
                raise _contradiction(log.name, 1, f"item {item} was set aside nowhere before")
            aside.add(item)
        examples = {k: n for part in parts for k, n in part.examples.items()}
        return _History(applied, aside, examples)


def _those(items: ItemSet, wanted: Callable[[int], bool]) -> ItemSet:
    found = ItemSet()
    for item in items:
        if wanted(item):
            found.add(item)
    return found


def _manifests(storage: Storage) -> dict[str, Manifest]:
    """Every snapshot that is there, by its manifest's name."""
    found = {}
    for folder in storage.names(SNAPSHOTS):
        name = f"{SNAPSHOTS}/{folder}/{MANIFEST}"
        if not folder.isdigit():
            continue
        try:
            found[name] = Manifest.from_dict(json.loads(storage.read(name)))
        except FileNotFoundError:
            continue  # it was never finished, or has just been removed
        except (OSError, ValueError) as error:
            raise DataError(f"{storage.url}/{name}", f"is damaged: {error}") from error
    return found


def _check_snapshots(manifests: dict[str, Manifest], histories: _Histories) -> None:
    """Every snapshot has applied what the logs say, and is even if it says so."""
    for name, manifest in manifests.items():
        for file in manifest.files:
            log = histories.of(file.state.shard, file.n_shards, file.state.incarnation)
            if log is None:
                raise _contradiction(name, 0, f"there is no push log of {file.name}")
            history = histories.at(log, file.state.clock)
            if history.applied != ItemSet(file.state.applied):
                problem = f"{file.name} has other items applied than {log.name} says"
                raise _contradiction(name, 0, problem)
            unknown = [item for item in file.state.set_aside if item not in history.set_aside]
            if unknown:
                problem = f"{file.name} has item {unknown[0]} set aside, {log.name} has not"
                raise _contradiction(name, 0, problem)
        if manifest.even != is_even(manifest.files):
            raise _contradiction(name, 0, f"says even: {manifest.even}, which it is not")


def _summary(storage: Storage) -> dict[str, Any]:
    """What the run says of its end; nothing if it has not ended in order."""
    found = _read_json(storage, "summary.json") if storage.exists("summary.json") else {}
    return found if found.get("status") in ("finished", "interrupted") else {}


def _claimed(
    storage: Storage,
    plan: ItemPlan,
    shards: list[_History],
    ended: dict[str, Any],
    events: list[dict[str, Any]],
) -> range:
    """The items that must have been applied, or set aside, on every shard.

    All if the run says that it is finished; else those of the epochs that its events call done
    since it was last resumed, and of those before the two from which leases came when the latest
    item was applied.
    """
    if ended.get("status") == "finished":
        return range(plan.n_items)
    epochs = [0]
    for event in events:
        if event["kind"] == "resumed":
            epochs = [0]
        elif event["kind"] == "epoch":
            epochs.append(_epoch(storage, event))
    applied = [shard.applied for shard in shards]
    # Of a run that goes on, or was killed, the logs are not of one moment: the least counts.
    least_or_most = max if ended else min
    latest = least_or_most((s.intervals[-1][1] - 1 if len(s) else 0 for s in applied), default=0)
    epochs.append(latest // plan.items_per_epoch - 1)
    return range(min(max(epochs) * plan.items_per_epoch, plan.n_items))


def _epoch(storage: Storage, event: dict[str, Any]) -> int:
    try:
        return int(event["epoch"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{storage.url}/events.jsonl", f"is damaged: {error!r}") from error


def _check_items(
    shards: dict[str, _History], plan: ItemPlan, claimed: range, ended: dict[str, Any]
) -> Audit:
    accounted = [shard.accounted for shard in shards.values()]
    for name, items in zip(shards, accounted, strict=True):
        missing = next((begin for begin, _ in items.gaps(claimed.stop)), None)
        if missing is not None:
            problem = f"item {missing} was not applied, though it must have been"
            raise _contradiction(name, 0, problem)
    first, *rest = shards.values()
    for name, shard in list(shards.items())[1:]:
        for item, examples in first.examples.items():
            if shard.examples.get(item, examples) != examples:
                problem = f"item {item} has {shard.examples[item]} examples here, {examples} there"
                raise _contradiction(name, 0, problem)
    everywhere = intersection(accounted)
    applied = intersection(shard.applied for shard in shards.values())
    covered = sum(plan.item(item).n_examples for item in applied)
    used = sum(first.examples[item] for item in applied)
    said = ended.get("examples_applied", covered)
    # A run that was cut off may have applied more than it had heard of.
    if said > covered or (said < covered and ended.get("status") == "finished"):
        problem = f"says {said} examples, the logs say {covered}"
        raise _contradiction("summary.json", 0, problem)
    return Audit(
        counter_example=None,
        n_shards=len(shards),
        pushes=sum(len(shard.applied) for shard in (first, *rest)),
        items=len(applied),
        examples=used,
        skipped=covered - used,
        set_aside=len(everywhere) - len(applied),
        epochs_finished=min(everywhere.below // plan.items_per_epoch, plan.n_epochs),
    )
