"""Takes snapshots of a run, and finds those that there are."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from distbelief.coordinator.snapshots import MANIFEST, Manifest, is_even, superfluous
from distbelief.errors import DataError, RunError, SupersededError
from distbelief.faults.points import NONE, Injector
from distbelief.server.account import accounted_by
from distbelief.server.applied import union
from distbelief.server.statefile import SNAPSHOTS, snapshot_folder
from distbelief.services import ShardService
from distbelief.serving import read_serving
from distbelief.storage import Storage, write_json
from distbelief.types import ShardFile

Emit = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """What a manifest says of the run beside the shards' states."""

    examples_applied: int
    elapsed_s: float
    losses: dict[str, float] = field(default_factory=dict)
    validation: dict[str, Any] | None = None


class Snapshots:
    """The snapshots of one run: takes them one at a time, keeps the newest.

    Args:
        storage: The run's folder.
        shards: All of them, in order.
        layout: Fingerprint of the layout.
        keep: How many are kept, beside the newest even one.
        pause_s: How long shards wait for each other's items at most.
        emit: Writes an event.
        abandoned: Numbers of those that are of a history that did not survive.
        incarnation: Of the run's start that takes them; one that a later start has succeeded, and
            that goes on for a moment, must not.
        coordinator: Which start of the coordinator it is; likewise.
        injector: Passes points of this process.
    """

    def __init__(
        self,
        storage: Storage,
        shards: Sequence[ShardService],
        *,
        layout: str,
        keep: int,
        pause_s: float,
        emit: Emit,
        abandoned: Container[int] = (),
        incarnation: int = 1,
        coordinator: int = 1,
        injector: Injector = NONE,
    ) -> None:
        self._coordinator = coordinator
        self._injector = injector
        self._abandoned = abandoned
        self._incarnation = incarnation
        self._storage = storage
        self._shards = tuple(shards)
        self._layout = layout
        self._keep = keep
        self._pause_s = pause_s
        self._emit = emit
        # One that another coordinator has begun, and would go on with if it woke, is left alone.
        self._next = 1 + max(numbers(storage), default=-1) + (coordinator > 1)

    def take(
        self, progressed: Callable[[Sequence[ShardFile]], Progressed], *, reason: str
    ) -> Manifest:
        """Takes one: blocks until its manifest is there, and those that are too many are gone.

        Args:
            progressed: How the run stands, from what has been saved.
            reason: Why it is taken, for the event.

        Raises:
            RunError: a shard did not answer, or could not write.
            OSError: the manifest could not be written.
        """
        self.require_current()
        number, self._next = self._next, self._next + 1
        try:
            return self._take(number, progressed, reason)
        except BaseException:
            self._end_pauses()
            # What some shards have written of it would only fill the disk.
            with contextlib.suppress(OSError):
                self._remove(number)
            raise

    def _end_pauses(self) -> None:
        """Shards that could be reached shall not wait for one that could not."""
        for shard in self._shards:
            with contextlib.suppress(RunError):  # it ends by itself, too
                shard.pause(0.0)

    def _take(
        self, number: int, progressed: Callable[[Sequence[ShardFile]], Progressed], reason: str
    ) -> Manifest:
        began = time.monotonic()
        with ThreadPoolExecutor(len(self._shards), thread_name_prefix="snapshot") as pool:
            states = list(pool.map(lambda shard: shard.pause(2 * self._pause_s), self._shards))
            items = union(accounted_by(state) for state in states).intervals
            saving = [
                pool.submit(shard.save, number, items, self._pause_s) for shard in self._shards
            ]
            files = sorted((job.result() for job in saving), key=lambda file: file.state.begin)
        stands = progressed(files)
        manifest = Manifest(
            number=number,
            even=is_even(files),
            examples_applied=stands.examples_applied,
            layout=self._layout,
            n_parameters=files[-1].state.end,
            elapsed_s=stands.elapsed_s,
            losses=stands.losses,
            validation=stands.validation,
            files=tuple(files),
        )
        self._injector.at("before_manifest")
        self.require_current()
        write_json(self._storage, f"{snapshot_folder(number)}/{MANIFEST}", manifest.to_dict())
        self._emit(
            "snapshot",
            number=number,
            reason=reason,
            even=manifest.even,
            examples_applied=manifest.examples_applied,
            pause_seconds=round(max(file.paused_s for file in files), 4),
            seconds=round(time.monotonic() - began, 3),
            nbytes=sum(file.nbytes for file in files),
        )
        try:
            self._prune()
        except OSError as error:  # the snapshot is whole all the same
            self._emit("snapshot_not_removed", cause=str(error))
        return manifest

    def require_current(self) -> None:
        """Makes sure that nobody has taken this coordinator's place.

        Raises:
            SupersededError: somebody has.
        """
        serving = read_serving(self._storage)
        if serving is not None and serving.run > self._incarnation:
            raise SupersededError("the run", serving.run)
        same = serving is not None and serving.run == self._incarnation
        if serving is not None and same and serving.coordinator > self._coordinator:
            raise SupersededError("the coordinator", serving.coordinator)
        try:
            newest = json.loads(self._storage.read("config.json")).get("incarnation")
        except FileNotFoundError:
            return
        if newest != self._incarnation:
            raise SupersededError("the run", newest)

    def _prune(self) -> None:
        found, broken = manifests(self._storage)
        newest = max(manifest.number for manifest in found)
        # A damaged manifest may be one of a later version: it is not ours to remove.
        unfinished = [n for n, error in broken.items() if error is None and n < newest]
        gone = [*superfluous(found, self._keep, self._abandoned), *unfinished]
        for number in gone:
            self._remove(number)

    def _remove(self, number: int) -> None:
        # The manifest first: a folder that is half gone must not pass for a snapshot.
        self._storage.remove(f"{snapshot_folder(number)}/{MANIFEST}")
        self._storage.remove(snapshot_folder(number))


