"""The coordinator: reports in, orders out."""

from typing import Any

import pytest

from distbelief.config import ScheduleConfig
from distbelief.coordinator.accounts import Forgotten
from distbelief.coordinator.coordinator import LOST_GRANT_S, Coordinator
from distbelief.coordinator.refusals import MAX_POISONED
from distbelief.coordinator.schedule import Schedule
from distbelief.items import ItemPlan
from distbelief.types import ItemOutcome, LeasedItem, Orders, Refusal, ReplicaReport, ShardState


def coordinator(n_items: int = 20, n_shards: int = 1, **schedule: Any) -> Coordinator:
    """Epochs of 5 items: four of 10 examples and one of 5."""
    plan = ItemPlan(n_examples=45, batch_size=10, n_push=1, n_items=n_items)
    config = ScheduleConfig(**{"lr": 1.0, **schedule})
    return Coordinator(Schedule(config, plan), n_shards, lease_s=20.0)


def report(replica: int = 0, **fields: Any) -> ReplicaReport:
    return ReplicaReport(replica=replica, host=f"host{replica}", pid=100 + replica, **fields)


def done(item: int, **fields: Any) -> ItemOutcome:
    return ItemOutcome(**{"item": item, "examples": 10, "losses": {}, **fields})


def state(shard: int, below: int, **fields: Any) -> ShardState:
    values: dict[str, Any] = {
        "shard": shard,
        "incarnation": 1,
        "begin": shard,
        "end": shard + 1,
        "loaded": True,
        "clock": below,
        "examples": 10 * below,
        "skipped": 0,
        "applied": ((0, below),) if below else (),
        "set_aside": {},
        "repeated": 0,
    }
    return ShardState(**{**values, **fields})


def numbers(orders: Orders) -> list[int]:
    return [item.number for item in orders.items]


def test_a_new_replica_gets_two_items_with_all_it_needs() -> None:
    c = coordinator(schedule="step", step_epochs=0.4, step_factor=0.5)
    assert c.report(report()) == Orders(
        items=(LeasedItem(0, 1, 0, 0, 10, 1.0), LeasedItem(1, 2, 0, 10, 20, 1.0))
    )
    assert c.report(report(1)).items == (
        LeasedItem(2, 3, 0, 20, 30, 0.5),
        LeasedItem(3, 4, 0, 30, 40, 0.5),
    )


def test_a_replica_is_topped_up_to_its_lease() -> None:
    c = coordinator()
    c.report(report())
    assert numbers(c.report(report())) == []
    orders = c.report(report(outcomes=(done(0),), seconds_per_item=5.0))
    assert numbers(orders) == [2, 3, 4]  # three quarters of an epoch's five; it holds item 1


def test_the_end_comes_when_every_shard_has_every_item() -> None:
    c = coordinator(n_items=2, n_shards=2)
    assert numbers(c.report(report())) == [0, 1]
    assert c.report(report(outcomes=(done(0), done(1)))) == Orders()
    c.observe([state(0, 2), state(1, 1)], c.now())
    assert numbers(c.report(report())) == [1]  # it was reported, and a shard lacks it
    c.observe([state(0, 2), state(1, 2)], c.now())
    assert c.status().finished
    assert c.report(report()) == Orders(stop=True)


def test_a_poll_that_was_asked_before_the_report_frees_nothing() -> None:
    c = coordinator(n_items=2)
    c.report(report())
    asked_at = c.now()
    c.report(report(outcomes=(done(0),)))
    c.observe([state(0, 0)], asked_at)
    assert numbers(c.report(report(1))) == []
    c.observe([state(0, 0)], c.now())
    assert numbers(c.report(report(1))) == [0]


def test_a_lost_replicas_items_go_to_another_and_it_is_told_to_end() -> None:
    c = coordinator()
    c.report(report(0))
    assert c.replica_lost(0) == [0, 1]
    assert numbers(c.report(report(1))) == [0, 1]
    assert c.report(report(0, outcomes=(done(0),))) == Orders(stop=True)
    assert c.take_outcomes() == []
    assert [m.replica for m in c.status().members] == [1]


