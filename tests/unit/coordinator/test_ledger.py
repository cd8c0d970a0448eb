"""The ledger: tables, and a property: whatever happens, no item is forgotten."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from distbelief.coordinator.accounts import Forgotten
from distbelief.coordinator.ledger import Ledger
from distbelief.items import ItemPlan
from distbelief.server.applied import ItemSet
from distbelief.types import ShardState

MakeState = Callable[..., ShardState]


def plan(n_items: int = 20, per_epoch: int = 5) -> ItemPlan:
    """Items of 10 examples, the last of an epoch of 5."""
    return ItemPlan(n_examples=10 * per_epoch - 5, batch_size=10, n_push=1, n_items=n_items)


def state(shard: int, applied: set[int], set_aside: dict[int, str] | None = None) -> ShardState:
    found = ItemSet()
    for item in applied:
        found.add(item)
    return ShardState(
        shard=shard,
        incarnation=1,
        begin=shard,
        end=shard + 1,
        loaded=True,
        clock=len(applied),
        examples=0,
        skipped=0,
        applied=found.intervals,
        set_aside=set_aside or {},
        repeated=0,
    )


def observe(ledger: Ledger, *applied: set[int], asked_at: int = 0, **aside: Any) -> None:
    ledger.observe([state(i, a, aside.get(f"aside{i}")) for i, a in enumerate(applied)], asked_at)


def items(granted: list[tuple[int, int]]) -> list[int]:
    return [item for item, _ in granted]


def test_fresh_items_come_in_order_each_to_one_replica() -> None:
    ledger = Ledger(plan(), 1)
    assert ledger.lease(0, 3) == [(0, 1), (1, 2), (2, 3)]
    assert ledger.lease(1, 2) == [(3, 4), (4, 5)]
    assert ledger.lease(0, 0) == []
    assert (ledger.held_by(0), ledger.held_by(1)) == ([0, 1, 2], [3, 4])


def test_leases_come_from_two_epochs() -> None:
    ledger = Ledger(plan(n_items=20, per_epoch=5), 2)
    assert items(ledger.lease(0, 100)) == list(range(10))
    assert ledger.lease(1, 1) == []
    observe(ledger, set(range(10)), set(range(1, 5)))
    assert ledger.lease(1, 1) == []  # item 0 is missing on one shard: the epoch is not over
    observe(ledger, set(range(10)), set(range(5)))
    assert items(ledger.lease(1, 100)) == [10, 11, 12, 13, 14]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sets(st.integers(0, 19)), min_size=1, max_size=3))
def test_a_run_that_is_gone_on_with_begins_where_the_shards_are(applied: list[set[int]]) -> None:
    ledger = Ledger(plan(n_items=20, per_epoch=5), len(applied))
    observe(ledger, *applied)
    everywhere = set.intersection(*applied)
    assert ledger.n_open == 20 - len(everywhere)
    while not ledger.finished:
        granted = items(ledger.lease(0, 100))
        below = min(set(range(20)) - everywhere)
        open_until = 5 * (below // 5 + 2)
        assert granted == [i for i in range(min(open_until, 20)) if i not in everywhere]
        everywhere |= set(granted)
        observe(ledger, *(len(applied) * [everywhere]))


def test_items_far_into_a_run_that_is_gone_on_with_are_not_looked_at_one_by_one() -> None:
    n_items = 10**12
    ledger = Ledger(plan(n_items=n_items, per_epoch=5), 1)
    ledger.observe([replace(state(0, set()), applied=((0, n_items - 3),))], 0)
    assert items(ledger.lease(0, 100)) == [n_items - 3, n_items - 2, n_items - 1]


def test_the_run_ends_with_its_last_item() -> None:
    ledger = Ledger(plan(n_items=7), 1)
    assert items(ledger.lease(0, 100)) == list(range(7))
    assert not ledger.finished
    observe(ledger, set(range(6)))
    assert not ledger.finished
    observe(ledger, set(range(7)))
    assert ledger.finished
    assert ledger.lease(0, 1) == []


def test_what_is_given_back_is_leased_first_under_a_new_lease() -> None:
    ledger = Ledger(plan(), 1)
    ledger.lease(0, 4)
    assert ledger.give_back(0, [2, 1]) == [2, 1]
    assert ledger.lease(1, 3) == [(1, 5), (2, 6), (4, 7)]


@pytest.mark.parametrize("item", [0, 5])
def test_only_the_holder_gives_back(item: int) -> None:
    ledger = Ledger(plan(), 1)
    ledger.lease(0, 2)
    assert ledger.give_back(1, [item]) == []
    assert ledger.held_by(0) == [0, 1]
    assert items(ledger.lease(1, 1)) == [2]


def test_giving_back_twice_frees_once() -> None:
    ledger = Ledger(plan(), 1)
    ledger.lease(0, 2)
    assert ledger.give_back(0, [1, 1]) == [1]
    assert ledger.give_back(0, [1]) == []
    assert items(ledger.lease(1, 2)) == [1, 2]


def test_a_lost_replica_frees_reported_items_too() -> None:
    ledger = Ledger(plan(), 2)
    ledger.lease(0, 4)
    ledger.lease(1, 1)
    ledger.report(0, 1, now=1)
    assert sorted(ledger.lose(0)) == [0, 1, 2, 3]
    assert ledger.held_by(1) == [4]
    assert items(ledger.lease(1, 4)) == [0, 1, 2, 3]


def test_what_a_lost_replica_had_applied_is_not_leased_again() -> None:
    ledger = Ledger(plan(), 2)
    ledger.lease(0, 3)
    ledger.report(0, 0, now=1)
    observe(ledger, {0, 1}, {0}, asked_at=1)
    assert sorted(ledger.lose(0)) == [1, 2]
    observe(ledger, {0, 1}, {0, 1}, asked_at=2)  # its last push still arrives
    assert items(ledger.lease(1, 2)) == [2, 3]


def test_a_reported_item_is_not_held_and_not_open() -> None:
    ledger = Ledger(plan(n_items=20), 1)
    ledger.lease(0, 3)
    assert ledger.n_open == 20
    ledger.report(0, 1, now=1)
    assert ledger.held_by(0) == [0, 2]
    assert ledger.n_open == 19
    observe(ledger, {1}, asked_at=2)
    assert ledger.n_open == 19
    observe(ledger, {0, 1}, asked_at=3)
    assert ledger.n_open == 18


def test_another_replicas_report_is_not_taken() -> None:
    ledger = Ledger(plan(), 1)
    ledger.lease(0, 1)
    ledger.report(1, 0, now=1)
    ledger.report(0, 9, now=1)
    assert ledger.held_by(0) == [0]


@pytest.mark.parametrize(
    ("asked_at", "freed"),
    [
        (4, False),  # asked before the report: the push may have come after the shard's answer
        (5, False),
        (6, True),  # asked after: what the shard lacks will not come by itself
    ],
)
def test_a_reported_item_that_a_shard_lacks_is_freed_by_a_later_poll_only(
    asked_at: int, freed: bool
) -> None:
    ledger = Ledger(plan(), 2)
    ledger.lease(0, 1)
    ledger.report(0, 0, now=5)
    observe(ledger, {0}, set(), asked_at=asked_at)
    assert items(ledger.lease(1, 1)) == [0 if freed else 1]


def test_an_item_that_is_not_reported_stays_with_its_holder_whatever_the_poll() -> None:
    ledger = Ledger(plan(), 2)
    ledger.lease(0, 1)
    observe(ledger, {0}, set(), asked_at=100)
    assert ledger.held_by(0) == [0]


def test_an_item_that_another_replica_applied_is_taken_from_its_holder() -> None:
    ledger = Ledger(plan(), 2)
    ledger.lease(0, 2)
    observe(ledger, {0}, {0}, asked_at=1)
    assert ledger.held_by(0) == [1]


def test_fresh_items_that_are_done_are_not_leased() -> None:
    """As after the coordinator's own death: its ledger is new, the shards are not."""
    ledger = Ledger(plan(), 2)
    observe(ledger, {0, 2, 3}, {0, 2})
    assert items(ledger.lease(0, 3)) == [1, 3, 4]


