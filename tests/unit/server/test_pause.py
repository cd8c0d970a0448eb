"""The gate of a shard's writer, in a time that passes by hand."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from distbelief.server import pause as module
from distbelief.server.pause import Capture, Gate, Pause
from distbelief.types import ShardState


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Captures:
    """Numbers the captures that are taken, by their clock."""

    taken: int = 0
    of: list[Capture] = field(default_factory=list)

    def __call__(self) -> Capture:
        self.taken += 1
        state = ShardState(
            shard=0,
            incarnation=1,
            begin=0,
            end=4,
            loaded=True,
            clock=self.taken,
            examples=0,
            skipped=0,
            applied=(),
            set_aside={},
            repeated=0,
        )
        return Capture(bytearray(b"x"), state)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def captures() -> Captures:
    return Captures()


@pytest.fixture
def gate(captures: Captures) -> Gate:
    return Gate(captures)


def test_without_a_pause_nothing_is_held(gate: Gate, captures: Captures) -> None:
    assert gate.held(3) is None
    gate.note(3)
    gate.open()
    assert captures.taken == 0


def test_a_pause_holds_all_but_what_it_admits(clock: Clock, gate: Gate) -> None:
    pause = Pause(10.0, frozenset({3, 5}))
    gate.begin(pause)
    assert [gate.held(item) for item in (3, 4, 5, 6)] == [None, pause, None, pause]
    gate.open()
    assert gate.held(4) is None


@pytest.mark.parametrize(("passed", "holds"), [(0.0, True), (9.99, True), (10.0, False)])
def test_a_pause_ends_by_itself(passed: float, holds: bool, clock: Clock, gate: Gate) -> None:
    pause = Pause(10.0)
    gate.begin(pause)
    clock.now += passed
    assert pause.expired is not holds
    assert (gate.held(0) is pause) is holds
    assert pause._over.is_set() is not holds  # whoever waits is let go
    clock.now -= passed
    assert (gate.held(0) is pause) is holds  # and it does not begin again


def test_the_last_that_is_missing_ends_it_at_that_very_state(
    clock: Clock, gate: Gate, captures: Captures
) -> None:
    pause = Pause(10.0, frozenset({3, 5}))
    gate.begin(pause)
    for item in (4, 3, 3):
        gate.note(item)
        assert pause.missing == {5, *({3} if item == 4 else ())}
    assert (captures.taken, pause.complete.is_set()) == (0, False)
    clock.now += 0.5
    gate.note(5)
    assert (captures.taken, pause.complete.is_set(), pause._over.is_set()) == (1, True, True)
    assert gate.held(4) is None
    clock.now += 60
    found = gate.finish(pause)
    assert found is pause.capture
    assert (found.state.clock, found.paused_s, captures.taken) == (1, 0.5, 1)


def test_a_pause_that_is_finished_early_is_captured_then(
    clock: Clock, gate: Gate, captures: Captures
) -> None:
    pause = Pause(10.0, frozenset({3}))
    gate.begin(pause)
    clock.now += 2.0
    found = gate.finish(pause)
    assert (found.paused_s, captures.taken) == (2.0, 1)
    assert pause.complete.is_set()
    assert gate.held(4) is None
    gate.note(3)
    assert captures.taken == 1


def test_an_item_that_is_refused_ends_the_pause_that_waits_for_it(
    clock: Clock, gate: Gate, captures: Captures
) -> None:
    pause = Pause(10.0, frozenset({3, 5}))
    gate.begin(pause)
    for other in (4, 9):
        gate.refused(other)
    gate.note(5)
    gate.refused(5)  # it has come before
    assert (captures.taken, pause.complete.is_set(), gate.held(4)) == (0, False, pause)
    clock.now += 1.0
    gate.refused(3)
    assert (captures.taken, pause.complete.is_set(), gate.held(4)) == (1, True, None)
    assert pause.capture is not None
    assert pause.capture.paused_s == 1.0
    gate.refused(3)  # nothing waits for it any more
    assert captures.taken == 1


def test_a_gate_that_is_abandoned_lets_those_go_who_wait_for_a_capture(
    gate: Gate, captures: Captures
) -> None:
    gate.abandon()
    pause = Pause(600.0, frozenset({3}))
    gate.begin(pause)
    gate.abandon()
    assert pause.complete.is_set()
    assert (pause.capture, captures.taken, gate.held(4)) == (None, 0, None)


def test_a_pause_goes_on_for_the_one_before_it(clock: Clock, gate: Gate) -> None:
    first, second = Pause(10.0), Pause(5.0, frozenset({3}))
    gate.begin(first)
    clock.now += 2.0
    second = Pause(5.0, frozenset({3}))
    gate.begin(second)
    assert first._over.is_set()  # those who waited for it ask again, and wait for the other
    assert gate.held(4) is second
    clock.now += 1.0
    assert gate.finish(second).paused_s == 3.0


def test_of_two_savings_the_first_does_not_end_the_second(
    clock: Clock, gate: Gate, captures: Captures
) -> None:
    first, second = Pause(10.0, frozenset({3})), Pause(10.0, frozenset({3, 4}))
    gate.begin(first)
    gate.begin(second)
    gate.note(3)
    assert (first.complete.is_set(), second.missing) == (False, {4})
    assert gate.finish(first).state.clock == 1
    assert gate.held(5) is second
    gate.note(4)
    assert second.complete.is_set()
    assert second.capture is not None
    assert (second.capture.state.clock, captures.taken) == (2, 2)


@pytest.mark.parametrize("end", ["end", "open", "finish", "begin", "abandon"])
def test_whoever_waits_is_let_go(end: str, gate: Gate) -> None:
    pause = Pause(600.0)
    gate.begin(pause)
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        pause.wait()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        assert begun.wait(60)
        {
            "end": pause.end,
            "open": gate.open,
            "abandon": gate.abandon,
            "finish": lambda: gate.finish(pause),
            "begin": lambda: gate.begin(Pause(1.0)),
        }[end]()
        waiting.result(60)


def test_nobody_waits_longer_than_the_pause_may_last() -> None:
    Pause(0.01).wait()
    Pause(-1.0).wait()