def test_a_replica_that_was_never_heard_of_can_be_lost() -> None:
    c = coordinator()
    assert c.replica_lost(7) == []
    assert c.report(report(7)) == Orders(stop=True)


def test_a_leaving_replica_gives_back_what_it_holds() -> None:
    c = coordinator()
    c.report(report(0))
    orders = c.report(report(0, outcomes=(done(0),), held=((1, 2),), leaving=True))
    assert orders == Orders(stop=True)
    assert numbers(c.report(report(1))) == [1, 2]


def test_a_leaving_replica_gives_back_what_it_does_not_know_of() -> None:
    """Its last grant may have been lost on the way."""
    c = coordinator()
    c.report(report(0))
    assert c.report(report(0, held=(), leaving=True)) == Orders(stop=True)
    assert numbers(c.report(report(1))) == [0, 1]


def test_what_a_leaving_replica_has_pushed_is_not_given_to_another_yet() -> None:
    c = coordinator()
    c.report(report(0))
    c.report(report(0, outcomes=(done(0),), leaving=True))
    assert numbers(c.report(report(1))) == [1, 2]
    c.observe([state(0, 0)], c.now())  # the shard lacks it after all
    assert 0 in numbers(c.report(report(2)))


def test_one_that_left_is_listed_and_does_not_count_in_the_pace() -> None:
    c = coordinator(n_items=100)
    for replica in (0, 1):
        c.report(report(replica, seconds_per_item=1.0))
    c.report(report(0, leaving=True, outcomes=(done(0),)))
    assert [(m.replica, m.left) for m in c.status().members] == [(0, True), (1, False)]
    assert c.status().members[0].items_done == 1
    # Alone it may hold three quarters of an epoch of five items, not half of that; it holds two.
    assert numbers(c.report(report(1))) == [1, 2]


def test_stop_ends_everybody() -> None:
    c = coordinator()
    c.report(report(0))
    c.stop()
    assert c.report(report(0)) == Orders(stop=True)
    assert c.report(report(1)) == Orders(stop=True)
    assert not c.status().finished


@pytest.mark.parametrize("refusal", [Refusal.NOT_FINITE, Refusal.NORM])
def test_an_item_of_poison_is_set_aside_after_three_tries(refusal: Refusal) -> None:
    c = coordinator()
    c.report(report())
    for attempt in range(1, MAX_POISONED + 1):
        assert c.take_set_aside() == {}
        orders = c.report(report(outcomes=(done(0, refusal=refusal, pushed=False),)))
        # Free again, and leased again, but for the last time.
        assert numbers(orders) == ([0] if attempt < MAX_POISONED else [2])
        assert c.status().refused == {refusal.value: attempt}
    assert c.take_set_aside() == {0: f"{refusal.value}, 3 times"}
    assert c.take_set_aside() == {}


@pytest.mark.parametrize("refusal", [Refusal.STALE, Refusal.INCARNATION])
def test_a_refusal_of_the_moment_sets_nothing_aside(refusal: Refusal) -> None:
    c = coordinator()
    c.report(report())
    for _ in range(10):
        assert numbers(c.report(report(outcomes=(done(0, refusal=refusal),)))) == [0]
    assert c.take_set_aside() == {}


def test_a_refusal_is_counted_once_by_whoever_refused() -> None:
    c = coordinator(n_shards=2)
    c.report(report())
    by_a_shard = done(0, refusal=Refusal.NOT_FINITE, pushed=True)
    by_the_replica = done(1, refusal=Refusal.NOT_FINITE, pushed=False)
    c.report(report(outcomes=(by_a_shard, by_the_replica)))
    assert c.status().refused == {"not_finite": 1}
    c.observe([state(0, 0, refused={"not_finite": 1}), state(1, 0)], c.now())
    assert c.status().refused == {"not_finite": 2}