def test_what_a_shard_forgot_is_leased_again() -> None:
    ledger = Ledger(plan(), 2)
    for item, _ in ledger.lease(0, 4):
        ledger.report(0, item, now=1)
    ledger.lease(1, 2)
    observe(ledger, {0, 1, 2, 3}, {0, 1, 2, 3}, asked_at=2)
    assert (ledger.n_open, ledger.done.below) == (16, 4)
    observe(ledger, {0, 1, 2, 3}, {0, 2}, asked_at=3)  # it came back from a snapshot
    assert (ledger.n_open, ledger.done.below) == (18, 1)
    assert ledger.held_by(1) == [4, 5]
    assert items(ledger.lease(0, 3)) == [1, 3, 6]


def test_what_a_shard_forgot_and_is_leased_already_stays_where_it_is() -> None:
    ledger = Ledger(plan(), 1)
    ledger.lease(0, 2)
    for asked_at in (1, 2, 3):
        observe(ledger, {0, 1}, asked_at=asked_at)
        observe(ledger, set(), asked_at=asked_at)  # freed again and again, waiting once
    assert items(ledger.lease(1, 2)) == [0, 1]
    observe(ledger, set(), asked_at=4)
    assert ledger.held_by(1) == [0, 1]
    assert items(ledger.lease(2, 2)) == [2, 3]


