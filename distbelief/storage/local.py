"""A run's folder on a mounted filesystem."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from distbelief.storage.contract import ROOM_NBYTES, Log, Part

AT_ONCE_NBYTES = 1 << 16
"""Lines of a log are handed to the system when there are so many, asked for or not."""


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """A folder of a mounted filesystem."""

    path: Path

    @property
    def url(self) -> str:
        """See :class:`Storage`."""
        return str(self.path)

    def write(self, name: str, *parts: Part) -> None:
        """See :class:`Storage`: temporary name, fsync, rename, fsync of the folder."""
        path = self.path / name
        _make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            with temporary.open("wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def read(self, name: str) -> bytes:
        """See :class:`Storage`."""
        return (self.path / name).read_bytes()

    def exists(self, name: str) -> bool:
        """See :class:`Storage`."""
        return (self.path / name).exists()

    def names(self, name: str = "") -> list[str]:
        """See :class:`Storage`; names that begin with a dot are left out."""
        try:
            found = os.listdir(self.path / name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(n for n in found if not n.startswith("."))

    def remove(self, name: str) -> None:
        """See :class:`Storage`."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def open_log(self, name: str, *, new: bool) -> Log:
        """See :class:`Storage`."""
        path = self.path / name
        _make_folder(path.parent)
        return _LocalLog(path, new=new)

    def read_log(self, name: str) -> str:
        """See :class:`Storage`."""
        return (self.path / name).read_text(encoding="utf-8")

    def logs(self, name: str) -> list[str]:
        """See :class:`Storage`."""
        return [n for n in self.names(name) if n.endswith(".jsonl")]

    def free_nbytes(self) -> int | None:
        """See :class:`Storage`: of the filesystem that the folder will be on."""
        path = self.path
        while not path.exists():
            path = path.parent
        return shutil.disk_usage(path).free


class _LocalLog:
    """A file that is appended to.

    What the system takes only a part of goes on where that ended: a line is neither written twice
    nor left half.
    """

    def __init__(self, path: Path, *, new: bool) -> None:
        if not new and path.exists():
            _cut_torn_line(path)
        self._file = path.open("xb" if new else "ab", buffering=0)
        try:
            _sync_folder(path.parent)
        except BaseException:
            self._file.close()
            if new:  # an empty log is none, and whoever tries again would find its name taken
                path.unlink(missing_ok=True)
            raise
        self._waiting = bytearray()
        self._error: OSError | None = None
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        """Apart from the other: nobody who writes waits for the disk."""

    @property
    def failure(self) -> str:
        error = self._error
        return "" if error is None else str(error.strerror or error)

    def write(self, text: str) -> None:
        lines = text.encode()
        with self._lock:
            self._require_open()
            if len(self._waiting) + len(lines) > ROOM_NBYTES:
                self._hand_on()
                self._require_handed_on()
            self._waiting += lines
            if len(self._waiting) >= AT_ONCE_NBYTES and self._error is None:
                self._hand_on()

    def flush(self) -> None:
        with self._lock:
            self._require_open()
            self._hand_on()

    def sync(self) -> None:
        with self._syncing:
            with self._lock:
                self._require_open()
                self._hand_on()
                self._require_handed_on()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with self._syncing, self._lock:
            if self._file.closed:
                return
            self._hand_on()
            self._file.close()
            self._require_handed_on()

    def _hand_on(self) -> None:
        try:
            while self._waiting:
                with memoryview(self._waiting) as lines:
                    taken = self._file.write(lines)
                del self._waiting[:taken]
        except OSError as error:
            self._error = error
        else:
            self._error = None

    def _require_handed_on(self) -> None:
        if self._error is not None:
            raise OSError(self._error.errno, self.failure) from self._error

    def _require_open(self) -> None:
        if self._file.closed:
            raise ValueError("the log has been closed")


def _cut_torn_line(path: Path) -> None:
    """A writer that was killed may have left half a line, which nobody shall continue."""
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def _make_folder(path: Path) -> None:
    """Makes the folder and those above it, each of them durable in the one above."""
    if path.is_dir():
        return
    _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
