"""A run in a process of its own, watched from this one through its folder and its processes."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from distbelief.chaos.members import Member, members
from distbelief.chaos.processes import MARK, Process, marked, marked_process, send
from distbelief.errors import DataError, RunError
from distbelief.observe.events import NAME as EVENTS
from distbelief.runtime.folder import LOG
from distbelief.runtime.stopping import request_stop
from distbelief.serving import Serving, read_serving
from distbelief.storage import LocalStorage

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent dies."""

POLL_S = 0.1
BEGIN_S = 300.0
END_S = 180.0
CLEAN_UP_S = 30.0

SMALL: dict[str, object] = {
    "epochs": 1_000_000,
    "batch_size": 16,
    "image_size": 16,
    "width": 0.0625,
    "drawn_train": 2048,
    "drawn_val": 64,
    "snapshot_s": 5.0,
    "threads": 1,
    "lease_s": 5.0,
}
"""Options of a run that trains a small network on drawn images for as long as it is let."""


class Background:
    """A run of ``distbelief train``; a context manager, after which none of its processes is left.

    Its processes are told from all others by a mark that they inherit. Has one caller at a time.

    Args:
        run_dir: The run's folder, which is made; what the command says goes into its
            ``driver.log``.
        options: The run's, by their names; they come beside those of :data:`SMALL`.
        mark: What its processes inherit, where others shall have inherited it before; by default
            one of its own.
    """

    def __init__(
        self, run_dir: Path, options: Mapping[str, object], *, mark: str | None = None
    ) -> None:
        self.storage = LocalStorage(run_dir.absolute())
        self.mark = mark or uuid.uuid4().hex
        self._options = {**SMALL, **options}
        self._process: subprocess.Popen[bytes] | None = None
        self._events: list[dict[str, Any]] = []
        self._read_nbytes = 0

    def __enter__(self) -> Background:
        run_dir = self.storage.path
        if (run_dir / "config.json").exists():
            raise DataError(str(run_dir), "holds a run already; take another folder")
        run_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "distbelief", "train", "quickstart", "--no-live"]
        command += ["--run-dir", str(run_dir), *words(self._options)]
        with (run_dir / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, MARK: self.mark},
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        for process in marked(self.mark).values():
            send(process, signal.SIGKILL)
        self._driver.wait()

    @property
    def pid(self) -> int:
        """Of the run's driver."""
        return self._driver.pid

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._driver.poll() is None

    @property
    def started_at(self) -> float:
        """Its start, in seconds since the epoch; the ``t`` of its events counts from it."""
        return float(json.loads(self.storage.read("config.json"))["started_at"])

    def events(self) -> list[dict[str, Any]]:
        """What has happened so far; only what is new is read."""
        try:
            with (self.storage.path / EVENTS).open("rb") as file:
                file.seek(self._read_nbytes)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._read_nbytes += len(whole) + len(newline)
        self._events += [json.loads(line) for line in whole.splitlines()]
        return self._events

    def serving(self) -> Serving | None:
        """Who serves; None before anyone does."""
        return read_serving(self.storage)

    def recoveries(self) -> list[dict[str, Any]]:
        """Those that have been told, in order; they are told with each snapshot."""
        try:
            summary = json.loads(self.storage.read("summary.json"))
        except FileNotFoundError:
            return []
        found: list[dict[str, Any]] = summary.get("recoveries", [])
        return found

    def members(self) -> list[tuple[Member, Process]]:
        """Those who are at work, and are processes of this run."""
        here = (
            (m, marked_process(self.mark, m.pid)) for m in members(self.serving(), self.events())
        )
        return [(member, process) for member, process in here if process is not None]

    def processes(self) -> dict[int, Process]:
        """All its processes, by number."""
        return marked(self.mark)

    def require_running(self) -> None:
        """The run must not have ended.

        Raises:
            RunError: it has; with the last thing that it said.
        """
        code = self._driver.poll()
        if code is not None:
            raise RunError(f"the run ended by itself with code {code}: {self.last_words()}")

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Waits until something is so.

        Raises:
            RunError: it did not come so in time, or the run ended.
        """
        give_up_at = time.monotonic() + timeout_s
        while not condition():
            self.require_running()
            if time.monotonic() > give_up_at:
                raise RunError(f"{what} did not come within {timeout_s:g} s; see {self._log}")
            time.sleep(POLL_S)

    def await_work(self, replicas: int, *, twins: int = 0) -> None:
        """Waits until each replica has done items and each twin follows its shard.

        Raises:
            RunError: see :meth:`wait_for`.
        """

        def works() -> bool:
            serving = self.serving()
            done = {r for e in self.events() if e["kind"] == "items" for r in e["replicas"]}
            n_twins = len(serving.twins) if serving else 0
            return len(done) >= replicas and n_twins >= twins

        self.wait_for(works, "the run's beginning", BEGIN_S)

    def stop(self) -> int | None:
        """Ends the run in order, if it goes on; its exit code, None if it had to be killed."""
        if not self.runs:
            return self._driver.returncode
        with suppress(OSError):  # then it is killed
            request_stop(self.storage)
        try:
            return self._driver.wait(END_S)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()
            return None

    def await_no_process(self) -> list[Process]:
        """Waits a while for the processes of a run that has ended; those that are left then."""
        give_up_at = time.monotonic() + CLEAN_UP_S
        while (left := marked(self.mark)) and time.monotonic() < give_up_at:
            time.sleep(POLL_S)
        return list(left.values())

    def said(self) -> str:
        """All that the command has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def last_words(self) -> str:
        """The last line of it."""
        lines = self.said().strip().splitlines()
        return lines[-1] if lines else "nothing"

    @property
    def _log(self) -> Path:
        return self.storage.path / LOG

    @property
    def _driver(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ValueError("the run has not been started")
        return self._process


def _end_with_parent() -> None:
    """A run that nobody watches any more shall not go on: it is asked to end, as by a user."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def words(options: Mapping[str, object]) -> Sequence[str]:
    """Options of the command line, from their names and values; a switch is a bool."""
    found: list[str] = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{option}" if value else f"--no-{option}")
        else:
            found += [f"--{option}", str(value)]
    return found
