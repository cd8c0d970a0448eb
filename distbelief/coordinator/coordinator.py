"""The coordinator: hands out the data, follows the shards, and knows how the run stands."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from distbelief.coordinator.ledger import Ledger
from distbelief.coordinator.membership import Member, Membership
from distbelief.coordinator.schedule import Schedule
from distbelief.server.applied import ItemSet, intersection
from distbelief.types import (
    ItemOutcome,
    LeasedItem,
    Orders,
    Refusal,
    ReplicaReport,
    ShardState,
)

POISON = frozenset({Refusal.NOT_FINITE, Refusal.NORM})
"""Refusals that lie in the item rather than in the moment."""

MAX_POISONED = 3
"""An item whose gradient is refused as poison so often is set aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """How a run stands, as plain values.

    Attributes:
        finished: Every item is done.
        examples_applied: Examples of the items that every shard has applied.
        examples_skipped: Those among them that could not be read.
        items_set_aside: Items that some shard has set aside.
        examples_set_aside: Examples that will not be applied.
        epochs_finished: Whole epochs of which every item is done.
        learning_rate: Rate of the item that was pushed last.
        losses: Smoothed losses by name.
        staleness: Applied pushes by staleness, all shards together.
        pushes: ``applied``, ``repeated`` and ``refused`` (by reason), all shards together.
        members: The replicas that take part.
        shards: The shards' accounts of themselves.
    """

    finished: bool
    examples_applied: int
    examples_skipped: int
    items_set_aside: int
    examples_set_aside: int
    epochs_finished: int
    learning_rate: float
    losses: dict[str, float]
    staleness: dict[int, int]
    applied: int
    repeated: int
    refused: dict[str, int]
    members: tuple[Member, ...]
    shards: tuple[ShardState, ...]


