"""A run's folder on a mounted filesystem."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from distbelief.storage.contract import Log, Part


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
    """A file in append mode."""

    def __init__(self, path: Path, *, new: bool) -> None:
        if not new and path.exists():
            _cut_torn_line(path)
        self._file = path.open("x" if new else "a", encoding="utf-8")
        _sync_folder(path.parent)
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        """Apart from the other: nobody who writes waits for the disk."""

    def write(self, text: str) -> None:
        with self._lock:
            self._file.write(text)

    def flush(self) -> None:
        with self._lock:
            self._file.flush()

    def sync(self) -> None:
        with self._syncing:
            self.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with self._syncing, self._lock:
            self._file.close()


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
