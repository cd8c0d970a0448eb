"""The push log: one file for each incarnation of each shard, one JSON object a line.

The first line is the header; each other line is one applied push, in the order of application, or
an item that was set aside.
Scripts and ``distbelief audit`` read it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from distbelief.errors import DataError
from distbelief.storage import Storage

FOLDER = "pushes"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogHeader:
    """Which shard wrote the log, and where it started from.

    A shard that began with a snapshot names it, its own clock then, and the ``sources``: shard,
    number of shards, incarnation and clock of each shard's state that it took a part of, and the
    items that were ``set_aside`` there.
    """

    shard: int
    n_shards: int
    begin: int
    end: int
    incarnation: int
    snapshot: int | None = None
    clock: int = 0
    sources: tuple[tuple[int, int, int, int], ...] = ()
    set_aside: tuple[int, ...] = ()

    @property
    def file_name(self) -> str:
        """Name of the log's file in the run's ``pushes`` folder."""
        return f"shard-{self.shard:05d}-of-{self.n_shards:05d}.{self.incarnation:04d}.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One applied push, counted by ``clock``; ``base`` is (incarnation, clock) of its fetch."""

    item: int
    clock: int
    base: tuple[int, int]
    rate: float
    replica: int
    examples: int
    skipped: tuple[int, ...] = ()


def incarnation_of(file_name: str) -> int:
    """The incarnation of the shard whose log bears that name; 0 if it is no log's."""
    number = file_name.removesuffix(".jsonl").rpartition(".")[2]
    return int(number) if number.isdigit() else 0


class PushLog:
    """Appends entries to a log. One writer; entries reach the file at :meth:`flush`.

    Those that the storage does not take, as when a disk is full, wait in this process: the shard
    goes on. Only a snapshot, which rests on the log, cannot be taken meanwhile, and once there is
    no more room for what waits (:data:`~distbelief.storage.contract.ROOM_NBYTES`), adding an entry
    raises OSError.

    Raises:
        FileExistsError: there is such a log.
        OSError: its header cannot be written; there is no log then.
    """

    def __init__(self, storage: Storage, header: LogHeader) -> None:
        name = f"{FOLDER}/{header.file_name}"
        self._storage, self._name = storage, name
        self._file = storage.open_log(name, new=True)
        try:
            self._file.write(json.dumps(asdict(header)) + "\n")
            self._file.sync()
        except OSError:
            # A log without its header would be taken for a damaged one.
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                storage.remove(name)
            raise

    @property
    def failure(self) -> str:
        """Why entries wait, though they were to be handed on; empty once they have been."""
        return self._file.failure

    def append(self, entry: LogEntry) -> None:
        """Adds one entry to the buffer."""
        self._file.write(json.dumps(asdict(entry)) + "\n")

    def sync(self) -> None:
        """Returns when what was appended will survive a crash; any thread may call.

        Raises:
            OSError: it may not.
        """
        self._file.sync()

    def set_aside(self, item: int, reason: str) -> None:
        """Notes that an item will never be applied."""
        self._file.write(json.dumps({"set_aside": item, "reason": reason}) + "\n")

    def flush(self) -> None:
        """Hands what was appended to the operating system, as far as it takes it."""
        self._file.flush()

    def close(self) -> None:
        """Writes what is left and closes the file; OSError if that cannot be written."""
        self._file.close()

    def discard(self) -> None:
        """Closes the log, of which nothing is to count, and removes its file.

        Raises:
            OSError: it cannot be removed.
        """
        with contextlib.suppress(OSError):  # what could not be written is not wanted
            self._file.close()
        self._storage.remove(self._name)


@dataclass(frozen=True, slots=True)
class SetAside:
    """An item that the shard will never apply."""

    item: int
    reason: str


def read_log(storage: Storage, name: str) -> tuple[LogHeader, Iterator[LogEntry | SetAside]]:
    """The header and the entries of a log; a last line cut short by a crash is left out.

    Raises:
        DataError: the file is not a push log, or is damaged before its last line.
    """
    path = f"{storage.url}/{FOLDER}/{name}"
    try:
        lines = storage.read_log(f"{FOLDER}/{name}").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read: {error}") from error
    if lines[-1]:  # no newline at the end: the writer died within this line
        lines[-1] = ""

    def parse(number: int) -> dict[str, Any]:
        try:
            value = json.loads(lines[number])
        except (ValueError, RecursionError) as error:
            raise DataError(path, f"line {number + 1} is damaged: {error}") from error
        if not isinstance(value, dict):
            raise DataError(path, f"line {number + 1} is not an object")
        return value

    def entries() -> Iterator[LogEntry | SetAside]:
        for number in range(1, len(lines) - 1):
            value = parse(number)
            try:
                if "set_aside" in value:
                    yield SetAside(int(value["set_aside"]), str(value["reason"]))
                    continue
                yield LogEntry(
                    item=int(value["item"]),
                    clock=int(value["clock"]),
                    base=(int(value["base"][0]), int(value["base"][1])),
                    rate=float(value["rate"]),
                    replica=int(value["replica"]),
                    examples=int(value["examples"]),
                    skipped=tuple(int(index) for index in value["skipped"]),
                )
            except (TypeError, ValueError, OverflowError, KeyError, IndexError) as error:
                raise DataError(path, f"line {number + 1} is no push: {error}") from error

    try:
        fields = parse(0)
        snapshot = fields.pop("snapshot", None)
        sources = [tuple(map(int, source)) for source in fields.pop("sources", ())]
        aside = tuple(map(int, fields.pop("set_aside", ())))
        header = LogHeader(
            **{name: int(value) for name, value in fields.items()},
            snapshot=None if snapshot is None else int(snapshot),
            sources=tuple((s, n, i, c) for s, n, i, c in sources),
            set_aside=aside,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(path, f"line 1 is no header: {error}") from error
    return header, entries()
