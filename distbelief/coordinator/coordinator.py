"""The coordinator: hands out the data, follows the shards, and knows how the run stands."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from distbelief.coordinator.accounts import Forgotten
from distbelief.coordinator.ledger import Ledger
from distbelief.coordinator.membership import Member, Membership
from distbelief.coordinator.refusals import Refusals
from distbelief.coordinator.schedule import Schedule
from distbelief.server.applied import ItemSet, intersection
from distbelief.types import (
    ItemOutcome,
    LeasedItem,
    Orders,
    ReplicaReport,
    ShardState,
)

LOST_GRANT_S = 20.0
"""A lease that its replica has not named for so long did not reach it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """How a run stands, as plain values.

    Attributes:
        finished: Every item is done.
        examples_applied: Examples of the items that every shard has applied.
        examples_skipped: Those among them that could not be read.
        items_set_aside: Items that some shard has set aside.
        set_aside: These, each with its reason.
        examples_set_aside: Examples that will not be applied.
        epochs_finished: Whole epochs of which every item is done.
        learning_rate: Rate of the item that was pushed last.
        losses: Smoothed losses by name.
        staleness: Applied pushes by staleness, all shards together.
        applied: Pushes that were applied, all shards together; likewise ``repeated``.
        refused: Pushes that were refused, by reason.
        members: The replicas that take part.
        shards: The shards' accounts of themselves.
    """

    finished: bool
    examples_applied: int
    examples_skipped: int
    items_set_aside: int
    set_aside: dict[int, str]
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
    """Satisfies :class:`~distbelief.services.CoordinatorService`; thread-safe, does no I/O.

    What must be done about the world is asked for: :meth:`take_outcomes` and :meth:`take_forgotten`
    for the record, :meth:`take_set_aside` for the shards.

    Args:
        schedule: The learning rate of each item.
        n_shards: Shards of the run.
        lease_s: Seconds of work that a replica shall hold.
        losses: The smoothed ones of a run that is gone on with.
        first_lease: Number of the first lease; above those of any coordinator before.
        awaited: Replicas that hold items of an earlier coordinator: nothing is leased until each of
            them has said which.
        lost: Replicas that are not heard any more.
        settle_s: Seconds, from the first report on, after which none is awaited any more.
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
        first_lease: int = 1,
        awaited: Set[int] = frozenset(),
        lost: Set[int] = frozenset(),
        settle_s: float = 3.0,
    ) -> None:
        self._schedule = schedule
        self._ledger = Ledger(schedule.plan, n_shards, first_lease)
        self._membership = Membership(lost=set(lost))
        self._awaited = set(awaited) - set(lost)
        self._settle_s = settle_s
        self._first_at: float | None = None
        self._lease_s = lease_s
        self._lock = threading.Lock()
        self._now = 0
        self._stopping = False
        self._pushed = False
        self._states: tuple[ShardState, ...] = ()
        self._rate = schedule.rate(0)
        self._losses: dict[str, float] = dict(losses or {})
        self._outcomes: list[tuple[int, ItemOutcome]] = []
        self._refusals = Refusals()
        self._replica_refusals: Counter[str] = Counter()

    def report(self, report: ReplicaReport, at: float = 0.0) -> Orders:
        """See :class:`~distbelief.services.CoordinatorService`; ``at`` is the time in seconds."""
        with self._lock:
            self._now += 1
            if report.replica in self._membership.lost:
                return Orders(stop=True)
            settling = self._settling(report.replica, at)
            member = self._member(report, at)
            self._ledger.adopt(report.replica, report.held, at)
            for outcome in report.outcomes:
                self._take_outcome(member, outcome)
            if report.leaving:
                member.left = True
                self._ledger.leave(report.replica)
                return Orders(stop=True)
            held = {item for item, _ in report.held}
            self._ledger.note_held(report.replica, held, at, LOST_GRANT_S)
            if self._stopping or self._ledger.finished:
                return Orders(stop=True)
            if dismissal := self._refusals.dismissal(report.replica):
                return Orders(dismissal=dismissal)
            return Orders() if settling else Orders(items=self._lease(member, at, bool(held)))

    def replica_lost(self, replica: int) -> list[int]:
        """Frees what a dead replica held; returns the items that somebody must do again.

        An item that was in the hands of three that died is set aside.
        """
        with self._lock:
            self._membership.lost.add(replica)
            self._membership.members.pop(replica, None)
            self._awaited.discard(replica)
            dismissed = bool(self._refusals.dismissal(replica))
            self._refusals.lose(replica)
            return self._ledger.lose(replica, suspicious=not dismissed)

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
        """Items that every shard must be told to set aside, with reasons; see the ledger.

        One that a shard still lacks when the shards are looked at again comes again.
        """
        with self._lock:
            return self._ledger.take_untold()

    @property
    def n_owed(self) -> int:
        """Items that shards have forgotten, and that are not done again yet."""
        with self._lock:
            return self._ledger.n_owed

    def take_forgotten(self) -> list[Forgotten]:
        """What shards that were started again turned out to have forgotten, since the last call."""
        with self._lock:
            return self._ledger.take_forgotten()

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
                set_aside=self._ledger.set_aside,
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

    def _settling(self, replica: int, at: float) -> bool:
        """Whether a replica may still hold what nobody here knows of."""
        if self._first_at is None:
            self._first_at = at
        self._awaited.discard(replica)
        return bool(self._awaited) and at - self._first_at < self._settle_s

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
        if why := self._refusals.note(member.replica, outcome):
            self._ledger.condemn(outcome.item, why)
        if outcome.refusal:
            if not outcome.pushed:  # else the shard that refused it has counted it
                self._replica_refusals[outcome.refusal] += 1
            self._ledger.give_back(member.replica, [outcome.item])
            return
        self._pushed = True
        self._ledger.report(member.replica, outcome.item, self._now)
        self._rate = self._schedule.rate(outcome.item)
        member.items_done += 1
        member.examples_done += outcome.examples
        for name, loss in outcome.losses.items():
            old = self._losses.get(name, loss)
            self._losses[name] = self.SMOOTHING * old + (1 - self.SMOOTHING) * loss

    def _lease(self, member: Member, at: float, busy: bool) -> tuple[LeasedItem, ...]:
        n_held = len(self._ledger.held_by(member.replica))
        n = self._membership.wanted(
            member.replica,
            n_held=n_held,
            n_open=self._ledger.n_open,
            items_per_epoch=self._schedule.plan.items_per_epoch,
            lease_s=self._lease_s,
        )
        leased = []
        pace_s = member.seconds_per_item
        for number, lease in self._ledger.lease(member.replica, n, at, busy=busy, pace_s=pace_s):
            item = self._schedule.plan.item(number)
            rate = self._schedule.rate(number)
            leased.append(LeasedItem(number, lease, item.epoch, item.begin, item.end, rate))
        return tuple(leased)
