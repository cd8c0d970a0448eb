"""One thread that does one task after another, for whoever asks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from distbelief.errors import (
    ProcessLostError,
    ShardRefusedError,
    TransportError,
    as_distbelief_error,
)
from distbelief.faults.points import InjectedError

T = TypeVar("T")


class _Task(Generic[T]):
    """Work for the writer, and the place for its result."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.work = work
        self.result: Future[T] = Future()


class Writer:
    """A shard's one writer: tasks from any thread, in a bounded queue, done in order by one thread.

    Args:
        shard: Which shard, for the thread's name and for errors.
        room: Tasks that may wait.
        busy_after_s: How long a task waits for room.
        on_end: Called by the thread when it takes no more tasks.
    """

    def __init__(
        self,
        shard: int,
        room: int,
        busy_after_s: float,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_end = on_end
        self._shard = shard
        self._busy_after_s = busy_after_s
        self._tasks: queue.Queue[_Task[Any] | None] = queue.Queue(room)
        self._ended = threading.Event()
        self._ended.set()
        self._thread: threading.Thread | None = None
        self.failure: str | None = None
        """What a task raised that left the state in doubt; no task is done any more then."""

    @property
    def queued(self) -> int:
        """Tasks that wait."""
        return self._tasks.qsize()

    def start(self) -> None:
        """Begins to take tasks."""
        self._thread = threading.Thread(
            target=self._run, name=f"shard-{self._shard}-writer", daemon=True
        )
        self._ended.clear()
        self._thread.start()

    def close(self) -> None:
        """Does the tasks at hand and ends; later ones raise ProcessLostError."""
        if self._thread is not None:
            if not self._ended.is_set():
                self._tasks.put(None)
            self._thread.join()
            self._thread = None

    def ask(self, work: Callable[[], T]) -> T:
        """Has ``work`` done and returns its result; blocks until then.

        Raises:
            TransportError: there was no room; the same call again is harmless.
            ShardRefusedError: the work raised it, or TransportError, having changed nothing.
            ProcessLostError: the writer does not run, or this or an earlier task has failed.
        """
        task = _Task(work)
        self.check()
        try:
            self._tasks.put(task, timeout=self._busy_after_s)
        except queue.Full as error:
            detail = f"no room in its queue for {self._busy_after_s:g} s"
            raise TransportError(self._shard, "BUSY", detail) from error
        if self._ended.is_set():  # the queue may have been emptied before this task came
            self._fail_the_rest()
        return task.result.result()

    def check(self) -> None:
        """Raises ProcessLostError if no task would be done."""
        if self._ended.is_set():
            raise self._lost()

    def _lost(self) -> ProcessLostError:
        return ProcessLostError(f"shard {self._shard}", self.failure or "it does not run")

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task.result.set_result(task.work())
            except (ShardRefusedError, TransportError) as refusal:
                task.result.set_exception(refusal)
            except BaseException as error:
                # State may be half changed: nobody gets an answer from it any more. Whatever ends
                # this thread ends the shard, and nobody may wait for it in vain.
                self.failure = _cause(error)
                lost = self._lost()
                lost.__cause__ = error
                task.result.set_exception(lost)
                break
        self._ended.set()
        self._on_end()
        self._fail_the_rest()

    def _fail_the_rest(self) -> None:
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                return
            if task is not None:
                task.result.set_exception(self._lost())


def _cause(error: BaseException) -> str:
    """Why the shard is lost, for people."""
    if isinstance(error, ProcessLostError):
        return error.cause
    if isinstance(error, InjectedError):
        return f"it died at {error}"
    if isinstance(error, OSError):
        reason = error.strerror or error
        return f"its push log cannot be written: {reason}; make room in the run's folder"
    return str(as_distbelief_error(error))
