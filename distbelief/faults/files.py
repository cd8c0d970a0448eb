"""A run's folder whose storage fails at chosen calls: full, read-only, or dying in the middle."""

from __future__ import annotations

import errno
import fnmatch
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from distbelief.faults.points import InjectedError
from distbelief.storage import Log, Storage
from distbelief.storage.contract import Part

Operation = Literal[
    "write",
    "read",
    "exists",
    "names",
    "remove",
    "open_log",
    "read_log",
    "logs",
    "free_nbytes",
    "log.write",
    "log.flush",
    "log.sync",
    "log.close",
]

OPERATIONS: tuple[Operation, ...] = get_args(Operation)
"""All calls of the file seam: those of a storage, and those of its logs."""

WRITING: tuple[Operation, ...] = ("write", "open_log", "log.flush", "log.sync", "log.close")
"""Those that need room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFault:
    """What happens at some calls.

    Attributes:
        operations: Which calls.
        names: Of which files, as a pattern of the shell's kind; a ``*`` spans folders.
        nth: At which of those calls, from 1.
        lasting: At all that come after it, too.
        error: The ``errno`` of the OSError.
        torn: A ``write`` leaves the first half of the file under its name, as a crash of the
            machine may.
        dies: The process dies there: :class:`~distbelief.faults.points.InjectedError`, from that
            call and from all that come after it.
    """

    operations: tuple[Operation, ...] = OPERATIONS
    names: str = "*"
    nth: int = 1
    lasting: bool = False
    error: int = errno.EIO
    torn: bool = False
    dies: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown or not self.operations:
            raise ValueError(f"operations are {', '.join(OPERATIONS)}; not {unknown or 'none'}")
        if self.nth < 1:
            raise ValueError(f"calls are counted from 1, not from {self.nth}")

    def covers(self, operation: Operation, name: str) -> bool:
        """Whether it counts such a call."""
        return operation in self.operations and fnmatch.fnmatchcase(name, self.names)


FULL = FileFault(operations=WRITING, lasting=True, error=errno.ENOSPC)
"""No room on the disk, from now on."""

READ_ONLY = FileFault(operations=(*WRITING, "remove"), lasting=True, error=errno.EROFS)
"""The folder has been turned read-only."""


class FaultyStorage:
    """Satisfies :class:`~distbelief.storage.Storage` around another one. Thread-safe.

    A copy in another process has the same plan, counts anew, and is not changed by :meth:`change`.
    """

    def __init__(self, storage: Storage, plan: Sequence[FileFault] = ()) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._calls: list[tuple[Operation, str]] = []
        self._n_injected = 0
        self.change(plan)

    def __reduce__(self) -> tuple[type[FaultyStorage], tuple[Storage, tuple[FileFault, ...]]]:
        return FaultyStorage, (self._storage, self._plan)

    @property
    def calls(self) -> list[tuple[Operation, str]]:
        """All calls so far, those that failed included: the operation and the file's name."""
        with self._lock:
            return list(self._calls)

    @property
    def n_injected(self) -> int:
        """Calls that were made to fail so far."""
        with self._lock:
            return self._n_injected

    def change(self, plan: Sequence[FileFault]) -> None:
        """From now on this is the plan, and its counts begin; a process that died lives again."""
        with self._lock:
            self._plan = tuple(plan)
            self._passes = [0] * len(self._plan)
            self._dead = False

    @property
    def url(self) -> str:
        """See :class:`Storage`."""
        return self._storage.url

    def write(self, name: str, *parts: Part) -> None:
        """See :class:`Storage`."""
        fault = self.due("write", name)
        if fault is None:
            self._storage.write(name, *parts)
            return
        if fault.torn:
            content = b"".join(parts)
            self._storage.write(name, content[: len(content) // 2])
        raise _error(fault, f"write of {name}")

    def read(self, name: str) -> bytes:
        """See :class:`Storage`."""
        self.at("read", name)
        return self._storage.read(name)

    def exists(self, name: str) -> bool:
        """See :class:`Storage`."""
        self.at("exists", name)
        return self._storage.exists(name)

    def names(self, name: str = "") -> list[str]:
        """See :class:`Storage`."""
        self.at("names", name)
        return self._storage.names(name)

    def remove(self, name: str) -> None:
        """See :class:`Storage`."""
        self.at("remove", name)
        self._storage.remove(name)

    def open_log(self, name: str, *, new: bool) -> Log:
        """See :class:`Storage`; the log's calls are in the plan too."""
        self.at("open_log", name)
        return _FaultyLog(self._storage.open_log(name, new=new), self, name)

    def read_log(self, name: str) -> str:
        """See :class:`Storage`."""
        self.at("read_log", name)
        return self._storage.read_log(name)

    def logs(self, name: str) -> list[str]:
        """See :class:`Storage`."""
        self.at("logs", name)
        return self._storage.logs(name)

    def free_nbytes(self) -> int | None:
        """See :class:`Storage`."""
        self.at("free_nbytes", "")
        return self._storage.free_nbytes()

    def at(self, operation: Operation, name: str) -> None:
        """Counts a call, and raises if it is to fail.

        Raises:
            OSError: a fault of the plan is due.
            InjectedError: likewise, and the process dies of it; or it is dead already.
        """
        fault = self.due(operation, name)
        if fault is not None:
            raise _error(fault, f"{operation} of {name}")

    def due(self, operation: Operation, name: str) -> FileFault | None:
        """Counts a call; the first fault of the plan that is due at it, for the caller to raise.

        Raises:
            InjectedError: the process is dead already.
        """
        found: FileFault | None = None
        with self._lock:
            if self._dead:
                raise InjectedError(f"{operation} of {name}, in a process that is dead")
            self._calls.append((operation, name))
            for at, fault in enumerate(self._plan):
                if not fault.covers(operation, name):
                    continue
                self._passes[at] += 1
                due = self._passes[at] == fault.nth
                if found is None and (due or (fault.lasting and self._passes[at] > fault.nth)):
                    found = fault
            if found is not None:
                self._n_injected += 1
                self._dead = found.dies
        return found


class _FaultyLog:
    """A log of a faulty storage: what cannot be handed on waits in the log itself."""

    def __init__(self, log: Log, storage: FaultyStorage, name: str) -> None:
        self._log = log
        self._storage = storage
        self._name = name
        self._failure = ""

    @property
    def failure(self) -> str:
        return self._failure or self._log.failure

    def write(self, text: str) -> None:
        self._storage.at("log.write", self._name)
        self._log.write(text)

    def flush(self) -> None:
        try:
            self._storage.at("log.flush", self._name)
        except OSError as error:
            self._failure = str(error.strerror)
            return
        self._failure = ""
        self._log.flush()

    def sync(self) -> None:
        self._storage.at("log.sync", self._name)
        self._log.sync()
        self._failure = ""

    def close(self) -> None:
        try:
            self._storage.at("log.close", self._name)
        finally:
            self._log.close()


def _error(fault: FileFault, what: str) -> BaseException:
    if fault.dies:
        return InjectedError(what)
    return OSError(fault.error, os.strerror(fault.error))