@pytest.mark.parametrize("pushed", [True, False])
def test_poison_is_set_aside_whoever_refused_it(pushed: bool) -> None:
    c = coordinator()
    c.report(report())
    for _ in range(MAX_POISONED):
        c.report(report(outcomes=(done(0, refusal=Refusal.NORM, pushed=pushed),)))
    assert c.take_set_aside() == {0: "norm, 3 times"}


def test_only_poison_counts_towards_setting_aside() -> None:
    c = coordinator()
    c.report(report())
    refusals = [Refusal.NORM, *5 * [Refusal.STALE], Refusal.NOT_FINITE, Refusal.INCARNATION]
    for refusal in refusals:
        assert numbers(c.report(report(outcomes=(done(0, refusal=refusal),)))) == [0]
    assert c.take_set_aside() == {}
    c.report(report(outcomes=(done(0, refusal=Refusal.NORM),)))
    assert c.take_set_aside() == {0: "norm, 3 times"}


def test_an_item_is_told_to_be_set_aside_once() -> None:
    c = coordinator()
    c.report(report())
    told = []
    for _ in range(2 * MAX_POISONED):
        c.report(report(outcomes=(done(0, refusal=Refusal.NORM),)))
        told.append(c.take_set_aside())
    assert told == [{}, {}, {0: "norm, 3 times"}, {}, {}, {}]


def test_poison_is_counted_item_by_item_and_over_all_replicas() -> None:
    c = coordinator()
    for attempt in range(MAX_POISONED):
        assert c.take_set_aside() == {}
        assert numbers(c.report(report(attempt))) == [0, 1]
        refused = [done(item, refusal=Refusal.NORM) for item in (0, 1)[: attempt + 1]]
        c.report(report(attempt, outcomes=tuple(refused), leaving=True))
    assert c.take_set_aside() == {0: "norm, 3 times"}  # item 1 was refused twice


def test_a_refusal_by_one_who_lost_the_item_leaves_it_with_its_holder() -> None:
    c = coordinator()
    c.report(report(0))
    c.report(report(0, leaving=True))
    assert numbers(c.report(report(1))) == [0, 1]
    c.report(report(0, outcomes=(done(0, refusal=Refusal.STALE),), leaving=True))
    assert numbers(c.report(report(2))) == [2, 3]
    assert numbers(c.report(report(1))) == []


def test_a_refused_item_counts_as_not_done() -> None:
    c = coordinator()
    c.report(report())
    refused = done(0, refusal=Refusal.STALE, losses={"loss": 100.0})
    c.report(report(outcomes=(refused, done(1, losses={"loss": 2.0}))))
    (member,) = c.status().members
    assert (member.items_done, member.examples_done) == (1, 10)
    assert c.status().losses == {"loss": 2.0}
    assert c.take_outcomes() == [(0, refused), (0, done(1, losses={"loss": 2.0}))]
    assert c.take_outcomes() == []


def test_losses_are_smoothed_by_name() -> None:
    c = coordinator()
    c.report(report(outcomes=(done(0, losses={"loss": 4.0}),)))
    assert c.status().losses == {"loss": 4.0}
    c.report(report(outcomes=(done(1, losses={"loss": 2.0, "aux": 1.0}),)))
    found = c.status().losses
    assert found == {"loss": pytest.approx(0.95 * 4.0 + 0.05 * 2.0), "aux": pytest.approx(1.0)}
    c.report(report(outcomes=(done(2, losses={"aux": 3.0}),)))
    assert c.status().losses == {"loss": found["loss"], "aux": pytest.approx(0.95 + 0.05 * 3.0)}


def test_the_rate_is_of_the_item_pushed_last() -> None:
    c = coordinator(schedule="polynomial", power=1.0, n_items=20)  # 180 examples
    assert c.status().learning_rate == 1.0
    c.report(report(outcomes=(done(3), done(2))))
    assert c.status().learning_rate == 1 - 20 / 180
    c.report(report(outcomes=(done(9, refusal=Refusal.STALE),)))
    assert c.status().learning_rate == 1 - 20 / 180