def test_a_run_that_was_finished_goes_on_when_a_shard_forgot() -> None:
    ledger = Ledger(plan(n_items=7), 2)
    observe(ledger, set(range(7)), set(range(7)))
    assert ledger.finished
    observe(ledger, set(range(7)), set(range(5)))
    assert not ledger.finished
    assert items(ledger.lease(0, 9)) == [5, 6]


def test_set_aside_counts_as_done() -> None:
    ledger = Ledger(plan(n_items=5, per_epoch=5), 2)
    observe(ledger, {0, 1, 2, 4}, {0, 1, 2, 4}, aside0={3: "why"})
    assert not ledger.finished
    observe(ledger, {0, 1, 2, 4}, {0, 1, 2, 4}, aside0={3: "why"}, aside1={3: "why"})
    assert ledger.finished
    assert ledger.set_aside == {3: "why"}
    assert (ledger.examples_done(), ledger.examples_set_aside()) == (35, 10)


def test_set_aside_after_it_was_applied_everywhere_counts_as_applied() -> None:
    ledger = Ledger(plan(n_items=5, per_epoch=5), 2)
    observe(ledger, {0}, set(), aside1={0: "why"})
    assert (ledger.examples_done(), ledger.examples_set_aside()) == (0, 10)
    observe(ledger, {0}, {0}, aside1={0: "why"})
    assert ledger.set_aside == {}
    assert (ledger.examples_done(), ledger.examples_set_aside()) == (10, 0)


def test_examples_and_epochs() -> None:
    ledger = Ledger(plan(n_items=12, per_epoch=5), 2)
    assert (ledger.examples_done(), ledger.epochs_finished()) == (0, 0)
    observe(ledger, {0, 1, 3, 4}, {0, 3, 4, 5})  # 0, 3 and 4: the last has 5
    assert (ledger.examples_done(), ledger.epochs_finished()) == (25, 0)
    observe(ledger, set(range(5)), set(range(6)))
    assert (ledger.examples_done(), ledger.epochs_finished()) == (45, 1)
    observe(ledger, set(range(12)), set(range(12)))
    assert (ledger.examples_done(), ledger.epochs_finished()) == (110, 2)


def test_set_aside_is_a_copy() -> None:
    ledger = Ledger(plan(), 1)
    ledger.set_aside[3] = "not mine to say"
    assert ledger.set_aside == {}


# Shards that come back with less than they had


