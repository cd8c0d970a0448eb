"""What an audit goes by: all that it reads of a run's folder, which may be written to meanwhile."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from distbelief.audit.history import Log, read_history
from distbelief.config import ScheduleConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.coordinator.snapshots import MANIFEST, Manifest
from distbelief.errors import ConfigError, DataError
from distbelief.items import ItemPlan
from distbelief.observe.events import read_events
from distbelief.server.statefile import SNAPSHOTS
from distbelief.serving import NAME as SERVING
from distbelief.serving import Serving, read_serving
from distbelief.storage import Storage, storage_at


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a run's folder holds of its history.

    Attributes:
        url: The folder.
        plan: The run's items.
        n_parameters: Elements of the flat vector.
        ended: What the run says of its end; empty if it has not ended in order.
        serving: Who serves, or None before it has been said.
        events: All that has been told until then, in order.
        manifests: Every snapshot that is there, by its manifest's name.
        logs: Every push log, in the order of their names.
    """

    url: str
    plan: ItemPlan
    n_parameters: int
    ended: dict[str, Any]
    serving: Serving | None
    events: list[dict[str, Any]]
    manifests: dict[str, Manifest]
    logs: list[Log]

    @property
    def status(self) -> str:
        """``finished``, ``interrupted``, or empty: it goes on, or has failed or been killed."""
        return str(self.ended.get("status", ""))


def read_evidence(run: str | os.PathLike[str]) -> Evidence:
    """Reads the folder of a run.

    Raises:
        DataError: the folder holds no run, or a file of it cannot be read.
        ContradictionError: a line of a log cannot be true.
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
    ended = _summary(storage)
    serving, events = _serving_and_events(storage)
    manifests, names = _manifests(storage), storage.logs("pushes")
    logs = [log for name in names if (log := _read_log(storage, name, schedule)) is not None]
    if not logs:
        raise DataError(storage.url, "has no push logs; has a shard ever started?")
    return Evidence(
        url=storage.url,
        plan=plan,
        n_parameters=n_parameters,
        ended=ended,
        serving=serving,
        events=events,
        manifests=manifests,
        logs=logs,
    )


def _read_log(storage: Storage, name: str, schedule: Schedule) -> Log | None:
    """A log; None of a shard that was killed before it had headed it, and has applied nothing."""
    path = f"{storage.url}/pushes/{name}"
    try:
        headed = "\n" in storage.read_log(f"pushes/{name}")
        return read_history(storage, name, schedule) if headed else None
    except (OSError, UnicodeDecodeError) as error:
        problem: Exception = error
    except DataError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        problem = error.__cause__
    if isinstance(problem, FileNotFoundError):
        return None  # a twin that was given a later state begins another one
    raise DataError(path, f"cannot be read: {problem}") from problem


def _serving_and_events(storage: Storage) -> tuple[Serving | None, list[dict[str, Any]]]:
    """Who serves and what has happened until then, both of one moment."""
    serving = _serving(storage)
    while True:
        events, before = read_events(storage), serving
        serving = _serving(storage)
        if serving == before:
            return serving, events


def _serving(storage: Storage) -> Serving | None:
    try:
        return read_serving(storage)
    except OSError as error:
        raise DataError(f"{storage.url}/{SERVING}", f"cannot be read: {error}") from error


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


def _summary(storage: Storage) -> dict[str, Any]:
    """What the run says of its end; nothing if it has not ended in order."""
    found = _read_json(storage, "summary.json") if storage.exists("summary.json") else {}
    return found if found.get("status") in ("finished", "interrupted") else {}


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
