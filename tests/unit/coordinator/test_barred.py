"""What is not to be done."""

from distbelief.coordinator.accounts import ShardAccounts
from distbelief.coordinator.barred import Barred
from distbelief.types import ShardState


def state(shard: int, below: int, aside: dict[int, str], incarnation: int = 1) -> ShardState:
    return ShardState(
        shard=shard,
        incarnation=incarnation,
        begin=shard,
        end=shard + 1,
        loaded=True,
        clock=below,
        examples=0,
        skipped=0,
        applied=((0, below),) if below else (),
        set_aside=aside,
        repeated=0,
    )


def test_a_condemned_item_is_told_until_every_shard_has_it() -> None:
    barred, accounts = Barred(), ShardAccounts(2)
    barred.condemn(4, "why")
    barred.condemn(4, "again")
    assert 4 in barred
    assert barred.on_shards == {}
    assert barred.take_untold() == {4: "why"}
    assert barred.take_untold() == {}
    accounts.see([state(0, 2, {}), state(1, 2, {4: "why"})])
    assert barred.follow(accounts) == []
    assert (barred.take_untold(), barred.on_shards) == ({4: "why"}, {4: "why"})
    accounts.see([state(0, 2, {4: "why"}), state(1, 2, {4: "why"})])
    assert barred.follow(accounts) == []
    assert barred.take_untold() == {}
    # One of them comes back without it.
    accounts.see([state(0, 2, {4: "why"}), state(1, 2, {}, 2)])
    assert barred.follow(accounts) == []
    assert barred.take_untold() == {4: "why"}


def test_what_one_shard_has_set_aside_the_others_are_told_whoever_said_so() -> None:
    barred, accounts = Barred(), ShardAccounts(2)
    accounts.see([state(0, 2, {4: "why"}), state(1, 2, {})])
    assert barred.follow(accounts) == []
    assert 4 in barred
    assert barred.take_untold() == {4: "why"}


def test_what_the_only_shard_forgot_is_to_be_done_after_all() -> None:
    barred, accounts = Barred(), ShardAccounts(2)
    accounts.see([state(0, 2, {4: "why", 5: "why"}), state(1, 2, {})])
    barred.follow(accounts)
    accounts.see([state(0, 2, {}, 2), state(1, 2, {})])
    assert barred.follow(accounts) == [4, 5]
    assert 4 not in barred
    assert (barred.take_untold(), barred.on_shards) == ({}, {})


def test_what_every_shard_has_applied_is_condemned_no_more() -> None:
    barred, accounts = Barred(), ShardAccounts(2)
    barred.condemn(4, "why")
    accounts.see([state(0, 5, {}), state(1, 5, {})])
    assert barred.follow(accounts) == [4]
    assert 4 not in barred
    assert barred.take_untold() == {}