def test_what_a_restarted_shard_forgot_is_counted_and_free() -> None:
    ledger = Ledger(plan(), 2)
    ledger.observe([state(0, set(range(8))), state(1, set(range(8)))], 0)
    assert ledger.epochs_finished() == 1
    back = replace(state(1, {0, 1, 4}), incarnation=2)
    ledger.observe([state(0, set(range(8))), back], 0)
    assert ledger.take_forgotten() == [Forgotten(1, 2, 5, 8, 3)]
    assert (ledger.epochs_finished(), ledger.examples_done()) == (0, 25)
    assert items(ledger.lease(0, 4)) == [2, 3, 5, 6]
    assert items(ledger.lease(1, 100)) == [7, 8, 9]  # of two epochs


def test_what_was_leased_beyond_the_epochs_now_open_waits_for_them() -> None:
    ledger = Ledger(plan(), 1)
    observe(ledger, set(range(10)))
    assert items(ledger.lease(0, 3)) == [10, 11, 12]
    ledger.observe([replace(state(0, {0}), incarnation=2)], 0)
    ledger.give_back(0, [11])
    assert items(ledger.lease(1, 100)) == list(range(1, 10))
    assert ledger.lease(2, 1, at=100.0, pace_s=1.0) == [(9, 13)]  # not 10 or 12
    observe(ledger, set(range(10)))  # of the first start, late
    assert ledger.done.below == 1
    ledger.observe([replace(state(0, set(range(10))), incarnation=2)], 0)
    assert items(ledger.lease(1, 2)) == [11, 13]


def test_an_item_that_was_set_aside_and_forgotten_is_leased() -> None:
    ledger = Ledger(plan(n_items=5), 2)
    ledger.observe([state(0, set(), {1: "why"}), state(1, set())], 0)
    assert items(ledger.lease(0, 9)) == [0, 2, 3, 4]
    ledger.observe([replace(state(0, set()), incarnation=2), state(1, set())], 0)
    assert ledger.set_aside == {}
    assert items(ledger.lease(0, 9)) == [1]


def test_many_items_cost_no_look_at_each() -> None:
    n = 10**9
    ledger = Ledger(plan(n_items=10 * n, per_epoch=n), 2)
    held = [items(ledger.lease(replica, 1000)) for replica in range(3)]
    for incarnation, below in ((1, 5 * n), (2, 3 * n + 7)):
        ledger.observe(
            [
                replace(state(shard, set()), applied=((0, below),), incarnation=incarnation)
                for shard in range(2)
            ],
            0,
        )
        assert items(ledger.lease(5, 2)) == [below, below + 1]
    assert [f.items for f in ledger.take_forgotten()] == 2 * [2 * n - 7]
    assert held[2] == list(range(2000, 3000))


# Stragglers


def straggling() -> Ledger:
    """Replica 0 holds the run's last three items since second 10, replica 1 nothing."""
    ledger = Ledger(plan(n_items=8), 1)
    assert items(ledger.lease(1, 5, at=0.0)) == [0, 1, 2, 3, 4]
    assert items(ledger.lease(0, 3, at=10.0)) == [5, 6, 7]
    observe(ledger, set(range(5)))
    return ledger


def test_an_idle_replica_gets_what_another_has_held_for_too_long() -> None:
    ledger = straggling()
    assert ledger.lease(1, 2, at=14.0, pace_s=2.0) == []  # twice its pace is not over
    assert ledger.lease(1, 2, at=14.5) == []  # its pace is not known
    assert ledger.lease(1, 2, at=14.5, busy=True, pace_s=2.0) == []
    # One, which the other would come to last.
    assert ledger.lease(1, 2, at=14.5, pace_s=2.0) == [(7, 9)]
    assert ledger.lease(1, 2, at=99.0, pace_s=2.0) == []  # it holds something now
    assert items(ledger.lease(2, 2, at=99.0, pace_s=2.0)) == [6]  # two have 7 already
    assert (ledger.held_by(0), ledger.held_by(1)) == ([5, 6, 7], [7])
    assert ledger.lease(0, 2, at=99.0, pace_s=2.0) == []


