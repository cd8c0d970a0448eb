"""A process dies at each named point, inside one process; what it held is neither lost nor doubled.

The model is linear, and costs nothing. Replicas are held in their steps where something must have
come before the fault, so that it strikes at the same moment whatever the machine does meanwhile.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from distbelief.faults.points import Fault
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.local import LocalWorld


def only_recovery(ended: Any) -> dict[str, Any]:
    (recovery,) = ended.result["recoveries"]
    assert isinstance(recovery, dict)
    assert recovery["seconds"] is not None
    return recovery


@pytest.mark.parametrize(
    ("point", "nth", "transport"),
    [
        ("before_compute", 3, "direct"),
        ("before_push", 3, "direct"),
        ("between_shards_of_a_push", 3, "direct"),
        ("between_shards_of_a_push", 3, "grpc"),
        ("after_push", 3, "grpc"),
        ("before_report", 2, "direct"),
    ],
)
def test_a_replica_is_replaced_and_nobody_waits_for_it(
    small: Any, hold: Any, point: str, nth: int, transport: str
) -> None:
    # The other one leaves it something to die over; then it does more than an epoch while the
    # replacement has not done its first item; then it leaves something to that one.
    holds = [
        hold(lambda run: run.told("replica_lost", replica=0), after=2, who="replica-1"),
        hold(lambda run: run.examples() >= 32 * 4, who="replica-2"),
        hold(lambda run: run.told("replica_replaced"), after=40, who="replica-1"),
    ]
    ended = small.run(Fault(point, "replica 0", nth, "die"), holds=holds, transport=transport)
    ended.require_all(small.n_examples)
    assert ended.audit.forgotten == 0
    recovery = only_recovery(ended)
    assert (recovery["what"], recovery["cause"]) == (
        "replica 0",
        f"it died at {point}",
    )
    (lost,) = ended.told("replica_lost")
    assert recovery["items_leased_again"] == len(lost["items_returned"])
    (replaced,) = ended.told("replica_replaced")
    assert replaced["replica"] == 2


class Early:
    """The shard has the run's first snapshot only."""

    every, n_saved, restored = 100_000, 0, 0

    @staticmethod
    def holds(hold: Any) -> list[Any]:
        return [hold(lambda run: run.clock(1) >= 4, after=4)]


class Late:
    """It has three: of the start, and after 16 and 32 items, at which the replicas wait for it."""

    every, n_saved, restored = 16 * 4, 32, 2

    @staticmethod
    def holds(hold: Any) -> list[Any]:
        return [
            hold(lambda run: run.snapshot() >= 1, after=16),
            hold(lambda run: run.snapshot() >= 2, after=32),
            hold(lambda run: run.clock(1) >= 36, after=36),
        ]


@pytest.mark.parametrize(
    ("when", "point", "logged", "transport"),
    [
        (Early, "before_apply", 5, "direct"),
        (Early, "after_apply_before_log", 5, "direct"),
        (Early, "after_apply_before_answer", 6, "direct"),
        (Late, "before_apply", 5, "direct"),
        (Late, "after_apply_before_log", 5, "direct"),
        (Late, "after_apply_before_answer", 6, "grpc"),
    ],
)
def test_a_single_shard_starts_from_its_newest_snapshot(
    small: Any,
    hold: Any,
    when: type[Early] | type[Late],
    point: str,
    logged: int,
    transport: str,
) -> None:
    """At its sixth push since the snapshot, four of which the coordinator has seen."""
    ended = small.run(
        Fault(point, "shard 1", when.n_saved + 6, "die"),
        holds=when.holds(hold),
        changes={"snapshot_every": when.every},
        transport=transport,
    )
    check_forgotten(small, ended, n_saved=when.n_saved, logged=logged, seen=4)
    assert only_recovery(ended)["snapshot"] == when.restored


