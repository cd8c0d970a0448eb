"""Going on with a run: which one, from which snapshot, and what must not have changed."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from distbelief.config import TrainConfig
from distbelief.coordinator.snapshots import (
    MANIFEST,
    Manifest,
    abandoned_snapshots,
    newest_fit,
)
from distbelief.errors import ConfigError, DataError
from distbelief.items import ItemPlan
from distbelief.observe.events import read_events
from distbelief.runtime.runs import Resume, recorded
from distbelief.runtime.snapshots import manifests
from distbelief.server.pushlog import LogHeader, incarnation_of
from distbelief.server.statefile import check, snapshot_folder
from distbelief.storage import Storage, storage_at

FIXED = ("model", "schedule", "optimizer", "averaging")
"""Parts of the configuration that a run keeps to its end."""

FREE = {"data": ("data", "loaders")}
"""Fields of ``data`` that may differ: the images are known by their digest, wherever they lie."""

SHARES_TOTAL = "depends on the length of the run, which must stay as it was"


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A run as it was left.

    Attributes:
        storage: Its folder.
        manifest: The snapshot to go on from.
        record: Its ``config.json``.
        summary: Its ``summary.json``; empty if it was killed before it wrote one.
        incarnation: For the shards that will be started.
        first_replica: The first number that no replica has had.
        epochs_told: Epochs of which its events say that they are finished.
        elapsed_s: Seconds that it had lasted, by its last event.
        notes: What the user should know.
    """

    storage: Storage
    manifest: Manifest
    record: dict[str, Any]
    summary: dict[str, Any]
    incarnation: int
    first_replica: int
    epochs_told: int
    elapsed_s: float
    notes: tuple[str, ...]

    @property
    def started_at(self) -> float:
        """When the run was first started, in seconds since the epoch."""
        return float(self.record["started_at"])

    @property
    def earlier(self) -> list[dict[str, Any]]:
        """What the record has of earlier resumptions."""
        return list(self.record.get("resumed", []))

    def check(
        self, config: TrainConfig, layout: str, digests: tuple[str, ...], plan: ItemPlan
    ) -> None:
        """Compares the model and the data with those that the run was started with.

        Raises:
            ConfigError: they are others.
        """
        if layout != self.manifest.layout:
            raise ConfigError(
                "model",
                "builds another network than the run has; install the versions in its config.json",
            )
        if list(digests) != self.record["data_digests"]:
            raise ConfigError(
                "data", "has other images than the run was started with; give it those again"
            )
        if plan.total_examples <= self.manifest.examples_applied:
            behind = f"the run has {self.manifest.examples_applied:,} examples behind it"
            if depends_on_length(config):
                raise ConfigError(
                    "resume",
                    f"{behind} and has finished; its {_what_depends(config)} cannot be made "
                    f"longer: start another run with --init-from {self.storage.url}",
                )
            limit = config.max_examples
            limited = limit is not None and limit < config.epochs * plan.n_examples
            raise ConfigError(
                "max_examples" if limited else "epochs",
                f"{behind}, and would end with {plan.total_examples:,}: raise it to train further",
            )


def resumed_run(resume: Resume, config: TrainConfig) -> Resumed:
    """A run as it was left, and the snapshot to go on from, whose files have been checked.

    Raises:
        UsageError: there is no such run or snapshot, a file is damaged, or ``config`` changes what
            cannot change.
    """
    old, record = recorded(resume.run)
    storage = storage_at(resume.run, "resume")
    require_unchanged(old, config)
    abandoned = set(abandoned_snapshots(record))
    events = read_events(storage)
    finished = {int(event["number"]) for event in events if event["kind"] == "snapshot"}
    manifest, notes = _choose(storage, resume, config.cluster.shards, abandoned, finished)
    _check_files(storage, manifest, config.cluster.shards)
    incarnations, replicas, elapsed, epochs = [0], [-1], [manifest.elapsed_s], [0]
    for name in storage.logs("pushes"):
        incarnations.append(incarnation_of(name))
    for event in events:
        elapsed.append(float(event["t"]))
        if event["kind"] == "replica_started":
            replicas.append(int(event["replica"]))
        elif event["kind"] == "epoch":
            epochs.append(int(event["epoch"]))
    return Resumed(
        storage=storage,
        manifest=manifest,
        record=record,
        summary=_summary(storage),
        incarnation=1 + max(incarnations),
        first_replica=1 + max(replicas),
        epochs_told=max(epochs),
        elapsed_s=max(elapsed),
        notes=(*notes, *_missing_logs(storage, manifest)),
    )


def _missing_logs(storage: Storage, manifest: Manifest) -> list[str]:
    """What the training does not need, and the audit will miss."""
    there = set(storage.logs("pushes"))
    names = [
        LogHeader(
            shard=file.state.shard,
            n_shards=file.n_shards,
            begin=file.state.begin,
            end=file.state.end,
            incarnation=file.state.incarnation,
        ).file_name
        for file in manifest.files
    ]
    gone = [name for name in names if there and name not in there]
    return [f"pushes/{name} is gone: the audit cannot be clean" for name in gone]