def numbers(storage: Storage) -> list[int]:
    """Numbers of all snapshots, begun ones included."""
    return [int(name) for name in storage.names(SNAPSHOTS) if name.isdigit()]


def manifests(storage: Storage) -> tuple[list[Manifest], dict[int, DataError | None]]:
    """The snapshots in the order of their numbers, and those that are none.

    Of the latter each number with what is wrong with its manifest, or None if there is none: it was
    never finished.
    """
    found: list[Manifest] = []
    broken: dict[int, DataError | None] = {}
    for number in sorted(numbers(storage)):
        try:
            found.append(read_manifest(storage, number))
        except FileNotFoundError:
            broken[number] = None
        except DataError as error:
            broken[number] = error
    return found, broken


def read_manifest(storage: Storage, number: int) -> Manifest:
    """A snapshot's manifest.

    Raises:
        FileNotFoundError: there is none; the snapshot was never finished.
        DataError: it is damaged, or another snapshot's.
    """
    name = f"{snapshot_folder(number)}/{MANIFEST}"
    try:
        manifest = Manifest.from_dict(json.loads(storage.read(name)))
    except ValueError as error:
        raise DataError(f"{storage.url}/{name}", f"is damaged: {error}") from error
    if manifest.number != number:
        problem = f"is the manifest of another snapshot, of number {manifest.number}"
        raise DataError(f"{storage.url}/{name}", problem)
    return manifest


def usable(
    storage: Storage, n_shards: int, abandoned: Container[int], say: Callable[[str], None]
) -> list[Manifest]:
    """The snapshots of the surviving history that so many shards can go on from, newest first.

    Args:
        storage: The run's folder.
        n_shards: Shards of the run.
        abandoned: Numbers of snapshots that are of another history.
        say: Told of manifests that are damaged and newer than all others.

    Raises:
        OSError: the folder cannot be read.
    """
    found, broken = manifests(storage)
    fitting = [m for m in found if m.number not in abandoned and m.fits(n_shards)]
    newest = max((m.number for m in fitting), default=-1)
    for number, error in broken.items():
        if error is not None and number > newest and number not in abandoned:
            say(f"{error}; going further back")
    return fitting[::-1]