def test_nothing_is_leased_twice_while_anything_is_free() -> None:
    ledger = straggling()
    ledger.give_back(0, [6])
    assert items(ledger.lease(1, 2, at=99.0, pace_s=2.0)) == [6]


def test_of_two_leases_each_ends_by_itself() -> None:
    ledger = straggling()
    ledger.lease(1, 1, at=99.0, pace_s=2.0)
    ledger.report(1, 7, now=1)
    assert ledger.n_open == 2
    observe(ledger, set(range(5)), asked_at=2)  # it did not come: the other has it still
    assert ledger.n_open == 3
    assert ledger.held_by(0) == [5, 6, 7]
    assert items(ledger.lease(1, 1, at=99.0, pace_s=2.0)) == [7]
    assert ledger.lose(0) == [5, 6]
    assert ledger.held_by(1) == [7]
    ledger.give_back(1, [7])
    assert items(ledger.lease(2, 9)) == [5, 6, 7]


def test_both_leases_end_when_the_item_is_done() -> None:
    ledger = straggling()
    ledger.lease(1, 1, at=99.0, pace_s=2.0)
    observe(ledger, {0, 1, 2, 3, 4, 7})
    assert (ledger.held_by(0), ledger.held_by(1)) == ([5, 6], [])


def test_what_is_reported_is_leased_to_nobody_else() -> None:
    ledger = straggling()
    for item in (5, 6, 7):
        ledger.report(0, item, now=1)
    assert ledger.lease(1, 1, at=99.0, pace_s=2.0) == []


# Suspects


def test_an_item_whose_replicas_die_is_leased_alone_and_then_given_up() -> None:
    ledger = Ledger(plan(n_items=8, per_epoch=4), 1)
    ledger.lease(8, 2)
    for replica in (0, 1):
        assert items(ledger.lease(replica, 2)) == [2, 3]
        assert ledger.lose(replica) == [2, 3]
    # Nobody who holds anything gets one of them, and one of those gets nothing else.
    assert ledger.lease(8, 2) == []
    assert items(ledger.lease(9, 9)) == [2]
    assert ledger.lease(9, 9) == []
    assert ledger.lease(8, 2) == []
    ledger.give_back(8, [0, 1])
    assert items(ledger.lease(8, 9)) == [3]
    assert items(ledger.lease(7, 1)) == [0]
    assert ledger.lose(9) == []
    assert ledger.take_untold() == {2: "its replica died 3 times"}
    assert items(ledger.lease(6, 9)) == [1, 4, 5, 6, 7]
    observe(ledger, {3}, aside0={2: "its replica died 3 times"})
    assert items(ledger.lease(8, 9)) == []  # all is leased


def test_one_of_the_busy_gets_nothing_more_while_a_suspect_waits() -> None:
    ledger = Ledger(plan(n_items=20), 1)
    ledger.lease(5, 1)
    ledger.lease(6, 1)
    for replica in (0, 1):
        ledger.lease(replica, 1)
        ledger.lose(replica)  # item 2
    assert ledger.lease(5, 2) == []
    assert items(ledger.lease(6, 2)) == [3, 4]
    ledger.report(5, 0, now=1)
    assert items(ledger.lease(5, 2)) == [2]
    assert items(ledger.lease(6, 1)) == [5]
    ledger.report(5, 2, now=1)
    assert items(ledger.lease(5, 2)) == [6, 7]


@pytest.mark.parametrize("end", [Ledger.leave, Ledger.lose])
def test_another_takes_the_place_of_one_that_was_to_come_to_an_end(
    end: Callable[[Ledger, int], Any],
) -> None:
    ledger = Ledger(plan(n_items=20), 1)
    ledger.lease(5, 1)
    ledger.lease(6, 1)
    for replica in (0, 1):
        ledger.lease(replica, 1)
        ledger.lose(replica)
    assert ledger.lease(5, 2) == []
    end(ledger, 5)
    assert ledger.lease(6, 2) == []


def test_an_item_that_is_done_is_suspected_no_more() -> None:
    ledger = Ledger(plan(n_items=20), 1)
    for replica in (0, 1):
        ledger.lease(replica, 1)
        ledger.lose(replica)
    observe(ledger, {0})
    assert items(ledger.lease(0, 2)) == [1, 2]


