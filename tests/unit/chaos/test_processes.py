"""Real processes, told by their mark."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from distbelief.chaos.processes import MARK, marked, marked_process, resident_nbytes, send

Start = Callable[[str], "subprocess.Popen[bytes]"]

WAIT = "print(flush=True); import sys; sys.stdin.read()"


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes with a mark, which wait; they end with the test."""
    with ExitStack() as stack:

        def begin(mark: str) -> subprocess.Popen[bytes]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WAIT],
                    env={**os.environ, MARK: mark},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            return process

        yield begin


def test_those_with_the_mark_are_found_and_no_others(start: Start) -> None:
    mine, other = uuid.uuid4().hex, uuid.uuid4().hex
    a, b, c = start(mine), start(mine), start(other)
    assert marked(mine).keys() == {a.pid, b.pid}
    assert marked(other).keys() == {c.pid}
    assert marked_process(mine, a.pid) == marked(mine)[a.pid]
    assert marked_process(mine, c.pid) is None
    assert sys.executable in marked(mine)[a.pid].command


def test_a_process_that_has_ended_is_not_found(start: Start) -> None:
    mark = uuid.uuid4().hex
    process = start(mark)
    seen = marked(mark)[process.pid]
    assert send(seen, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert marked(mark) == {}
    assert not send(seen, signal.SIGCONT)
    assert resident_nbytes(process.pid) is None


def test_another_process_of_the_same_number_is_left_alone(start: Start) -> None:
    mark = uuid.uuid4().hex
    process = start(mark)
    seen = marked(mark)[process.pid]
    assert not send(replace(seen, started=seen.started + 1), signal.SIGKILL)
    assert process.poll() is None
    assert marked(mark) == {process.pid: seen}


def test_memory_is_told_in_bytes(start: Start) -> None:
    nbytes = resident_nbytes(start(uuid.uuid4().hex).pid)
    assert nbytes is not None
    assert 1 << 20 < nbytes < 1 << 30