class Coordinator:
    """Satisfies :class:`~distbelief.types.CoordinatorService`; thread-safe, does no I/O.

    ``losses`` are the smoothed ones of a run that is resumed.

    What must be done about the world is asked for: :meth:`take_outcomes` for the record,
    :meth:`take_set_aside` for the shards.
    """

    SMOOTHING = 0.95
    """Weight of the past in the smoothed losses, for each item."""

    def __init__(
        self,
        schedule: Schedule,
        n_shards: int,
        *,
        lease_s: float,
        losses: Mapping[str, float] | None = None,
    ) -> None:
        self._schedule = schedule
        self._ledger = Ledger(schedule.plan, n_shards)
        self._membership = Membership()
        self._lease_s = lease_s
        self._lock = threading.Lock()
        self._now = 0
        self._stopping = False
        self._pushed = False
        self._states: tuple[ShardState, ...] = ()
        self._rate = schedule.rate(0)
        self._losses: dict[str, float] = dict(losses or {})
        self._outcomes: list[tuple[int, ItemOutcome]] = []
        self._to_set_aside: dict[int, str] = {}
        self._replica_refusals: Counter[str] = Counter()
        self._poisonings: Counter[int] = Counter()

    def report(self, report: ReplicaReport, at: float = 0.0) -> Orders:
        """See :class:`~distbelief.types.CoordinatorService`; ``at`` is the time in seconds."""
        with self._lock:
            self._now += 1
            if report.replica in self._membership.lost:
                return Orders(stop=True)
            member = self._member(report, at)
            for outcome in report.outcomes:
                self._take_outcome(member, outcome)
            if report.leaving:
                member.left = True
                self._ledger.give_back(report.replica, self._ledger.held_by(report.replica))
                return Orders(stop=True)
            if self._stopping or self._ledger.finished:
                return Orders(stop=True)
            return Orders(items=self._lease(report.replica))

    def replica_lost(self, replica: int) -> list[int]:
        """Frees what a dead replica held; returns the items that somebody must do again."""
        with self._lock:
            self._membership.lost.add(replica)
            self._membership.members.pop(replica, None)
            return self._ledger.lose(replica)

    def now(self) -> int:
        """The coordinator's count of time, to be taken before the shards are asked."""
        with self._lock:
            self._now += 1
            return self._now

    def observe(self, states: Sequence[ShardState], asked_at: int) -> None:
        """Takes in the shards' accounts; see :meth:`Ledger.observe`."""
        with self._lock:
            self._states = tuple(states)
            self._ledger.observe(states, asked_at)
            if not self._pushed:  # of a run that is resumed: where it goes on
                self._rate = self._schedule.rate(self._ledger.done.below)

    def examples_of(self, states: Sequence[ShardState]) -> int:
        """Examples of the items that all of these accounts have as applied."""
        plan = self._schedule.plan
        applied = intersection(ItemSet(state.applied) for state in states)
        return sum(
            plan.examples_before(end) - plan.examples_before(begin)
            for begin, end in applied.intervals
        )

    def stop(self) -> None:
        """From now on every report is answered with the order to end."""
        with self._lock:
            self._stopping = True

    def take_outcomes(self) -> list[tuple[int, ItemOutcome]]:
        """The outcomes since the last call, each with its replica."""
        with self._lock:
            taken, self._outcomes = self._outcomes, []
            return taken

    def take_set_aside(self) -> dict[int, str]:
        """Items that every shard must be told to set aside, since the last call, with reasons."""
        with self._lock:
            taken, self._to_set_aside = self._to_set_aside, {}
            return taken

    def status(self) -> RunStatus:
        """How the run stands."""
        with self._lock:
            staleness: Counter[int] = Counter()
            refused = Counter(self._replica_refusals)
            for state in self._states:
                staleness.update(state.staleness)
                refused.update(state.refused)
            return RunStatus(
                finished=self._ledger.finished,
                examples_applied=self._ledger.examples_done(),
                examples_skipped=max((state.skipped for state in self._states), default=0),
                items_set_aside=len(self._ledger.set_aside),
                examples_set_aside=self._ledger.examples_set_aside(),
                epochs_finished=self._ledger.epochs_finished(),
                learning_rate=self._rate,
                losses=dict(self._losses),
                staleness=dict(staleness),
                applied=sum(state.clock for state in self._states),
                repeated=sum(state.repeated for state in self._states),
                refused=dict(refused),
                members=tuple(replace(m) for m in self._membership.members.values()),
                shards=self._states,
            )

    def _member(self, report: ReplicaReport, at: float) -> Member:
        member = self._membership.members.get(report.replica)
        if member is None:
            member = Member(report.replica, report.host, report.pid, at, stages=report.stages)
            self._membership.members[report.replica] = member
        member.last_seen = at
        member.waiting_s += report.waiting_s
        member.parameters_age_s = report.parameters_age_s
        if report.seconds_per_item is not None:
            member.seconds_per_item = report.seconds_per_item
        return member

    def _take_outcome(self, member: Member, outcome: ItemOutcome) -> None:
        self._outcomes.append((member.replica, outcome))
        if outcome.refusal:
            if not outcome.pushed:  # else the shard that refused it has counted it
                self._replica_refusals[outcome.refusal] += 1
            self._ledger.give_back(member.replica, [outcome.item])
            if outcome.refusal in POISON:
                self._poisonings[outcome.item] += 1
                if self._poisonings[outcome.item] == MAX_POISONED:
                    self._to_set_aside[outcome.item] = f"{outcome.refusal}, {MAX_POISONED} times"
            return
        self._pushed = True
        self._ledger.report(member.replica, outcome.item, self._now)
        self._rate = self._schedule.rate(outcome.item)
        member.items_done += 1
        member.examples_done += outcome.examples
        for name, loss in outcome.losses.items():
            old = self._losses.get(name, loss)
            self._losses[name] = self.SMOOTHING * old + (1 - self.SMOOTHING) * loss

    def _lease(self, replica: int) -> tuple[LeasedItem, ...]:
        n_held = len(self._ledger.held_by(replica))
        n = self._membership.wanted(
            replica,
            n_held=n_held,
            n_open=self._ledger.n_open,
            items_per_epoch=self._schedule.plan.items_per_epoch,
            lease_s=self._lease_s,
        )
        leased = []
        for number, lease in self._ledger.lease(replica, n):
            item = self._schedule.plan.item(number)
            rate = self._schedule.rate(number)
            leased.append(LeasedItem(number, lease, item.epoch, item.begin, item.end, rate))
        return tuple(leased)