def test_a_death_that_has_another_reason_suspects_nothing() -> None:
    ledger = Ledger(plan(n_items=20), 1)
    for replica in range(5):
        assert items(ledger.lease(replica, 2)) == [0, 1]
        assert ledger.lose(replica, suspicious=False) == [0, 1]
    assert ledger.take_untold() == {}


def test_what_a_dead_replica_had_pushed_is_not_suspected() -> None:
    ledger = Ledger(plan(n_items=20), 1)
    for replica in range(5):
        assert items(ledger.lease(replica, 1)) == [0]
        ledger.report(replica, 0, now=1)
        assert ledger.lose(replica) == [0]
    assert items(ledger.lease(9, 2)) == [0, 1]


# A coordinator that takes the place of another


def test_adopted_leases_stay_with_their_holders_under_their_numbers() -> None:
    ledger = Ledger(plan(), 1, first_lease=100)
    observe(ledger, {0})
    ledger.adopt(4, [(0, 7), (1, 8), (3, 9), (99, 10)])
    assert ledger.held_by(4) == [1, 3]  # 0 is done, and 99 none of the run's
    assert ledger.lease(5, 3) == [(2, 100), (4, 101), (5, 102)]
    ledger.report(4, 1, now=1)
    assert ledger.n_open == 18
    assert ledger.lose(4) == [1, 3]


def test_what_is_reported_and_nobody_holds_is_on_its_way() -> None:
    """Its lease was an earlier coordinator's."""
    ledger = Ledger(plan(), 1)
    ledger.report(4, 0, now=5)
    ledger.report(4, 1, now=5)
    assert items(ledger.lease(5, 1)) == [2]
    observe(ledger, {0}, asked_at=5)
    assert items(ledger.lease(5, 1)) == [3]
    observe(ledger, {0}, asked_at=6)
    assert items(ledger.lease(5, 1)) == [1]


def test_a_grant_that_was_lost_on_its_way_is_free_after_a_while() -> None:
    ledger = Ledger(plan(), 1)
    ledger.lease(0, 3, at=10.0)
    ledger.note_held(0, {0, 1}, at=15.0, patience_s=20.0)
    ledger.note_held(0, {1}, at=30.0, patience_s=20.0)
    assert ledger.held_by(0) == [0, 1, 2]
    ledger.report(0, 0, now=1)
    ledger.note_held(0, {1}, at=30.1, patience_s=20.0)
    assert ledger.held_by(0) == [1]
    ledger.note_held(0, {1}, at=99.0, patience_s=20.0)
    assert items(ledger.lease(1, 2)) == [2, 3]


@dataclass
class World:
    """What is true: the shards' sets, and what replicas hold or believe to have pushed."""

    applied: list[set[int]]
    aside: list[dict[int, str]]
    held: dict[int, set[int]] = field(default_factory=dict)
    late: set[int] = field(default_factory=set)
    """Items of lost replicas or of lost leases, whose pushes may still arrive."""


