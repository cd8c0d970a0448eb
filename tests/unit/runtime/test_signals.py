"""What signals mean for a run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from distbelief.runtime.signals import SIGNALS, Stop, stop_on_signals


@pytest.fixture
def hears_hangups() -> Iterator[None]:
    """Whoever runs the tests may be deaf to SIGHUP, as under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_the_first_signal_asks_and_the_second_insists() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_on_signals() as stop:
        assert not stop.event.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stop.event.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_the_handlers_are_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)

    def fail() -> None:
        with stop_on_signals():
            assert signal.getsignal(signal.SIGINT) != before
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_no_handler_is_installed() -> None:
    def inside() -> tuple[object, bool]:
        with stop_on_signals() as stop:
            return signal.getsignal(signal.SIGINT), stop.event.is_set()

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(inside).result(60)
    assert found == (signal.getsignal(signal.SIGINT), False)


@pytest.mark.usefixtures("hears_hangups")
def test_a_terminal_that_is_closed_asks_and_never_insists() -> None:
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert stop.event.is_set()
        signal.raise_signal(signal.SIGTERM)  # the first that a person has sent
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def ignored_hangup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


def test_what_nohup_has_started_stays_deaf_to_the_terminal(ignored_hangup: None) -> None:
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.event.is_set()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_handlers_that_a_library_put_in_place_are_taken_back() -> None:
    with stop_on_signals() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.catch()
        signal.raise_signal(signal.SIGTERM)
        assert stop.event.is_set()


def test_outside_the_block_nothing_is_caught() -> None:
    before = signal.getsignal(signal.SIGTERM)
    Stop().catch()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("starting", [True, False])
def test_while_a_run_is_being_started_the_signal_itself_says_so(
    starting: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with stop_on_signals() as stop:
        stop.starting = starting
        signal.raise_signal(signal.SIGTERM)
    said = capfd.readouterr().err
    assert said == ("stopping: what has been started is ended first\n" if starting else "")
