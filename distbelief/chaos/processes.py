"""The processes of a run, as Linux shows them: those that have inherited its mark."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "DISTBELIEF_CHAOS"
"""The name of a variable of the environment, whose value tells one run's processes from all
others'."""

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """One process; a number that is given again to another makes another of it.

    Attributes:
        pid: Its number.
        started: When it was started, in ticks since the host's boot.
        command: Its command line, shortened.
    """

    pid: int
    started: int
    command: str = ""

    @property
    def identity(self) -> tuple[int, int]:
        """What no other process has."""
        return self.pid, self.started


def marked(mark: str) -> dict[int, Process]:
    """All processes that are alive and have inherited a mark, by number, without this one."""
    found = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            process = marked_process(mark, int(folder.name))
            if process is not None:
                found[process.pid] = process
    return found


def marked_process(mark: str, pid: int) -> Process | None:
    """The process of that number, if it is alive and has inherited a mark."""
    wanted = f"{MARK}={mark}".encode()
    folder = PROC / str(pid)
    try:
        if wanted not in (folder / "environ").read_bytes().split(b"\0"):
            return None
        state, started = _stat(folder)
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it has ended meanwhile, or is another user's
        return None
    return None if state in "ZX" else Process(pid, started, command.strip()[:80])


def send(process: Process, number: signal.Signals) -> bool:
    """Sends a signal to that very process; whether it was there."""
    try:
        _, started = _stat(PROC / str(process.pid))
    except OSError:
        return False
    if started != process.started:
        return False
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)
        return True
    return False


def resident_nbytes(pid: int) -> int | None:
    """Memory that a process has to itself and shares, None if it has ended."""
    try:
        fields = (PROC / str(pid) / "statm").read_text().split()
    except OSError:
        return None
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def _stat(folder: Path) -> tuple[str, int]:
    """State and start; the command's name, in brackets, may hold anything."""
    fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])