class Run(RuleBasedStateMachine):
    """A run in which replicas come, push in part, report, give back and die."""

    N_ITEMS, PER_EPOCH, REPLICAS = 13, 4, st.integers(0, 2)

    @initialize(n_shards=st.integers(1, 3))
    def start(self, n_shards: int) -> None:
        self.ledger = Ledger(plan(self.N_ITEMS, self.PER_EPOCH), n_shards)
        self.world = World([set() for _ in range(n_shards)], [{} for _ in range(n_shards)])
        self.now = 0
        self.polls: list[tuple[int, list[ShardState]]] = []
        self.next_lease = 1
        self.ever_leased: set[int] = set()
        self.reported: dict[int, tuple[int, int]] = {}
        self.observed: list[ShardState] = []
        self.shrunk = False
        self.deaths: Counter[int] = Counter()

    def apply(self, item: int, shards: list[int]) -> None:
        for shard in shards:
            if item not in self.world.aside[shard]:
                self.world.applied[shard].add(item)

    def barred(self) -> set[int]:
        """What is to be set aside, or is on some shard as it was last seen."""
        condemned = {item for item, n in self.deaths.items() if n >= 3}
        return condemned | {item for seen in self.observed for item in seen.set_aside}

    def shards(self, data: st.DataObject) -> list[int]:
        everyone = list(range(len(self.world.applied)))
        return data.draw(st.just(everyone) | st.lists(st.sampled_from(everyone), unique=True))

    def one_of(self, data: st.DataObject, items: set[int]) -> int | None:
        return data.draw(st.sampled_from(sorted(items))) if items else None

    @rule(replica=REPLICAS, n=st.integers(0, 5))
    def lease(self, replica: int, n: int) -> None:
        held_before = {r: self.ledger.held_by(r) for r in range(3)}
        open_until = (self.ledger.done.below // self.PER_EPOCH + 2) * self.PER_EPOCH
        granted = self.ledger.lease(replica, n)
        assert len(granted) <= n
        for item, lease in granted:
            assert 0 <= item < self.N_ITEMS
            assert item < open_until
            assert item not in self.barred()
            assert item not in self.ledger.done
            assert all(item not in held for held in held_before.values())
            assert lease >= self.next_lease  # every lease has a number of its own
            self.world.held.setdefault(replica, set()).add(item)
            self.reported.pop(item, None)
            self.ever_leased.add(item)
            if item in self.ledger._suspects:
                assert not held_before[replica]
                assert len(granted) == 1
        if any(item in self.ledger._suspects for item in held_before[replica]):
            assert granted == []
        self.next_lease += len(granted)
        assert sorted(items(granted)) == items(granted)

    @rule(replica=REPLICAS, data=st.data(), says_so=st.booleans())
    def push(self, replica: int, data: st.DataObject, says_so: bool) -> None:
        item = self.one_of(data, self.world.held.get(replica, set()))
        if item is None:
            return
        self.apply(item, self.shards(data))
        self.now += 1
        if says_so:  # perhaps though a shard refused its part
            self.ledger.report(replica, item, self.now)
            self.world.held[replica].discard(item)
            self.reported[item] = (replica, self.now)

    @rule(replica=REPLICAS, data=st.data())
    def give_back(self, replica: int, data: st.DataObject) -> None:
        item = self.one_of(data, self.world.held.get(replica, set()))
        if item is not None:
            self.world.held[replica].discard(item)
            self.world.late.add(item)
            self.ledger.give_back(replica, [item])

    @rule(replica=REPLICAS, data=st.data())
    def be_refused(self, replica: int, data: st.DataObject) -> None:
        item = self.one_of(data, self.world.held.get(replica, set()))
        if item is not None:  # no push of it is on its way
            self.world.held[replica].discard(item)
            self.ledger.give_back(replica, [item])

    @rule(replica=REPLICAS)
    def lose(self, replica: int) -> None:
        held = self.world.held.pop(replica, set())
        self.world.late |= held
        if self.shrunk:  # an item that was done meanwhile, and is not any more, is nobody's
            held &= set(self.ledger.held_by(replica))
        self.deaths.update(self.ledger.held_by(replica))
        again = self.ledger.lose(replica)
        assert set(again) >= {i for i in held - self.barred() if i not in self.ledger.done}
        assert self.ledger.held_by(replica) == []

    @rule(data=st.data())
    def late_push_arrives(self, data: st.DataObject) -> None:
        item = self.one_of(data, self.world.late)
        if item is not None:
            self.apply(item, self.shards(data))

    @rule(data=st.data())
    def set_aside(self, data: st.DataObject) -> None:
        item = self.one_of(data, self.ever_leased)
        for shard in self.shards(data) if item is not None else ():
            if item not in self.world.applied[shard]:
                self.world.aside[shard].setdefault(item, "why")

    @rule()
    def ask(self) -> None:
        self.now += 1
        found = [
            state(i, set(applied), dict(aside))
            for i, (applied, aside) in enumerate(
                zip(self.world.applied, self.world.aside, strict=True)
            )
        ]
        self.polls.append((self.now, found))

    @precondition(lambda self: self.polls)
    @rule()
    def answer(self) -> None:
        asked_at, found = self.polls.pop(0)
        self.ledger.observe(found, asked_at)
        self.observed = found
        for item in [i for i in self.deaths if i in self.ledger.done]:
            if self.deaths[item] < 3 or all(item in ItemSet(s.applied) for s in found):
                del self.deaths[item]  # it did no harm
        for item, (replica, at) in list(self.reported.items()):
            # Reported after the question: it is still on its way, and nobody else's.
            if at > asked_at and item not in self.ledger.done:
                leases = self.ledger._leases.of_item(item)
                assert leases == [] or [lease.replica for lease in leases] == [replica]

    @invariant()
    def counts_agree_with_the_shards(self) -> None:
        done = set(self.ledger.done)
        told = [set(ItemSet(s.applied)) | set(s.set_aside) for s in self.observed]
        assert done == (set.intersection(*told) if told else set())
        everywhere = set.intersection(
            *(a | set(s) for a, s in zip(self.world.applied, self.world.aside, strict=True))
        )
        assert self.shrunk or done <= everywhere
        assert 0 <= self.ledger.n_open <= self.N_ITEMS - len(done)
        examples = sum(self.ledger.plan.item(i).n_examples for i in done)
        assert self.ledger.examples_done() + self.ledger.examples_set_aside() == examples
        assert self.ledger.examples_done() >= 0

    def teardown(self) -> None:
        """Whatever happened, one replica that does its work finishes the run."""
        if not hasattr(self, "ledger"):
            return
        while self.polls:
            self.answer()
        for replica in range(3):
            self.ledger.lose(replica)
        self.finish([9])
        assert self.ledger.n_open == 0
        assert self.ledger.lease(9, 1) == []

    def finish(self, replicas: list[int]) -> None:
        everyone = list(range(len(self.world.applied)))
        for _ in range(3 + 3 * self.N_ITEMS):  # suspects are leased one at a time
            for replica in replicas:
                self.ledger.lease(replica, self.N_ITEMS)
                for item in self.ledger.held_by(replica):
                    self.apply(item, everyone)
                    self.now += 1
                    self.ledger.report(replica, item, self.now)
            self.ask()
            self.answer()
            for item, why in self.ledger.take_untold().items():
                for applied, aside in zip(self.world.applied, self.world.aside, strict=True):
                    if item not in applied:
                        aside.setdefault(item, why)
            if self.ledger.finished:
                return
        pytest.fail("it does not end")


TestRun = Run.TestCase
TestRun.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)


