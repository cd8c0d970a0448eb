"""The push log: one file for each incarnation of each shard, one JSON object a line.

The first line is the header; each other line is one applied push, in the order of application, or
an item that was set aside.
Scripts and ``distbelief audit`` read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distbelief.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class LogHeader:
    """Which shard wrote the log, and where it started from."""

    shard: int
    n_shards: int
    begin: int
    end: int
    incarnation: int
    snapshot: int | None = None
    clock: int = 0

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


class PushLog:
    """Appends entries to a log. One writer; entries reach the file at :meth:`flush`."""

    def __init__(self, folder: Path, header: LogHeader) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / header.file_name).open("x", encoding="utf-8")
        self._file.write(json.dumps(asdict(header)) + "\n")
        self._file.flush()

    def append(self, entry: LogEntry) -> None:
        """Adds one entry to the buffer."""
        self._file.write(json.dumps(asdict(entry)) + "\n")

    def set_aside(self, item: int, reason: str) -> None:
        """Notes that an item will never be applied."""
        self._file.write(json.dumps({"set_aside": item, "reason": reason}) + "\n")

    def flush(self) -> None:
        """Hands what was appended to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class SetAside:
    """An item that the shard will never apply."""

    item: int
    reason: str


def read_log(path: Path) -> tuple[LogHeader, Iterator[LogEntry | SetAside]]:
    """The header and the entries of a log; a last line cut short by a crash is left out.

    Raises:
        DataError: the file is not a push log, or is damaged before its last line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"cannot be read: {error}") from error
    if lines[-1]:  # no newline at the end: the writer died within this line
        lines[-1] = ""

    def parse(number: int) -> dict[str, Any]:
        try:
            value = json.loads(lines[number])
        except (ValueError, RecursionError) as error:
            raise DataError(str(path), f"line {number + 1} is damaged: {error}") from error
        if not isinstance(value, dict):
            raise DataError(str(path), f"line {number + 1} is not an object")
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
                raise DataError(str(path), f"line {number + 1} is no push: {error}") from error

    try:
        fields = parse(0)
        snapshot = fields.pop("snapshot", None)
        header = LogHeader(
            **{name: int(value) for name, value in fields.items()},
            snapshot=None if snapshot is None else int(snapshot),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(str(path), f"line 1 is no header: {error}") from error
    return header, entries()
