"""Random histories of a whole run: whatever dies and whatever is lost, every item is done once.

Shards are applied sets with snapshots, replicas queues of leases; time is a number. Everything
follows from a seed.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

import pytest

from distbelief.config import ScheduleConfig
from distbelief.coordinator.coordinator import Coordinator
from distbelief.coordinator.schedule import Schedule
from distbelief.items import ItemPlan
from distbelief.server.applied import ItemSet
from distbelief.types import ItemOutcome, LeasedItem, Refusal, ReplicaReport, ShardState

PER_EPOCH, N_ITEMS = 12, 40
PLAN = ItemPlan(n_examples=10 * PER_EPOCH - 5, batch_size=10, n_push=1, n_items=N_ITEMS)
SCHEDULE = Schedule(ScheduleConfig(lr=1.0), PLAN)
LEASES_PER_START = 2**32


@dataclass
class Shard:
    """Applies each item once, as its log has it; goes back to a snapshot when it is killed."""

    number: int
    log: list[int] = field(default_factory=list)
    applied: ItemSet = field(default_factory=ItemSet)
    aside: dict[int, str] = field(default_factory=dict)
    incarnation: int = 1

    def push(self, item: int) -> None:
        if item not in self.aside and self.applied.add(item):
            self.log.append(item)

    def set_aside(self, item: int, why: str) -> None:
        if item not in self.applied:
            self.aside.setdefault(item, why)

    def has(self) -> set[int]:
        return set(self.applied) | set(self.aside)

    def state(self) -> ShardState:
        return ShardState(
            shard=self.number,
            incarnation=self.incarnation,
            begin=self.number,
            end=self.number + 1,
            loaded=True,
            clock=len(self.log),
            examples=0,
            skipped=0,
            applied=self.applied.intervals,
            set_aside=dict(self.aside),
            repeated=0,
        )


@dataclass
class Replica:
    """Computes what it holds, one item at a time; pushes one while it is at the next."""

    number: int
    pace_s: float
    held: deque[LeasedItem] = field(default_factory=deque)
    outcomes: list[ItemOutcome] = field(default_factory=list)
    pushing: LeasedItem | None = None
    done: int = 0

    def report(self) -> ReplicaReport:
        told, self.outcomes = tuple(self.outcomes), []
        return ReplicaReport(
            replica=self.number,
            host="h",
            pid=1,
            held=tuple((item.number, item.lease) for item in self.held),
            outcomes=told,
            seconds_per_item=self.pace_s if self.done else None,
        )


class World:
    """A run, its processes and its accidents."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.shards = [Shard(number) for number in range(self.dice.randint(1, 3))]
        self.snapshots = [deepcopy(self.shards)]
        self.poison = set(self.dice.sample(range(N_ITEMS), self.dice.choice([0, 0, 1])))
        self.killers = set(self.dice.sample(range(N_ITEMS), self.dice.choice([0, 0, 1])))
        self.at, self.start, self.next_replica = 1000.0, 0, 0
        self.replicas: dict[int, Replica] = {}
        self.lost: set[int] = set()
        self.late: list[int] = []
        """Items whose pushes are on their way though their replica has died."""
        self.deaths: Counter[int] = Counter()
        self.leases: set[int] = set()
        self.polls: list[tuple[int, list[ShardState]]] = []
        self.seen: list[tuple[int, set[int]]] = [(1, set()) for _ in self.shards]
        self.forgotten: list[tuple[int, int, int]] = []
        self.told_forgotten: list[tuple[int, int, int]] = []
        for _ in range(self.dice.randint(1, 3)):
            self.start_replica()
        self.start_coordinator()

    # What replicas do

    def start_replica(self) -> None:
        pace_s = self.dice.choice([0.5, 1.0, 4.0])
        self.replicas[self.next_replica] = Replica(self.next_replica, pace_s)
        self.next_replica += 1

    def report(self, replica: Replica, *, answer_is_lost: bool = False) -> None:
        alone = {i for i in range(N_ITEMS) if i in self.coordinator._ledger._suspects}
        orders = self.coordinator.report(replica.report(), self.at)
        numbers = [item.number for item in orders.items]
        until = (self.coordinator._ledger.done.below // PER_EPOCH + 2) * PER_EPOCH
        for item in orders.items:
            assert item.lease not in self.leases
            assert item.lease > max(self.leases, default=0)
            assert item.number < until
            assert item.number not in self.coordinator._ledger.done
            assert item.number not in self.coordinator.status().shards[0].set_aside
            self.leases.add(item.lease)
            holders = self.coordinator._ledger._leases.of_item(item.number)
            assert 1 <= len({lease.replica for lease in holders}) == len(holders) <= 2
        if alone & set(numbers):
            assert len(numbers) == 1
            assert not replica.held
        if orders.dismissal:
            self.lose(replica)
        elif not orders.stop and not answer_is_lost:
            replica.held.extend(orders.items)

    def compute(self, replica: Replica) -> None:
        """One item more: the push before it has arrived, and its own begins."""
        self.settle(replica)
        if not replica.held:
            return
        item = replica.held.popleft()
        self.at += 0.1
        replica.done += 1
        if item.number in self.killers:
            replica.held.appendleft(item)
            self.lose(replica)
        elif item.number in self.poison:
            self.note(replica, item, Refusal.NOT_FINITE)
        else:
            replica.pushing = item

    def settle(self, replica: Replica) -> None:
        if replica.pushing is not None:
            item, replica.pushing = replica.pushing, None
            refused = self.dice.random() < 0.05
            # A shard may refuse its part while others take theirs.
            for shard in self.shards[refused:]:
                shard.push(item.number)
            self.note(replica, item, Refusal.STALE if refused else "")

    def note(self, replica: Replica, item: LeasedItem, refusal: str) -> None:
        pushed = refusal != Refusal.NOT_FINITE
        replica.outcomes.append(
            ItemOutcome(item=item.number, examples=10, losses={}, refusal=refusal, pushed=pushed)
        )

    def lose(self, replica: Replica) -> None:
        """Its last push may have reached some shards, or be on its way still."""
        del self.replicas[replica.number]
        self.lost.add(replica.number)
        if replica.pushing is not None:
            for shard in self.dice.sample(self.shards, self.dice.randint(0, len(self.shards))):
                shard.push(replica.pushing.number)
            self.late.append(replica.pushing.number)
        self.deaths.update(self.coordinator._ledger.held_by(replica.number))
        self.coordinator.replica_lost(replica.number)
        self.start_replica()

    # What the coordinator does

    def start_coordinator(self) -> None:
        self.start += 1
        self.polls.clear()
        first = self.start == 1
        self.coordinator = Coordinator(
            SCHEDULE,
            len(self.shards),
            lease_s=8.0,
            first_lease=1 + self.start * LEASES_PER_START,
            awaited=frozenset() if first else frozenset(self.replicas),
            lost=frozenset(self.lost),
        )
        self.seen = [(0, set()) for _ in self.shards]
        self.ask()
        self.answer()

    def ask(self) -> None:
        self.polls.append((self.coordinator.now(), [shard.state() for shard in self.shards]))

    def answer(self) -> None:
        if not self.polls:
            return
        asked_at, states = self.polls.pop(0)
        self.coordinator.observe(states, asked_at)
        for number, state in enumerate(states):
            incarnation, had = self.seen[number]
            has = set(ItemSet(state.applied)) | set(state.set_aside)
            if incarnation != state.incarnation and had - has:
                self.forgotten.append((number, state.incarnation, len(had - has)))
            self.seen[number] = state.incarnation, has
        self.told_forgotten += [
            (f.shard, f.incarnation, f.items) for f in self.coordinator.take_forgotten()
        ]
        self.check(states)
        if self.dice.random() < 0.8:
            self.tell_set_aside()

    def tell_set_aside(self) -> None:
        for item, why in self.coordinator.take_set_aside().items():
            # A shard may be away: it is told when the next look finds that it lacks the item.
            for shard in self.shards if self.dice.random() < 0.7 else self.shards[1:]:
                shard.set_aside(item, why)

    def check(self, states: list[ShardState]) -> None:
        status = self.coordinator.status()
        sets = [set(ItemSet(s.applied)) | set(s.set_aside) for s in states]
        aside = {i for s in states for i in s.set_aside}
        applied = set.intersection(*(set(ItemSet(s.applied)) for s in states))
        done = set.intersection(*sets)
        assert status.examples_applied == sum(
            PLAN.item(i).n_examples for i in done - (aside - applied)
        )
        assert status.items_set_aside == len(aside - applied)
        assert status.finished == (done == set(range(N_ITEMS)))

    # What happens to them

    def save(self) -> None:
        self.snapshots.append(deepcopy(self.shards))

    def kill_shard(self) -> None:
        shard = self.dice.choice(self.shards)
        back = deepcopy(self.dice.choice(self.snapshots[-2:])[shard.number])
        assert set(back.log) <= set(shard.log)
        back.incarnation = shard.incarnation + 1
        self.shards[shard.number] = back
        # Snapshots of what did not survive are none any more.
        while not set(self.snapshots[-1][shard.number].log) <= set(back.log):
            self.snapshots.pop()

    def promote_twin(self) -> None:
        self.dice.choice(self.shards).incarnation += 1

    def one_of_the_replicas(self) -> Replica:
        return self.dice.choice(list(self.replicas.values()))

    def step(self) -> None:
        """Something happens."""
        self.at += self.dice.choice([0.0, 0.1, 1.0])
        happenings: list[tuple[float, Callable[[], None]]] = [
            (6, lambda: self.report(self.one_of_the_replicas())),
            (9, lambda: self.compute(self.one_of_the_replicas())),
            (3, self.ask),
            (3, self.answer),
            (0.6, self.save),
            (0.5, self.kill_shard),
            (0.2, self.promote_twin),
            (0.5, lambda: self.lose(self.one_of_the_replicas())),
            (0.4, self.start_coordinator),
            (0.2, lambda: self.report(self.one_of_the_replicas(), answer_is_lost=True)),
            (0.5, self.push_late),
        ]
        weights = [weight for weight, _ in happenings]
        self.dice.choices([what for _, what in happenings], weights)[0]()

    def push_late(self) -> None:
        if self.late:
            item = self.late.pop(self.dice.randrange(len(self.late)))
            for shard in self.shards:
                shard.push(item)

    def drain(self) -> int:
        """Nothing happens any more but what the items themselves do; returns the rounds."""
        for rounds in range(600):
            self.at += 0.5
            for replica in list(self.replicas.values()):
                self.report(replica)
                if replica.number in self.replicas:
                    self.compute(replica)
                if replica.number in self.replicas and not replica.held:
                    self.settle(replica)
            self.polls.clear()
            self.ask()
            self.answer()
            if self.coordinator.status().finished:
                return rounds
        pytest.fail("the run does not end")


def live(seed: int) -> World:
    world = World(seed)
    for _ in range(world.dice.randint(0, 400)):
        world.step()
    world.drain()
    return world


@pytest.mark.parametrize("part", range(3))
def test_every_item_is_done_on_every_shard(part: int) -> None:
    for seed in range(80 * part, 80 * part + 80):
        world = live(seed)
        for shard in world.shards:
            assert shard.has() == set(range(N_ITEMS)), seed
            assert len(set(shard.log)) == len(shard.log), seed
            assert not set(shard.log) & set(shard.aside), seed
            for item in shard.aside:
                to_blame = item in world.poison or world.deaths[item] >= 3
                assert to_blame, (seed, item)
            assert not (world.poison | world.killers) & set(shard.log)
        assert world.told_forgotten == world.forgotten, seed
        for replica in world.replicas.values():
            orders = world.coordinator.report(replica.report(), world.at)
            assert orders.stop
            assert orders.items == ()


def test_histories_have_all_that_can_happen() -> None:
    worlds = [live(seed) for seed in range(60)]
    assert any(world.forgotten for world in worlds)
    assert any(world.start > 2 for world in worlds)
    assert any(world.lost for world in worlds)
    assert any(shard.aside for world in worlds for shard in world.shards)
    assert any(n_deaths >= 3 for world in worlds for n_deaths in world.deaths.values())