class LivingRun(Run):
    """The same without the deaths at the end: what replicas hold, they finish."""

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.polls.clear()
        self.finish([0, 1, 2])


TestLivingRun = LivingRun.TestCase
TestLivingRun.settings = settings(deadline=None, max_examples=40, stateful_step_count=40)


class Forgetting:
    """Shards that die and come back from a snapshot, with less than they had."""

    @rule(data=st.data())
    def shrink(self: Any, data: st.DataObject) -> None:
        shard = data.draw(st.sampled_from(range(len(self.world.applied))))
        applied, aside = self.world.applied[shard], self.world.aside[shard]
        known = sorted(applied | set(aside))
        if not known:
            return
        forgotten = data.draw(st.just(known) | st.lists(st.sampled_from(known), unique=True))
        applied.difference_update(forgotten)
        for item in forgotten:
            aside.pop(item, None)
        self.shrunk = True


class ForgettingRun(Forgetting, Run):
    """A run in which shards forget and all replicas die at the end."""


class LivingForgettingRun(Forgetting, LivingRun):
    """A run in which shards forget and replicas finish what they hold."""


TestForgettingRun = ForgettingRun.TestCase
TestForgettingRun.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
TestLivingForgettingRun = LivingForgettingRun.TestCase
TestLivingForgettingRun.settings = settings(deadline=None, max_examples=40, stateful_step_count=40)