def test_the_rate_of_a_resumed_run_is_that_of_its_next_item_until_one_is_pushed() -> None:
    c = coordinator(schedule="polynomial", power=1.0, n_items=20)
    c.observe([state(0, 7)], c.now())
    # One epoch of 45 and two items of 10 are behind it.
    assert c.status().learning_rate == pytest.approx(1 - 65 / 180)
    c.report(report(outcomes=(done(8),)))
    told = c.status().learning_rate
    c.observe([state(0, 8)], c.now())
    assert c.status().learning_rate == told == pytest.approx(1 - 75 / 180)


def test_members_are_as_last_heard_of() -> None:
    c = coordinator()
    c.report(report(3, waiting_s=0.5), at=1.0)
    c.report(report(3, waiting_s=0.25, seconds_per_item=2.0, outcomes=(done(0),)), at=4.0)
    c.report(report(3), at=6.0)  # no news of its pace: the last stands
    (member,) = c.status().members
    assert (member.replica, member.host, member.pid) == (3, "host3", 103)
    assert (member.last_seen, member.waiting_s, member.seconds_per_item) == (6.0, 0.75, 2.0)
    assert (member.items_done, member.examples_done) == (1, 10)


def test_status_is_a_copy() -> None:
    c = coordinator()
    c.report(report(0, waiting_s=1.0))
    before = c.status()
    c.report(report(0, waiting_s=1.0, outcomes=(done(0, losses={"loss": 1.0}),)))
    assert before.members[0].waiting_s == 1.0
    assert before.losses == {}


def test_status_adds_up_the_shards() -> None:
    c = coordinator(n_shards=2)
    states = [
        state(0, 6, repeated=1, staleness={0: 4, 2: 2}, refused={"stale": 1}),
        state(1, 7, repeated=2, staleness={0: 7}, refused={"stale": 1, "norm": 3}),
    ]
    c.observe(states, c.now())
    status = c.status()
    assert (status.applied, status.repeated) == (13, 3)
    assert status.staleness == {0: 11, 2: 2}
    assert status.refused == {"stale": 2, "norm": 3}
    assert (status.examples_applied, status.epochs_finished) == (55, 1)
    assert status.shards == tuple(states)


def test_what_the_shards_set_aside_counts() -> None:
    c = coordinator(n_items=5)
    c.observe([state(0, 4, set_aside={4: "why"})], c.now())
    status = c.status()
    assert (status.finished, status.examples_applied, status.examples_set_aside) == (True, 40, 5)
    assert status.items_set_aside == 1


def test_what_one_shard_has_set_aside_counts_as_an_item_and_not_yet_as_examples() -> None:
    c = coordinator(n_items=5, n_shards=2)
    c.observe([state(0, 3, set_aside={3: "why", 4: "why"}), state(1, 3)], c.now())
    status = c.status()
    assert (status.items_set_aside, status.examples_set_aside) == (2, 0)
    assert (status.finished, status.examples_applied) == (False, 30)


def test_what_could_not_be_read_is_the_examples_not_the_parts_of_pushes() -> None:
    c = coordinator(n_items=5, n_shards=2)
    assert c.status().examples_skipped == 0
    c.observe([state(0, 2, skipped=3), state(1, 1, skipped=2)], c.now())
    assert c.status().examples_skipped == 3


def test_now_counts_up() -> None:
    c = coordinator()
    first = c.now()
    c.report(report())
    assert c.now() == first + 2


# A run that is gone on with


def resumed(losses: dict[str, float] | None) -> Coordinator:
    plan = ItemPlan(n_examples=45, batch_size=10, n_push=1, n_items=20)
    schedule = Schedule(ScheduleConfig(lr=1.0), plan)
    return Coordinator(schedule, 1, lease_s=20.0, losses=losses)


def test_losses_go_on_from_those_of_the_snapshot() -> None:
    before = {"loss": 2.0, "main": 1.0}
    c = resumed(before)
    assert c.status().losses == before
    c.report(report())
    c.report(report(outcomes=(done(0, losses={"loss": 4.0, "aux1": 3.0}),)))
    share = 1 - Coordinator.SMOOTHING
    assert c.status().losses == {
        "loss": Coordinator.SMOOTHING * 2.0 + share * 4.0,
        "main": 1.0,
        "aux1": pytest.approx(3.0),
    }
    assert before == {"loss": 2.0, "main": 1.0}
    assert resumed(None).status().losses == {}


