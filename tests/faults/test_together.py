"""Several processes die together, or one after another, inside one process."""

from __future__ import annotations

import time
from typing import Any

import pytest

from distbelief.errors import ProcessLostError, TransportError
from distbelief.faults.points import Fault
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.local import LocalWorld


def dies(point: str, who: str, nth: int, start: int = 1) -> Fault:
    return Fault(point, who, nth, "die", start)


def recovered(ended: Any) -> list[tuple[str, str]]:
    return [(recovery["what"], recovery["how"]) for recovery in ended.result["recoveries"]]


class Patient(LocalWorld):
    """Starts another coordinator once shard 1 is down too."""

    def start_coordinator(self, spec: HostSpec) -> None:
        give_up_at = time.monotonic() + 60.0
        with self.shard_at(self.serving.shards[1]) as shard:
            while True:
                try:
                    shard.state()
                except (ProcessLostError, TransportError):
                    return super().start_coordinator(spec)
                assert time.monotonic() < give_up_at, "the shard has not died"
                time.sleep(0.01)


def test_the_coordinator_and_a_shard(small: Any, hold: Any) -> None:
    """The coordinator dies after two items; before another one comes, so does the shard."""
    ended = small.run(
        dies("before_lease", "coordinator", 8),
        dies("before_apply", "shard 1", 3),
        holds=[hold(lambda run: run.report is None, after=2)],
        world=Patient,
    )
    ended.require_all(small.n_examples)
    assert ended.audit.forgotten == 2
    assert sorted(recovered(ended)) == [("shard 1", "snapshot"), ("the coordinator", "anew")]
    assert ended.incarnations == (1, 2)


@pytest.mark.parametrize(("nth", "redone"), [(6, 10), (1, 5)])
def test_a_shard_twice_in_a_row(small: Any, hold: Any, nth: int, redone: int) -> None:
    """The second time after some pushes, or at the very first one."""
    ended = small.run(
        dies("before_apply", "shard 1", 6),
        dies("before_apply", "shard 1", nth, start=2),
        holds=[hold(lambda run: run.clock(1) >= 4, after=4)],
    )
    ended.require_all(small.n_examples)
    assert ended.audit.forgotten == redone
    assert recovered(ended) == 2 * [("shard 1", "snapshot")]
    assert ended.incarnations == (1, 3)


@pytest.mark.parametrize("transport", ["direct", "grpc"])
def test_both_shards(small: Any, hold: Any, transport: str) -> None:
    ended = small.run(
        dies("before_apply", "shard 0", 6),
        dies("after_apply_before_answer", "shard 1", 6),
        holds=[hold(lambda run: min(run.clock(0), run.clock(1)) >= 4, after=4)],
        transport=transport,
    )
    ended.require_all(small.n_examples)
    assert ended.audit.forgotten == 5 + 6
    assert sorted(recovered(ended)) == [("shard 0", "snapshot"), ("shard 1", "snapshot")]
    forgot = ended.told("shard_forgot")
    assert sorted(e["shard"] for e in forgot) == [0, 1]
    assert all(4 <= e["items"] <= 6 for e in forgot)
    assert ended.incarnations == (2, 2)


def both_have_twins(run: Any) -> bool:
    return len(run.world.serving.twins) == 2


def test_a_primary_and_the_twin_of_another_shard(small: Any, hold: Any) -> None:
    ended = small.run(
        dies("before_apply", "shard 0", 12),
        dies("before_apply", "shard 1", 8, start=2),
        holds=[hold(both_have_twins, after=4)],
        changes={"shard_replication": 2},
    )
    ended.require_all(small.n_examples)
    assert ended.audit.forgotten == 0
    assert recovered(ended) == [("shard 0", "twin")]
    assert ended.incarnations == (2, 1)
    (lost,) = ended.told("shard_lost", shard=1)
    assert (lost["role"], lost["incarnation"]) == ("twin", 2)


def test_a_primary_and_its_own_twin(small: Any, hold: Any) -> None:
    """The twin dies at the sixth push that it has, of which the primary then dies too."""
    ended = small.run(
        dies("after_apply_before_answer", "shard 1", 6, start=2),
        dies("after_mirror_before_apply", "shard 1", 6),
        holds=[hold(both_have_twins, after=4)],
        changes={"shard_replication": 2},
    )
    ended.require_all(small.n_examples)
    assert recovered(ended) == [("shard 1", "snapshot")]
    assert ended.incarnations[0] == 1
    assert ended.incarnations[1] > 2
    assert {e["role"] for e in ended.told("shard_lost", shard=1)} == {"primary", "twin"}
    assert ended.audit.forgotten > 0


def test_a_replica_and_both_primaries(small: Any, hold: Any) -> None:
    ended = small.run(
        dies("before_push", "replica 0", 5),
        dies("after_mirror_before_apply", "shard 0", 8),
        dies("after_apply_before_answer", "shard 1", 12),
        holds=[
            hold(both_have_twins, after=4),
            hold(lambda run: run.told("replica_lost"), after=6, who="replica-1"),
        ],
        changes={"shard_replication": 2},
    )
    ended.require_all(small.n_examples)
    assert ended.audit.forgotten == 0
    whats = sorted(recovery["what"] for recovery in ended.result["recoveries"])
    assert whats == ["replica 0", "shard 0", "shard 1"]
    assert ended.incarnations == (2, 2)