@pytest.mark.parametrize(("nth", "n_saved"), [(2, 0), (4, 32)])
def test_a_single_shard_dies_while_it_is_saved(
    small: Any, hold: Any, nth: int, n_saved: int
) -> None:
    """At a snapshot that is due after every sixteenth item, at which the replicas wait."""
    numbers = range(1, n_saved // 16 + 1)
    holds = [hold(lambda run, k=k: run.snapshot() >= k, after=16 * k) for k in numbers]
    holds.append(hold(lambda run: run.incarnation(1) == 2, after=n_saved + 16))
    ended = small.run(
        Fault("before_save", "shard 1", nth, "die"),
        holds=holds,
        changes={"snapshot_every": 16 * 4},
    )
    check_forgotten(small, ended, n_saved=n_saved, logged=16, seen=16)
    assert ended.told("snapshot_failed")
    assert only_recovery(ended)["snapshot"] == nth - 2


@pytest.mark.parametrize("n_twins", [0, 1])
def test_a_shard_dies_when_all_is_done(small: Any, hold: Any, n_twins: int) -> None:
    """While the run waits for a replica that has not got through its first item."""
    holds = [
        hold(lambda run: run.told("replica_joined", replica=1), after=2, who="replica-0"),
        hold(twins(2 * n_twins), after=4, who="replica-0"),
        hold(lambda run: run.told("shard_lost", shard=1), who="replica-1"),
    ]
    ended = small.run(
        Fault("before_save", "shard 1", 2, "die"),
        holds=holds,
        changes={"snapshot_every": small.n_examples, "shard_replication": 1 + n_twins},
    )
    if n_twins:
        check_nothing_redone(small, ended)
    else:
        # The late replica may bring what it holds before it is seen that the shard lacks it.
        n = small.n_items
        check_forgotten(small, ended, n_saved=0, logged=n, seen=n - 2)
        assert only_recovery(ended)["snapshot"] == 0


def check_forgotten(small: Any, ended: Any, *, n_saved: int, logged: int, seen: int) -> None:
    """What the shard had logged since its snapshot is redone; what was seen of it is counted."""
    ended.require_all(small.n_examples)
    assert ended.audit.forgotten == logged
    recovery = only_recovery(ended)
    assert (recovery["what"], recovery["how"]) == ("shard 1", "snapshot")
    assert ended.incarnations == (1, 2)
    (forgot,) = ended.told("shard_forgot")
    assert (forgot["shard"], forgot["incarnation"]) == (1, 2)
    assert forgot["items"] == recovery["items_leased_again"]
    assert seen <= forgot["items"] <= logged
    assert forgot["from_clock"] >= n_saved + seen


def twins(n: int) -> Any:
    return lambda run: len(run.world.serving.twins) >= n


@pytest.mark.parametrize(
    ("point", "transport"),
    [
        ("before_apply", "direct"),
        ("before_mirror", "direct"),
        ("after_mirror_before_apply", "direct"),
        ("after_mirror_before_apply", "grpc"),
        ("after_apply_before_log", "direct"),
        ("after_apply_before_answer", "grpc"),
    ],
)
def test_a_twin_takes_the_place_of_its_primary(
    small: Any, hold: Any, point: str, transport: str
) -> None:
    """The replicas wait after the fourth item for the twins, which no push has passed before."""
    nth = 8 if "mirror" in point else 12
    ended = small.run(
        Fault(point, "shard 1", nth, "die"),
        holds=[hold(twins(2), after=4)],
        changes={"shard_replication": 2},
        transport=transport,
    )
    check_nothing_redone(small, ended)


def test_a_twin_takes_the_place_of_a_primary_that_is_saved(small: Any, hold: Any) -> None:
    ended = small.run(
        Fault("before_save", "shard 1", 2, "die"),
        holds=[
            hold(twins(2), after=4),
            hold(lambda run: run.incarnation(1) == 2, after=16),
        ],
        changes={"shard_replication": 2, "snapshot_every": 16 * 4},
    )
    check_nothing_redone(small, ended)
    assert ended.told("snapshot_failed")


def check_nothing_redone(small: Any, ended: Any) -> None:
    ended.require_all(small.n_examples)
    assert ended.audit.forgotten == 0
    assert not ended.told("shard_forgot")
    recovery = only_recovery(ended)
    assert (recovery["what"], recovery["how"]) == ("shard 1", "twin")
    assert recovery["items_leased_again"] == 0
    assert ended.told("shard_started", shard=1, role="twin", incarnation=2)
    assert ended.incarnations == (1, 2)
    assert ended.told("shard_lost", shard=1, role="primary", incarnation=1)
    assert ended.told("shard_started", shard=1, role="twin", incarnation=3)


@pytest.mark.parametrize(
    "point", ["before_apply", "after_apply_before_log", "after_apply_before_answer"]
)
def test_a_primary_does_not_wait_for_a_twin_that_died(small: Any, hold: Any, point: str) -> None:
    """The twin dies at the sixth push that it is given; another one takes its place."""
    ended = small.run(
        Fault(point, "shard 1", 6, "die", start=2),
        holds=[
            hold(twins(2), after=4),
            # Before the end, so that the new one has a place to take.
            hold(lambda run: twins(2)(run) and run.told("shard_lost", shard=1), after=60),
        ],
        changes={"shard_replication": 2},
    )
    ended.require_all(small.n_examples)
    assert ended.audit.forgotten == 0
    assert ended.audit.twins == 2
    assert ended.incarnations == (1, 1)
    assert ended.result["recoveries"] == []
    (lost,) = ended.told("shard_lost")
    assert (lost["shard"], lost["role"], lost["incarnation"]) == (1, "twin", 2)


@pytest.mark.parametrize(
    ("point", "nth"),
    [("before_lease", 8), ("before_observe", 3), ("after_observe", 3), ("before_manifest", 2)],
)
def test_another_coordinator_takes_its_place(small: Any, hold: Any, point: str, nth: int) -> None:
    """A snapshot is due after 16 items; the replicas wait for the coordinator after 20."""
    ended = small.run(
        Fault(point, "coordinator", nth, "die"),
        holds=[hold(lambda run: run.told("coordinator_lost"), after=20)],
        changes={"snapshot_every": 16 * 4},
    )
    ended.require_all(small.n_examples)
    check_coordinator(ended, point)


class NoHurry(LocalWorld):
    """Starts another coordinator once the shards have applied more than ``n`` items."""

    n = 2

    def start_coordinator(self, spec: HostSpec) -> None:
        give_up_at = time.monotonic() + 60.0
        for endpoint in self.serving.shards:
            with self.shard_at(endpoint) as shard:
                while shard.state().clock <= self.n:
                    assert time.monotonic() < give_up_at, "nothing was applied meanwhile"
                    time.sleep(0.01)
        super().start_coordinator(spec)


def test_replicas_go_on_without_a_coordinator(small: Any, hold: Any) -> None:
    """They do two items before it dies; the third is applied while there is none."""
    ended = small.run(
        Fault("before_lease", "coordinator", 8, "die"),
        holds=[hold(lambda run: run.report is None, after=NoHurry.n)],
        world=NoHurry,
    )
    ended.require_all(small.n_examples)
    check_coordinator(ended, "before_lease")


def check_coordinator(ended: Any, point: str) -> None:
    assert ended.audit.forgotten == 0
    recovery = only_recovery(ended)
    assert (recovery["what"], recovery["cause"]) == ("the coordinator", f"it died at {point}")
    assert ended.told("coordinator_lost", start=1)
    assert ended.told("coordinator_started", start=2)
