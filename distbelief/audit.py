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
from dataclasses import dataclass, replace
from typing import Any

from distbelief.config import ScheduleConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.coordinator.snapshots import MANIFEST, Manifest, is_even
from distbelief.errors import ConfigError, DataError
from distbelief.history import (
    ContradictionError,
    CounterExample,
    Histories,
    History,
    contradiction,
    final_logs,
    read_history,
)
from distbelief.items import ItemPlan
from distbelief.observe.events import read_events
from distbelief.server.applied import ItemSet, intersection
from distbelief.server.statefile import SNAPSHOTS
from distbelief.storage import Storage, storage_at


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
        logs = [read_history(storage, name, schedule) for name in names]
        final = final_logs(storage, logs, n_parameters)
        histories = Histories(logs)
        shards = {log.name: histories.at(log, log.end) for log in final}
        forgotten = sum(log.end - max([log.header.clock, *log.cuts]) for log in logs)
        _check_snapshots(manifests, histories)
        claimed = _claimed(storage, plan, list(shards.values()), ended, events)
        found = _check_items(shards, plan, claimed, ended)
        return replace(found, forgotten=forgotten, snapshots=len(manifests))
    except ContradictionError as contradiction:
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


def _check_snapshots(manifests: dict[str, Manifest], histories: Histories) -> None:
    """Every snapshot has applied what the logs say, and is even if it says so."""
    for name, manifest in manifests.items():
        for file in manifest.files:
            log = histories.of(file.state.shard, file.n_shards, file.state.incarnation)
            if log is None:
                raise contradiction(name, 0, f"there is no push log of {file.name}")
            history = histories.at(log, file.state.clock)
            if history.applied != ItemSet(file.state.applied):
                problem = f"{file.name} has other items applied than {log.name} says"
                raise contradiction(name, 0, problem)
            unknown = [item for item in file.state.set_aside if item not in history.set_aside]
            if unknown:
                problem = f"{file.name} has item {unknown[0]} set aside, {log.name} has not"
                raise contradiction(name, 0, problem)
        if manifest.even != is_even(manifest.files):
            raise contradiction(name, 0, f"says even: {manifest.even}, which it is not")


def _summary(storage: Storage) -> dict[str, Any]:
    """What the run says of its end; nothing if it has not ended in order."""
    found = _read_json(storage, "summary.json") if storage.exists("summary.json") else {}
    return found if found.get("status") in ("finished", "interrupted") else {}


def _claimed(
    storage: Storage,
    plan: ItemPlan,
    shards: list[History],
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
    shards: dict[str, History], plan: ItemPlan, claimed: range, ended: dict[str, Any]
) -> Audit:
    accounted = [shard.accounted for shard in shards.values()]
    for name, items in zip(shards, accounted, strict=True):
        missing = next((begin for begin, _ in items.gaps(claimed.stop)), None)
        if missing is not None:
            problem = f"item {missing} was not applied, though it must have been"
            raise contradiction(name, 0, problem)
    first, *rest = shards.values()
    for name, shard in list(shards.items())[1:]:
        for item, examples in first.examples.items():
            if shard.examples.get(item, examples) != examples:
                problem = f"item {item} has {shard.examples[item]} examples here, {examples} there"
                raise contradiction(name, 0, problem)
    everywhere = intersection(accounted)
    applied = intersection(shard.applied for shard in shards.values())
    covered = sum(plan.item(item).n_examples for item in applied)
    used = sum(first.examples[item] for item in applied)
    said = ended.get("examples_applied", covered)
    # A run that was cut off may have applied more than it had heard of.
    if said > covered or (said < covered and ended.get("status") == "finished"):
        problem = f"says {said} examples, the logs say {covered}"
        raise contradiction("summary.json", 0, problem)
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
