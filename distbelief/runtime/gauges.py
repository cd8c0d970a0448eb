"""How a run stands, in figures: rates over the last seconds, and the report that has them all."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from distbelief.coordinator.coordinator import RunStatus
from distbelief.coordinator.membership import Member
from distbelief.items import ItemPlan
from distbelief.observe.report import Report
from distbelief.types import ShardState

RATE_WINDOW_S = 20.0
"""The present rates are taken over so many seconds."""

SILENT_S = 5.0
"""A replica that has not reported for so long is shown as silent."""


class Throughput:
    """A rate from a series of (seconds, count so far): images, or bytes. Thread-safe.

    A count may fall: a shard that came back with less than it had counts from there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, int]] = deque()
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None

    def note(self, seconds: float, count: int) -> None:
        """Adds a point; repeats of the same count say only that time has passed."""
        with self._lock:
            if count and (self._last is None or count != self._last[1]):
                self._first = self._first or (seconds, count)
                self._last = (seconds, count)
            if self._recent and count < self._recent[-1][1]:
                self._recent.clear()  # some was lost: the rate is that of what comes from now on
            self._recent.append((seconds, count))
            while self._recent[0][0] < seconds - RATE_WINDOW_S and len(self._recent) > 2:
                self._recent.popleft()

    def now(self) -> float:
        """Over the last seconds in which something came."""
        with self._lock:
            points = [p for p in self._recent if p[1]]
        return _slope(points[0], points[-1]) if len(points) > 1 else 0.0

    def mean(self) -> float:
        """From the first that came to the last."""
        with self._lock:
            first, last = self._first, self._last
        return _slope(first, last) if first and last else 0.0


def _slope(a: tuple[float, int], b: tuple[float, int]) -> float:
    return max(0, b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else 0.0


class Gauges:
    """The rates of a run: images, and the bytes of each shard. Thread-safe."""

    def __init__(self, plan: ItemPlan, n_shards: int) -> None:
        self._plan = plan
        self._images = Throughput()
        self._traffic = [Throughput() for _ in range(n_shards)]

    def note(self, seconds: float, examples: int, states: Sequence[ShardState]) -> None:
        """Takes the figures of one look at the shards, ``seconds`` after the run's start."""
        self._images.note(seconds, examples)
        for state in states:
            self._traffic[state.shard].note(seconds, state.nbytes_received + state.nbytes_sent)

    def report(
        self,
        s: RunStatus,
        *,
        elapsed_s: float,
        failure: str,
        snapshot: dict[str, Any] | None,
        validation: dict[str, Any] | None,
        run_dir: str,
        forgotten: Mapping[tuple[int, int], int] | None = None,
        trouble: str = "",
        looks: int = 0,
    ) -> Report:
        """How the run stands: the coordinator's status, with rates and what remains."""
        rate = self._images.now()
        left = self._plan.total_examples - s.examples_applied - s.examples_set_aside
        return Report(
            elapsed_s=elapsed_s,
            finished=s.finished,
            failure=failure,
            epoch=min(s.epochs_finished + 1, self._plan.n_epochs),
            n_epochs=self._plan.n_epochs,
            examples_applied=s.examples_applied,
            examples_skipped=s.examples_skipped,
            examples_set_aside=s.examples_set_aside,
            total_examples=self._plan.total_examples,
            images_per_second=rate,
            mean_images_per_second=self._images.mean(),
            left_s=left / rate if rate else None,
            losses=s.losses,
            learning_rate=s.learning_rate,
            staleness=s.staleness,
            applied=s.applied,
            repeated=s.repeated,
            refused=s.refused,
            replicas=tuple(
                self._replica(m) for m in sorted(s.members, key=lambda member: member.replica)
            ),
            shards=tuple(
                self._shard(state, (forgotten or {}).get((state.shard, state.incarnation), 0))
                for state in s.shards
            ),
            snapshot=snapshot,
            validation=validation,
            mean_waiting=_waiting_share(s.members) or 0.0,
            run_dir=run_dir,
            looks=looks,
            trouble=trouble or next((state.trouble for state in s.shards if state.trouble), ""),
        )

    def _replica(self, m: Member) -> dict[str, Any]:
        pace = self._plan.examples_per_item / m.seconds_per_item if m.seconds_per_item else None
        silent = time.time() - m.last_seen > SILENT_S
        return {
            "replica": m.replica,
            "stages": m.stages,
            "host": m.host,
            "pid": m.pid,
            "items": m.items_done,
            "examples": m.examples_done,
            "seconds_per_item": m.seconds_per_item,
            "images_per_second": pace,
            "parameters_age_s": m.parameters_age_s,
            "state": "leaving" if m.left else "silent" if silent else "working",
            "waiting": _waiting_share([m]),
        }

    def _shard(self, state: ShardState, n_forgotten: int) -> dict[str, Any]:
        return {
            "shard": state.shard,
            "incarnation": state.incarnation,
            "clock": state.clock,
            "queued": state.queued,
            "applied": state.clock,
            "repeated": state.repeated,
            "refused": sum(state.refused.values()),
            "forgotten": n_forgotten,
            "twin": state.twin,
            "mb_per_second": self._traffic[state.shard].now() / 1e6,
            "traffic": dict(state.traffic),
        }


def _waiting_share(members: Sequence[Member]) -> float | None:
    """Of these replicas' time, what was spent waiting for data; None before the first item."""
    busy = sum((m.seconds_per_item or 0.0) * m.items_done for m in members)
    # Items that were refused took time too, which is not counted.
    return min(1.0, sum(m.waiting_s for m in members) / busy) if busy else None
