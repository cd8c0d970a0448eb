"""Streams whose readers go away."""

from __future__ import annotations

import io
import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from distbelief.observe.lasting import Lasting
from distbelief.observe.live import Live
from distbelief.observe.record import read_record, report_of
from distbelief.observe.view import Lines


def test_it_is_the_stream() -> None:
    stream = io.StringIO()
    lasting = Lasting(stream)
    lasting.say("one")
    assert lasting.write("two") == 3
    assert stream.getvalue() == "one\ntwo"
    assert not lasting.isatty()


@pytest.mark.parametrize("kind", ["terminal", "pipe"])
@pytest.mark.parametrize("live", [False, True])
def test_a_view_outlives_its_reader(kind: str, live: bool, make_run: Callable[..., Path]) -> None:
    """And nothing is left in a buffer that would fail when the process ends."""
    report = report_of(read_record(make_run()))
    there, here = pty.openpty() if kind == "terminal" else os.pipe()
    with os.fdopen(here, "w") as stream:
        lasting = Lasting(stream)
        console = Console(file=lasting, force_terminal=True)  # type: ignore[arg-type]
        with Live("tiny", console) if live else Lines(lasting.say) as view:
            view.say("before")
            view.show(report, last=True)
            assert b"before" in os.read(there, 1 << 16)
            os.close(there)
            for _ in range(3):
                view.say("after")
                view.show(report, last=True)
        assert sys.stderr is not lasting
        stream.write("at the end")
        stream.flush()


def test_a_stream_without_a_descriptor() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    lasting = Lasting(Gone())
    lasting.say("one")
    assert lasting.write("two") == 3
