"""What is put off after a death, with a clock that stands still unless it is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from distbelief.coordinator.restarts import FIRST_S, MOST, SERVED_S
from distbelief.errors import DataError, DistBeliefError, ProcessLostError
from distbelief.runtime import later as module
from distbelief.runtime.later import Later
from distbelief.runtime.world import Post, ProcessEnd

POST = Post("shard", 1, 2)
DIED = ProcessLostError("shard 1", "killed")


class Put:
    """What has been put off, and the clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.later = Later()
        self.done: list[str] = []

    def died(self, what: str, action: str = "again", error: DistBeliefError = DIED) -> None:
        self.later.died(what, ProcessEnd(POST, error), lambda: self.done.append(action))

    def tick(self, after_s: float = 0.0) -> list[str]:
        """What is done then."""
        self.now += after_s
        self.later.tick()
        done, self.done = self.done, []
        return done


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Put:
    put = Put()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: put.now))
    return put


def test_after_the_first_death_it_is_done_at_the_next_tick_and_once(put: Put) -> None:
    put.died("a")
    assert put.done == []
    assert put.tick() == ["again"]
    assert put.tick(1000.0) == []


def test_deaths_in_a_row_wait_longer_and_longer_and_then_end_the_run(put: Put) -> None:
    put.died("a")
    put.tick()
    for n in range(MOST - 1):
        wait_s = FIRST_S * 2.0**n
        put.died("a")
        assert put.tick(0.75 * wait_s) == []
        assert put.tick(0.25 * wait_s) == ["again"]
    last = ProcessLostError("shard 1", "the last straw")
    with pytest.raises(ProcessLostError) as caught:
        put.died("a", error=last)
    assert caught.value is last
    assert put.tick(1000.0) == []


def test_what_has_served_begins_a_new_row(put: Put) -> None:
    for _ in range(3 * MOST):
        put.died("a")
        assert put.tick() == ["again"]
        put.later.started("a")
        put.now += SERVED_S


def test_a_row_is_of_one_thing(put: Put) -> None:
    put.died("a")
    put.tick()
    put.died("a", "a once more")
    put.died("b", "b")
    assert put.tick() == ["b"]
    assert put.tick(FIRST_S) == ["a once more"]


def test_what_the_user_must_mend_is_not_tried_again(put: Put) -> None:
    error = DataError("/data", "is gone")
    with pytest.raises(DataError) as caught:
        put.died("a", error=error)
    assert caught.value is error
    assert put.tick(1000.0) == []


def test_what_is_put_off_is_done_at_its_time(put: Put) -> None:
    put.later.do(lambda: put.done.append("late"), after_s=5.0)
    put.later.do(lambda: put.done.append("soon"), after_s=2.0)
    assert put.tick(1.5) == []
    assert put.tick(0.5) == ["soon"]
    assert put.tick(3.0) == ["late"]
    assert put.tick(1000.0) == []


def test_what_is_due_is_done_in_order_and_what_it_asks_for_afterwards(put: Put) -> None:
    def first() -> None:
        put.done.append("first")
        put.later.do(lambda: put.done.append("third"))

    put.later.do(first)
    put.later.do(lambda: put.done.append("second"))
    assert put.done == []
    assert put.tick() == ["first", "second"]
    assert put.tick() == ["third"]
    assert put.tick() == []