def _summary(storage: Storage) -> dict[str, Any]:
    try:
        found = json.loads(storage.read("summary.json"))
    except (FileNotFoundError, ValueError):
        return {}  # it will be written anew, and says nothing that the rest does not
    return found if isinstance(found, dict) else {}


def require_unchanged(old: TrainConfig, new: TrainConfig) -> None:
    """Refuses a configuration that would make another run of it.

    Raises:
        ConfigError: with the first field that differs.
    """
    fixed = [(name, getattr(old, name), getattr(new, name)) for name in ("recipe", "seed")]
    fixed += [("init_seed", old.init_seed, new.init_seed)]
    for name in ("batch_size", "n_push"):
        fixed.append((name, getattr(old.replica, name), getattr(new.replica, name)))
    for part in (*FIXED, *FREE):
        a, b = getattr(old, part), getattr(new, part)
        fixed += [
            (f.name, getattr(a, f.name), getattr(b, f.name))
            for f in dataclasses.fields(a)
            if f.name not in FREE.get(part, ())
        ]
    if (old.data.data is None) != (new.data.data is None):
        fixed.append(("data", old.data.data, new.data.data))
    for name, was, would_be in fixed:
        if was != would_be:
            raise ConfigError(
                name, f"the run has {was}, and cannot go on with {would_be}; leave it out"
            )
    lengths = [(c.epochs, c.max_examples) for c in (old, new)]
    if depends_on_length(old) and lengths[0] != lengths[1]:
        changed = "epochs" if old.epochs != new.epochs else "max_examples"
        raise ConfigError(changed, f"the run's {_what_depends(old)} {SHARES_TOTAL}; leave it out")


def depends_on_length(config: TrainConfig) -> bool:
    """Whether a run would have been another from its start, had it been longer."""
    return bool(_what_depends(config))


def _what_depends(config: TrainConfig) -> str:
    if config.schedule.schedule == "polynomial":
        return "polynomial schedule"
    return "uniform average" if config.averaging.average == "uniform" else ""


def _choose(
    storage: Storage, resume: Resume, n_shards: int, abandoned: set[int], finished: set[int]
) -> tuple[Manifest, tuple[str, ...]]:
    found, broken = manifests(storage)
    # A snapshot that was cut short by a crash has no manifest either, and is nobody's concern.
    for number, error in broken.items():
        if error is None and number in finished:
            path = f"{storage.url}/{snapshot_folder(number)}/{MANIFEST}"
            broken[number] = DataError(path, "is missing, and was there once")
    if resume.snapshot is not None:
        wanted = next((m for m in found if m.number == resume.snapshot), None)
        error = broken.get(resume.snapshot)
        if error is not None:
            before = newest_fit([m for m in found if m.number < resume.snapshot], n_shards)
            raise DataError(error.path, f"{error.problem}{_offer(before)}") from error
        if wanted is None:
            there = ", ".join(str(m.number) for m in found) or "none"
            raise ConfigError(
                "resume_snapshot",
                f"{storage.url} has no snapshot {resume.snapshot}; it has {there}",
            )
        if not wanted.fits(n_shards):
            raise ConfigError(
                "resume_snapshot",
                f"snapshot {wanted.number} is uneven and fits {wanted.n_shards} shards alone",
            )
        return wanted, ()
    # Those after a snapshot that the run once went back to are of a history that did not survive.
    found = [m for m in found if m.number not in abandoned]
    broken = {n: error for n, error in broken.items() if n not in abandoned}
    fit = newest_fit(found, n_shards)
    damaged = [number for number, error in broken.items() if error is not None]
    if damaged and (fit is None or max(damaged) > fit.number):
        error = broken[max(damaged)]
        assert error is not None
        raise DataError(error.path, f"{error.problem}{_offer(fit)}")
    if fit is None and found:
        shards = sorted({m.n_shards for m in found})
        raise ConfigError(
            "shards", f"the snapshots in {storage.url} fit {shards[0]} shards alone, not {n_shards}"
        )
    if fit is None:
        raise ConfigError(
            "resume",
            f"{storage.url} has no snapshot to go on from; start the run anew: --run-dir "
            f"{storage.url}",
        )
    newest = found[-1]
    if newest.number == fit.number:
        return fit, ()
    back = newest.examples_applied - fit.examples_applied
    return fit, (
        f"snapshot {newest.number} fits {newest.n_shards} shards alone; going on from snapshot "
        f"{fit.number}, {back:,} examples further back",
    )


def _check_files(storage: Storage, manifest: Manifest, n_shards: int) -> None:
    """Reads every file once, so that damage is told before anything starts."""
    try:
        for file in manifest.files:
            check(storage, manifest.number, file)
    except DataError as error:
        found, _ = manifests(storage)
        before = newest_fit([m for m in found if m.number < manifest.number], n_shards)
        raise DataError(error.path, f"{error.problem}{_offer(before)}") from error


def _offer(before: Manifest | None) -> str:
    if before is None:
        return "; there is no other snapshot to go on from"
    return (
        f"; the snapshot before it has {before.examples_applied:,} examples: "
        f"--resume-snapshot {before.number}"
    )
