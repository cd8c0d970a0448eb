"""When snapshots are taken and tried again, in a time that passes by waiting alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from distbelief.coordinator.snapshots import Manifest, Pace
from distbelief.errors import DataError, DistBeliefError, ShardRefusedError, TransportError
from distbelief.runtime import regular_snapshots as module
from distbelief.runtime.regular_snapshots import (
    LOOK_S,
    OWED_S,
    RETRY_AWAY_S,
    RETRY_S,
    RegularSnapshots,
)
from distbelief.runtime.snapshots import Snapshots

AWAY = TransportError(0, "UNAVAILABLE", "nobody there")
REFUSED = ShardRefusedError(0, "cannot_save", "full")


class Run:
    """Takes snapshots, or fails to, and lasts until a given time."""

    def __init__(self, lasts_s: float) -> None:
        self.now = 0.0
        self.lasts_s = lasts_s
        self.answers: Sequence[Exception] = ()
        self.tried_at: list[float] = []
        self.events: list[dict[str, Any]] = []
        self.owed_until = 0.0
        pace = SimpleNamespace(due=lambda examples, seconds: seconds >= 100.0)
        snapshots = SimpleNamespace(take=self._take)
        self.regular = RegularSnapshots(
            cast(Snapshots, snapshots), cast(Pace, pace), cast(Any, None), self._emit
        )

    def wait(self, timeout_s: float) -> bool:
        """In the place of an event that is set at the run's end."""
        self.now = round(self.now + timeout_s, 6)
        return self.now >= self.lasts_s

    def go(self) -> None:
        closing = cast(threading.Event, self)
        self.regular.run(lambda: 0, closing, n_owed=lambda: int(self.now < self.owed_until))

    def _emit(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})

    def _take(self, progressed: Any, *, reason: str) -> Manifest:
        self.tried_at.append(self.now)
        if self.answers:
            first, *self.answers = self.answers
            raise first
        fields = {"number": len(self.tried_at), "even": True, "examples_applied": 0}
        return cast(Manifest, SimpleNamespace(**fields, elapsed_s=self.now))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    run = Run(lasts_s=250.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: run.now))
    return run


def test_they_are_taken_when_they_are_due(run: Run) -> None:
    run.go()
    assert run.tried_at == pytest.approx([100.0, 200.0], abs=2 * LOOK_S)
    assert run.events == []


@pytest.mark.parametrize(
    ("error", "after_s"),
    [
        (AWAY, RETRY_AWAY_S),  # which is started anew meanwhile
        (REFUSED, RETRY_S),
        (DataError("/run", "is gone"), RETRY_S),
        (OSError(28, "No space left on device"), RETRY_S),
    ],
)
def test_one_that_failed_is_tried_again_sooner_if_a_shard_was_away(
    error: DistBeliefError | OSError, after_s: float, run: Run
) -> None:
    run.answers = [error, error]
    run.go()
    first, second, third, *_ = run.tried_at
    assert (second - first, third - second) == pytest.approx((after_s + LOOK_S, after_s + LOOK_S))
    cause = {"kind": "snapshot_failed", "reason": "due", "cause": str(error)}
    assert run.events == [cause, cause]
    assert run.regular.newest is not None
    assert "failed" not in run.regular.newest


def test_each_failure_has_its_own_wait(run: Run) -> None:
    run.answers = [AWAY, REFUSED, AWAY]
    run.go()
    waits = [b - a - LOOK_S for a, b in zip(run.tried_at, run.tried_at[1:4], strict=False)]
    assert waits == pytest.approx([RETRY_AWAY_S, RETRY_S, RETRY_AWAY_S])


def test_a_run_that_ends_while_it_waits_is_not_held_up(run: Run) -> None:
    run.answers = 1000 * [REFUSED]
    run.lasts_s = 110.0
    run.go()
    assert len(run.tried_at) == 1
    assert run.regular.newest == {"failed": str(REFUSED)}


@pytest.mark.parametrize(
    ("owed_until", "taken_at"),
    [(0.0, 100.0), (130.0, 130.0), (1000.0, 100.0 + OWED_S)],
)
def test_one_that_is_due_waits_for_what_a_shard_has_forgotten(
    owed_until: float, taken_at: float, run: Run
) -> None:
    run.owed_until = owed_until
    run.go()
    assert run.tried_at[0] == pytest.approx(taken_at, abs=3 * LOOK_S)