def test_leases_begin_where_the_shards_are() -> None:
    c = coordinator()
    c.observe([state(0, 7)], c.now())
    status = c.status()
    assert (status.examples_applied, status.epochs_finished) == (65, 1)
    assert numbers(c.report(report())) == [7, 8]
    assert numbers(c.report(report(1))) == [9, 10]


@pytest.mark.parametrize(
    ("applied", "examples"),
    [
        ([((0, 4),)], 40),
        ([((0, 5),)], 45),
        ([((0, 6),)], 55),
        ([((0, 4), (9, 10))], 45),
        ([((0, 10),), ((2, 6),)], 35),
        ([((0, 3),), ((5, 8),)], 0),
        ([(), ((0, 8),)], 0),
    ],
)
def test_examples_of_what_all_of_some_accounts_have(
    applied: list[tuple[tuple[int, int], ...]], examples: int
) -> None:
    c = coordinator()
    states = [state(s, 0, applied=has) for s, has in enumerate(applied)]
    assert c.examples_of(states) == examples
    assert c.status().examples_applied == 0  # nothing was observed


def test_what_is_set_aside_is_no_example_applied() -> None:
    states = [state(0, 3), state(1, 2, set_aside={2: "norm"})]
    assert coordinator(n_shards=2).examples_of(states) == 20


# A coordinator that takes the place of another


def restarted(awaited: set[int], *, lost: frozenset[int] = frozenset()) -> Coordinator:
    plan = ItemPlan(n_examples=45, batch_size=10, n_push=1, n_items=20)
    schedule = Schedule(ScheduleConfig(lr=1.0), plan)
    return Coordinator(
        schedule, 1, lease_s=20.0, first_lease=1000, awaited=awaited, lost=lost, settle_s=3.0
    )


def leases(orders: Orders) -> list[tuple[int, int]]:
    return [(item.number, item.lease) for item in orders.items]


def test_nothing_is_leased_until_all_who_hold_items_have_said_which() -> None:
    c = restarted({0, 1})
    c.observe([state(0, 2)], c.now())
    assert c.report(report(5), at=50.0) == Orders()
    assert c.report(report(0, held=((2, 17), (3, 18))), at=51.0) == Orders()
    assert leases(c.report(report(1, held=((5, 20),)), at=52.0)) == [(4, 1000)]
    assert leases(c.report(report(5), at=52.0)) == [(6, 1001), (7, 1002)]
    assert c.replica_lost(0) == [2, 3]


@pytest.mark.parametrize(("at", "settled"), [(52.9, False), (53.0, True)])
def test_who_says_nothing_is_not_awaited_for_ever(at: float, settled: bool) -> None:
    c = restarted({0, 1})
    assert c.report(report(0), at=50.0) == Orders()
    assert numbers(c.report(report(0), at=at)) == ([0, 1] if settled else [])
    # It holds what is another's by now, too.
    assert numbers(c.report(report(1, held=((1, 9), (2, 10))), at=54.0)) == []
    assert c.replica_lost(1) == ([2] if settled else [1, 2])


def test_who_is_lost_is_not_awaited() -> None:
    c = restarted({0, 1}, lost=frozenset({1}))
    assert numbers(c.report(report(0), at=50.0)) == [0, 1]
    assert c.report(report(1, held=((5, 4),)), at=50.0) == Orders(stop=True)
    c = restarted({0, 1})
    c.replica_lost(1)
    assert numbers(c.report(report(0), at=50.0)) == [0, 1]


def test_what_was_done_under_another_coordinator_is_not_leased_before_the_next_look() -> None:
    c = restarted(set())
    orders = c.report(report(0, outcomes=(done(0), done(1, refusal=Refusal.STALE))), at=1.0)
    assert numbers(orders) == [1, 2]
    assert c.take_outcomes() == [(0, done(0)), (0, done(1, refusal=Refusal.STALE))]
    c.observe([state(0, 0)], c.now())
    assert numbers(c.report(report(1), at=1.0)) == [0, 3]


