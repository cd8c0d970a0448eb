"""Processes that decode images: started without their parent's main module, ended with it."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, parent_process
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from types import FunctionType
from typing import Any

_main_lock = threading.Lock()


class LightProcess(ForkServerProcess):
    """A forkserver process that does not import its parent's main module.

    Multiprocessing lets a child run the parent's main module again, for what may be defined there.
    In a Ray actor that is Ray's worker, in a script it is the user's: seconds and hundreds of
    megabytes that decoding images does not need. So nothing that is sent to such a process may be
    defined in ``__main__``.
    """

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802
        with _nameless_main():
            return ForkServerProcess._Popen(process_obj)


class LightContext(ForkServerContext):
    """A start method for executors that makes processes of :class:`LightProcess`.

    Attributes:
        started: Every process that was started through this context.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        super().__init__()
        self.started: list[LightProcess] = []

    def Process(  # type: ignore[override]  # noqa: N802
        self, *args: Any, **kwargs: Any
    ) -> LightProcess:
        """Make a process, and remember it."""
        process = LightProcess(*args, **kwargs)
        self.started.append(process)
        return process


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Hide where the main module came from, which is what multiprocessing tells the child."""
    main = vars(sys.modules["__main__"])
    # Under a lock: of two threads, the second would take the hidden values for the true ones.
    with _main_lock:
        hidden: dict[str, Any] = {k: main[k] for k in ("__file__", "__spec__") if k in main}
        main.pop("__file__", None)
        main["__spec__"] = None
        try:
            yield
        finally:
            main.update(hidden)


def travels(value: object) -> bool:
    """Whether a value can be sent to a :class:`LightProcess`.

    It can if it can be pickled, and nothing that the pickle names is defined in ``__main__``.
    """
    try:
        _Probe(_Nowhere()).dump(value)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError):
        # What pickle raises depends on what it cannot pickle.
        return False
    return True


class _Nowhere:
    def write(self, content: Any) -> int:
        return len(content)


class _Probe(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | FunctionType) and value.__module__ == "__main__":
            raise pickle.PicklingError(f"{value} is defined in __main__")
        return NotImplemented


def follow_parent() -> None:
    """Call once in a child: it will not outlive its parent, even one that is killed.

    It ignores interrupts from then on: what one means is for the parent to decide.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, name="parent-watch", daemon=True).start()


def _exit_after_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        # Nobody is left to tell, and the main thread may be blocked on a pipe.
        os._exit(1)
