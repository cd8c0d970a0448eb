"""A run's folder at a URL that fsspec knows."""

from __future__ import annotations

import contextlib
import errno
import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ParamSpec, TypeVar

from fsspec.core import url_to_fs

from distbelief.storage.contract import ROOM_NBYTES, Log, Part

SEGMENT_S = 30.0
"""A remote log's lines wait so long for others, to become one object together."""

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
        self._n_waiting = 0
        self._failure = ""
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        """Apart from the other: nobody who adds lines waits for the network."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"log-{name}", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str:
        return self._failure

    def write(self, text: str) -> None:
        with self._lock:
            if self._n_waiting + len(text) > ROOM_NBYTES:
                raise OSError(errno.ENOBUFS, self._failure or "the storage takes too little")
            self._waiting.append(text)
            self._n_waiting += len(text)

    def flush(self) -> None:
        """The thread does, when it is time."""

    def sync(self) -> None:
        with self._writing:
            with self._lock:
                n_lines = len(self._waiting)
                text = "".join(self._waiting)
            if not n_lines:
                return
            try:
                self._storage.write(f"{self._name}.{self._next:06d}", text.encode())
            except OSError as error:
                self._failure = str(error.strerror or error)
                raise
            self._next += 1
            self._failure = ""
            with self._lock:
                del self._waiting[:n_lines]
                self._n_waiting -= len(text)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self.sync()

    def _run(self) -> None:
        while not self._closed.wait(SEGMENT_S):
            with contextlib.suppress(OSError):
                self.sync()
