"""A run's folder, by path or by URL: files that are either whole or not there, and logs.

    Storage            what a run needs of its folder
    ├── LocalStorage   a path (or file://…) that every node sees
    └── RemoteStorage  any other fsspec URL: s3://…, gs://…, memory://… (inside one process)

Names are relative to the folder, with forward slashes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from fsspec.core import url_to_fs

from distbelief.errors import ConfigError

Part = bytes | bytearray | memoryview

SEGMENT_S = 30.0
"""A remote log's lines wait so long for others, to become one object together."""


class Log(Protocol):
    """A file that grows by whole lines. Thread-safe."""

    def write(self, text: str) -> None:
        """Adds lines; they may wait in this process."""
        ...

    def flush(self) -> None:
        """Hands on what waits, as far as the storage takes small pieces."""
        ...

    def sync(self) -> None:
        """Returns when all lines will survive a crash of the machine."""
        ...

    def close(self) -> None:
        """Writes what is left and closes the log."""
        ...


class Storage(Protocol):
    """One folder. Picklable, thread-safe; all calls block, and raise OSError if they fail."""

    @property
    def url(self) -> str:
        """The folder's absolute path or URL."""
        ...

    def write(self, name: str, *parts: Part) -> None:
        """Writes a file so that a reader, or a crash, sees the old one, the new one or none."""
        ...

    def read(self, name: str) -> bytes:
        """A file's contents; FileNotFoundError if there is none."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        ...

    def names(self, name: str = "") -> list[str]:
        """Names of the files and folders in a folder, sorted; none if there is no such folder."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file, a log, or a folder with all that is in it; there may be none."""
        ...

    def open_log(self, name: str, *, new: bool) -> Log:
        """Opens a log to append to it; FileExistsError if it shall be new and is there."""
        ...

    def read_log(self, name: str) -> str:
        """A log's lines; FileNotFoundError if there is none."""
        ...

    def logs(self, name: str) -> list[str]:
        """Names of the logs in a folder, sorted."""
        ...

    def free_nbytes(self) -> int | None:
        """Room that is left, if the storage can tell."""
        ...


def storage_at(url: str | os.PathLike[str], field: str = "run_dir") -> Storage:
    """The storage of a path or fsspec URL; nothing is made or looked at yet.

    Args:
        url: A path, relative ones to the working directory, or a URL.
        field: The option that an error shall name.

    Raises:
        ConfigError: no filesystem of that name, or one whose package is not installed.
    """
    text = os.fspath(url)
    if "://" not in text:
        return LocalStorage(Path(text).expanduser().absolute())
    if text.startswith(("file://", "local://")):
        return LocalStorage(Path(unquote(urlsplit(text).path)).absolute())
    storage = RemoteStorage(text if text.endswith("://") else text.rstrip("/"))
    try:
        _ = storage.filesystem
    except (ValueError, ImportError) as error:
        raise ConfigError(field, f"cannot use {text}: {error}") from error
    return storage


def write_json(storage: Storage, name: str, value: Any) -> None:
    """Writes a value as indented JSON."""
    storage.write(name, (json.dumps(value, indent=2) + "\n").encode())


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


P = ParamSpec("P")
T = TypeVar("T")


def _foreign_errors(call: Callable[P, T]) -> Callable[P, T]:
    """Filesystems raise what the libraries below them do; here all of that is an OSError."""

    @functools.wraps(call)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error

    return wrapped


@dataclass(frozen=True)
class RemoteStorage:
    """A folder of an fsspec filesystem.

    An object is there once its upload has ended; stores that show half of one while it is written
    are covered by the checksums of what needs them. A log is a series of objects, ``NAME.000000``
    and so on, since objects cannot be appended to.
    """

    url: str

    @cached_property
    def filesystem(self) -> Any:
        """The filesystem, opened at first use in each process."""
        return url_to_fs(self.url)[0]

    @cached_property
    def _root(self) -> str:
        root: str = self.filesystem._strip_protocol(self.url)
        return root

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    @_foreign_errors
    def write(self, name: str, *parts: Part) -> None:
        """See :class:`Storage`."""
        path = self._path(name)
        self.filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        # In one call: a file that is closed because of an error would be there, cut short.
        self.filesystem.pipe_file(path, b"".join(parts))

    @_foreign_errors
    def read(self, name: str) -> bytes:
        """See :class:`Storage`."""
        content: bytes = self.filesystem.cat_file(self._path(name))
        return content

    @_foreign_errors
    def exists(self, name: str) -> bool:
        """See :class:`Storage`."""
        self._forget()
        return bool(self.filesystem.exists(self._path(name)))

    @_foreign_errors
    def names(self, name: str = "") -> list[str]:
        """See :class:`Storage`."""
        self._forget()
        try:
            found: Iterable[str] = self.filesystem.ls(self._path(name), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    @_foreign_errors
    def remove(self, name: str) -> None:
        """See :class:`Storage`."""
        for segment in self._segments(name):
            self.filesystem.rm_file(segment)
        if self.exists(name):
            self.filesystem.rm(self._path(name), recursive=True)

    def open_log(self, name: str, *, new: bool) -> Log:
        """See :class:`Storage`."""
        segments = self._segments(name)
        if new and segments:
            raise FileExistsError(f"{self.url}/{name}")
        return _RemoteLog(self, name, len(segments))

    @_foreign_errors
    def read_log(self, name: str) -> str:
        """See :class:`Storage`."""
        segments = self._segments(name)
        if not segments:
            raise FileNotFoundError(f"{self.url}/{name}")
        return "".join(self.filesystem.cat_file(s).decode() for s in segments)

    def logs(self, name: str) -> list[str]:
        """See :class:`Storage`."""
        found = {n.rpartition(".")[0] for n in self.names(name) if ".jsonl." in n}
        return sorted(found)

    def free_nbytes(self) -> int | None:
        """See :class:`Storage`; object stores have no such figure."""
        return None

    def _forget(self) -> None:
        """Filesystems remember listings, in which what other hosts have written is not."""
        self.filesystem.invalidate_cache()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _segments(self, name: str) -> list[str]:
        folder, _, base = name.rpartition("/")
        prefix = f"{folder}/" if folder else ""
        return [
            self._path(f"{prefix}{n}")
            for n in self.names(folder)
            if n.startswith(f"{base}.") and n[len(base) + 1 :].isdigit()
        ]


class _RemoteLog:
    """Collects lines; a thread writes those of some time as one object.

    Lines whose object could not be written go with the next one.
    """

    def __init__(self, storage: RemoteStorage, name: str, first: int) -> None:
        self._storage = storage
        self._name = name
        self._next = first
        self._waiting: list[str] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        """Apart from the other: nobody who adds lines waits for the network."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"log-{name}", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        with self._lock:
            self._waiting.append(text)

    def flush(self) -> None:
        """The thread does, when it is time."""

    def sync(self) -> None:
        with self._writing:
            with self._lock:
                n_lines = len(self._waiting)
                text = "".join(self._waiting)
            if n_lines:
                self._storage.write(f"{self._name}.{self._next:06d}", text.encode())
                self._next += 1
                with self._lock:
                    del self._waiting[:n_lines]

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self.sync()

    def _run(self) -> None:
        while not self._closed.wait(SEGMENT_S):
            with contextlib.suppress(OSError):
                self.sync()