def test_a_finished_run_ends_at_once() -> None:
    c = restarted({0, 1})
    c.observe([state(0, 20)], c.now())
    assert c.report(report(0), at=1.0) == Orders(stop=True)


# What dies, and what does no good


def test_a_replica_of_bad_gradients_is_dismissed() -> None:
    c = coordinator()
    c.report(report(0))
    refused = [done(item, refusal=Refusal.NORM, pushed=False) for item in (0, 1)]
    assert numbers(c.report(report(0, outcomes=tuple(refused)))) == [0, 1]
    dismissed = Orders(dismissal="3 gradients in a row were refused (not_finite)")
    bad = done(0, refusal=Refusal.NOT_FINITE)
    assert c.report(report(0, outcomes=(bad,))) == dismissed
    assert c.report(report(0)) == dismissed  # until its death is told
    assert c.take_outcomes() == [(0, refused[0]), (0, refused[1]), (0, bad)]
    assert c.replica_lost(0) == [1]  # 0 is free already
    assert c.report(report(0)) == Orders(stop=True)
    assert numbers(c.report(report(1))) == [0, 1]


def test_what_a_dismissed_replica_held_is_not_suspected() -> None:
    c = coordinator()
    for replica, items in enumerate([(5, 6, 7), (8, 9, 10), (11, 12, 13)]):
        assert numbers(c.report(report(replica))) == [0, 1]
        bad = tuple(done(item, refusal=Refusal.NORM) for item in items)
        assert c.report(report(replica, outcomes=bad)).dismissal
        assert c.replica_lost(replica) == [0, 1]
    assert numbers(c.report(report(9))) == [0, 1]
    assert c.take_set_aside() == {}


def test_an_item_that_kills_its_replicas_is_set_aside() -> None:
    c = coordinator()
    for replica in (0, 1):
        assert numbers(c.report(report(replica))) == [0, 1]
        c.replica_lost(replica)
    assert numbers(c.report(report(2))) == [0]
    assert numbers(c.report(report(3))) == [1]
    assert c.replica_lost(2) == []
    assert c.take_set_aside() == {0: "its replica died 3 times"}
    c.observe([state(0, 0)], c.now())  # it has not been told yet
    assert c.take_set_aside() == {0: "its replica died 3 times"}


def test_an_idle_replica_helps_out() -> None:
    c = coordinator(n_items=3)
    assert numbers(c.report(report(0), at=10.0)) == [0, 1]
    assert numbers(c.report(report(1), at=10.0)) == [2]
    c.observe([state(0, 0, applied=((2, 3),))], c.now())
    pace = {"seconds_per_item": 1.0}
    assert numbers(c.report(report(1, outcomes=(done(2),), **pace), at=12.0)) == []
    assert numbers(c.report(report(1, **pace), at=12.5)) == [1]
    assert numbers(c.report(report(1, held=((1, 4),), **pace), at=99.0)) == []


def test_an_answer_that_was_lost_is_given_again() -> None:
    c = coordinator()
    assert leases(c.report(report(0), at=10.0)) == [(0, 1), (1, 2)]
    assert c.report(report(0), at=10.0 + LOST_GRANT_S) == Orders()
    assert leases(c.report(report(0), at=10.5 + LOST_GRANT_S)) == [(0, 3), (1, 4)]


def test_what_a_shard_forgot_is_told_once_and_done_again() -> None:
    c = coordinator(n_items=20, n_shards=2)
    c.observe([state(0, 7), state(1, 7)], c.now())
    assert (c.status().epochs_finished, c.status().examples_applied) == (1, 65)
    c.observe([state(0, 7), state(1, 4, incarnation=2)], c.now())
    assert c.take_forgotten() == [Forgotten(1, 2, 3, 7, 4)]
    assert c.take_forgotten() == []
    assert (c.status().epochs_finished, c.status().examples_applied) == (0, 40)
    assert numbers(c.report(report(0))) == [4, 5]
