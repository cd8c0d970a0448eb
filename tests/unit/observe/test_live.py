"""The view that changes in place."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from distbelief.observe.live import Live, suits
from distbelief.observe.report import Report

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "elapsed_s": 1.0,
        "finished": False,
        "failure": "",
        "epoch": 1,
        "n_epochs": 1,
        "examples_applied": 10,
        "examples_skipped": 0,
        "examples_set_aside": 0,
        "total_examples": 100,
        "images_per_second": 10.0,
        "mean_images_per_second": 10.0,
        "left_s": 9.0,
        "losses": {},
        "learning_rate": 0.1,
        "staleness": {},
        "applied": 1,
        "repeated": 0,
        "refused": {},
        "replicas": (),
        "shards": (),
        "snapshot": None,
        "validation": None,
        "mean_waiting": 0.0,
    }
    return Report(**{**fields, **changes})


class Terminal:
    """A console that keeps what it writes, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.now = 100.0
        console = Console(
            file=self.file, width=80, height=24, force_terminal=True, color_system=None
        )
        self.view = Live("quickstart", console, clock=lambda: self.now)

    @property
    def text(self) -> str:
        return self.file.getvalue()

    def n_drawn(self) -> int:
        return self.text.count("distbelief quickstart")


def test_it_redraws_a_few_times_a_second_at_most() -> None:
    t = Terminal()
    with t.view:
        for _ in range(10):
            t.view.show(report())
            t.now += 0.125
        # At 0, 0.25, ... 1.0 s; each start draws once more.
        assert t.n_drawn() <= 6


def test_lines_stay_above_it_and_are_no_markup() -> None:
    t = Terminal()
    with t.view:
        t.view.say("first [bold]line[/] :smile:")
        t.view.show(report())
        t.view.say("second line")
    assert "first [bold]line[/] :smile:\n" in t.text
    assert t.text.index("second line") > t.text.index("distbelief quickstart")
    assert t.text.rindex("distbelief quickstart") > t.text.index("second line")


def test_the_last_state_stays_and_is_always_drawn() -> None:
    t = Terminal()
    with t.view:
        t.view.show(report())
        t.view.show(report(examples_applied=100, finished=True), last=True)
    assert "100 of 100 images" in t.text
    assert "finished" in t.text


def test_an_early_last_state_is_an_interruption() -> None:
    t = Terminal()
    with t.view:
        t.view.show(report(), last=True)
    assert "interrupted" in t.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_cursor_comes_back_whatever_happens(error: type[BaseException]) -> None:
    t = Terminal()

    def run() -> None:
        with t.view:
            t.view.show(report())
            assert t.text.count(HIDE) == 1
            raise error

    with pytest.raises(error):
        run()
    assert t.text.rindex(SHOW) > t.text.rindex(HIDE)


def test_without_a_report_there_is_no_screen() -> None:
    t = Terminal()
    with t.view:
        t.view.say("a line")
    assert t.text == "a line\n"


def test_the_history_is_of_whole_seconds() -> None:
    t = Terminal()
    with t.view:
        for i in range(9):
            t.view.show(report(images_per_second=float(1 + i // 4)))
            t.now += 0.25
    assert list(t.view._history) == [1.0, 2.0, 3.0]


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("terminal", "term", "expected"),
    [
        (True, "xterm-256color", True),
        (True, "dumb", False),
        (True, None, False),
        (False, "xterm", False),
    ],
)
def test_which_streams_suit(
    terminal: bool, term: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TERM", raising=False)
    if term is not None:
        monkeypatch.setenv("TERM", term)
    assert suits(Stream(terminal)) is expected
