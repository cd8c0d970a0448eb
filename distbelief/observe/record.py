"""A run as its folder tells of it: for those who were not there."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from distbelief.errors import DataError
from distbelief.items import ItemPlan
from distbelief.observe.events import RECOVERIES, read_events
from distbelief.observe.report import Report
from distbelief.storage import LocalStorage, Storage, storage_at

Event = dict[str, Any]

ENDS = ("finished", "interrupted", "failed")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a run's folder holds.

    Attributes:
        url: The folder.
        config: Contents of ``config.json``.
        events: All events in order; ``t`` never goes back by more than what threads mix up.
        summary: Contents of ``summary.json``, or None before there is one.
        written_at: When something was written last, in seconds since the epoch.
    """

    url: str
    config: dict[str, Any]
    events: tuple[Event, ...]
    summary: dict[str, Any] | None
    written_at: float

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.url.rstrip("/").rpartition("/")[2] or self.url

    @property
    def recipe(self) -> str:
        """The recipe that it started from."""
        return str(self.config["config"].get("recipe", ""))

    @property
    def started_at(self) -> float:
        """Its start, in seconds since the epoch."""
        return float(self.config.get("started_at", 0.0))

    @cached_property
    def plan(self) -> ItemPlan:
        """How its examples are divided."""
        return ItemPlan(**self.config["plan"])

    @cached_property
    def end(self) -> tuple[str, str]:
        """``running``, ``finished``, ``interrupted`` or ``failed``, and why it failed."""
        word, cause = "", ""
        for event in self.events:
            if event["kind"] == "resumed":
                word, cause = "running", ""
            elif event["kind"] == "failure":
                word, cause = "failed", str(event.get("cause", ""))
            elif event["kind"] == "end" and word != "failed":
                word = str(event.get("status", "finished"))
        if not word and self.summary and self.summary.get("status") in ENDS:
            word, cause = self.summary["status"], str(self.summary.get("cause", ""))
        return word or "running", cause

    @property
    def last_s(self) -> float:
        """Seconds from the start to the last event."""
        return max((float(event["t"]) for event in self.events), default=0.0)

    def of(self, kind: str) -> list[Event]:
        """The events of a kind."""
        return [event for event in self.events if event["kind"] == kind]

    def newest(self, kind: str) -> Event | None:
        """The last event of a kind."""
        return next((e for e in reversed(self.events) if e["kind"] == kind), None)


def read_record(run: str | os.PathLike[str] | Storage) -> Record:
    """Reads a run's folder, which may be written to meanwhile.

    Raises:
        DataError: it is no run's folder, or what it holds cannot be read.
    """
    storage = storage_at(run, "run") if isinstance(run, str | os.PathLike) else run
    try:
        config = json.loads(storage.read("config.json"))
        ItemPlan(**config["plan"])
        config["config"]
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            storage.url, "is no run's folder: it has no config.json; name one that train wrote"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{storage.url}/config.json", f"is damaged: {error!r}") from error
    events = read_events(storage)
    return Record(
        url=storage.url,
        config=config,
        events=tuple(_in_one_time(events)),
        summary=_summary(storage),
        written_at=_written_at(storage, config, events),
    )


def newest_run(folder: str | os.PathLike[str]) -> str:
    """The run below a folder that was started last.

    Raises:
        DataError: there is none.
    """
    storage = storage_at(folder, "run")
    found: list[tuple[float, str]] = []
    for name in storage.names():
        try:
            started_at = float(json.loads(storage.read(f"{name}/config.json"))["started_at"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # something else lies there
        found.append((started_at, name))
    if not found:
        raise DataError(str(folder), "holds no run; name a run's folder")
    return f"{storage.url}/{max(found)[1]}"


def report_of(record: Record) -> Report:
    """How the run stood when it last wrote, as near as its events tell."""
    plan = record.plan
    p = record.newest("progress") or {}
    evaluation = record.newest("evaluation")
    snapshot = record.newest("snapshot")
    pushes = p.get("pushes", {})
    hosts = {e["replica"]: (e.get("host", ""), e.get("pid")) for e in record.of("replica_joined")}
    word, cause = record.end
    epochs = max((int(e["epoch"]) for e in record.of("epoch")), default=0)
    gone = word != "running"
    return Report(
        elapsed_s=record.last_s,
        finished=word == "finished",
        failure=cause,
        epoch=max(1, min(epochs + 1, plan.n_epochs)),
        n_epochs=plan.n_epochs,
        examples_applied=p.get("examples_applied", 0),
        examples_skipped=p.get("examples_skipped", 0),
        examples_set_aside=p.get("examples_set_aside", 0),
        total_examples=plan.total_examples,
        images_per_second=0.0 if gone else p.get("images_per_second", 0.0),
        mean_images_per_second=p.get("mean_images_per_second", 0.0),
        left_s=None if gone else p.get("left_s"),
        losses=p.get("losses", {}),
        learning_rate=p.get("learning_rate", 0.0),
        staleness=staleness_of(record),
        applied=pushes.get("applied", 0),
        repeated=pushes.get("repeated", 0),
        refused=pushes.get("refused", {}),
        replicas=tuple(
            {**m, "host": hosts.get(m["replica"], ("", None))[0]} for m in p.get("members", ())
        ),
        shards=tuple(p.get("shards", ())),
        snapshot=_without(snapshot, "kind") if snapshot else None,
        validation=_without(evaluation, "t", "kind", "seconds") if evaluation else None,
        mean_waiting=p.get("waiting", 0.0),
        run_dir=record.url,
    )


def staleness_of(record: Record) -> dict[int, int]:
    """All applied pushes by staleness, as far as they have been told."""
    counts: Counter[int] = Counter()
    for event in record.of("progress"):
        counts.update({int(value): n for value, n in event.get("staleness", {}).items()})
    return dict(counts)


def silent_s(record: Record, now: float) -> float:
    """Seconds for which nothing has been written; ``now`` is in seconds since the epoch."""
    return max(0.0, now - record.written_at)


def recoveries_of(record: Record) -> list[Event]:
    """What was lost and has been replaced, in order."""
    return [_without(e, "kind") for e in record.events if e["kind"] in RECOVERIES]


def _summary(storage: Storage) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(storage.read("summary.json"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{storage.url}/summary.json", f"is damaged: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{storage.url}/summary.json", "is damaged: it is not an object")
    return found


def _written_at(storage: Storage, config: dict[str, Any], events: Sequence[Event]) -> float:
    if isinstance(storage, LocalStorage):
        files = [storage.path / name for name in ("config.json", "events.jsonl")]
        return max(file.stat().st_mtime for file in files if file.exists())
    # Other storages need not tell, and what they hold was not written the moment it happened.
    last = max((float(e["t"]) for e in events), default=0.0)
    begun = [float(e["t"]) for e in events if e["kind"] == "resumed"]
    resumptions = config.get("resumed", [])
    if begun and resumptions:  # between the run's parts no time has passed in its own account
        return float(resumptions[-1]["at"]) + max(0.0, last - begun[-1])
    return float(config.get("started_at", 0.0)) + last


def _in_one_time(events: Sequence[Event]) -> Iterable[Event]:
    """The seconds of a run that was resumed go on from what it had told before."""
    last = offset = 0.0
    for event in events:
        t = float(event["t"]) + offset
        if event["kind"] == "resumed" and t < last:
            offset += last - t
            t = last
        last = max(last, t)
        yield {**event, "t": t}


def _without(event: Event, *names: str) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in names}
