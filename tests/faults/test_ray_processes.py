"""Real processes of a run on Ray are killed, stopped and woken, and whole nodes are taken away."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from distbelief.audit import Audit, audit
from distbelief.config import TrainConfig
from distbelief.runtime import ray_groups, ray_staff
from distbelief.serving import Endpoint, Serving, read_serving

pytestmark = pytest.mark.timeout(300)

OBJECT_STORE_NBYTES = 80 << 20
Start = Callable[[TrainConfig], Any]
Make = Callable[..., TrainConfig]
LONG = {"epochs": 10_000, "drawn_train": 800, "evaluate": False, "snapshot_s": 2.0}


def add_node(cluster: Cluster, n_shards: int, n_replicas: int) -> Any:
    return cluster.add_node(
        num_cpus=1,
        resources={"shard": n_shards, "replica": n_replicas},
        object_store_memory=OBJECT_STORE_NBYTES,
        include_dashboard=False,
    )


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Three nodes, each with room for two shards and two replicas; this process has not joined."""
    found = Cluster()
    for _ in range(3):
        add_node(found, 2, 2)
    yield found
    found.shutdown()


def serving_of(run: Any) -> Serving:
    found = read_serving(run.storage)
    assert found is not None
    return found


def wait_until(condition: Callable[[], bool], run: Any) -> None:
    """The test's timeout is the limit; an error of the run ends the wait."""
    while not condition():
        run.check()
        time.sleep(0.1)


def has_worked(run: Any, n_replicas: int = 2) -> None:
    for replica in range(n_replicas):
        run.wait_for(lambda e, r=replica: e["kind"] == "items" and r in e["replicas"])


def went_on(run: Any) -> None:
    """Some epochs have been finished since now."""
    now = len(run.events())
    run.wait_for(lambda e: e["kind"] == "epoch", after=now)
    run.wait_for(lambda e: e["kind"] == "epoch", after=now + 1)


def ended_cleanly(run: Any) -> tuple[dict[str, Any], Audit]:
    result = run.stop()
    assert result["status"] == "interrupted"
    found = audit(Path(result["run_dir"]))
    assert found.clean, found.counter_example
    assert found.examples == result["examples_applied"]
    return result, found


def recovery_of(result: dict[str, Any], what: str) -> dict[str, Any]:
    found = [r for r in result["recoveries"] if r["what"] == what]
    assert found, result["recoveries"]
    assert found[0]["seconds"] is not None
    return dict(found[0])


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is more than a corpse."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return False


def twin_of(run: Any, shard: int) -> Endpoint | None:
    return next((e for e in serving_of(run).twins if e.shard == shard), None)


def test_a_single_shard_and_the_coordinator_are_killed(tiny: Make, background: Start) -> None:
    run = background(tiny(address="local", replicas=2, shards=2, **LONG))
    has_worked(run)
    run.wait_for(lambda e: e["kind"] == "snapshot" and e["number"] >= 1)
    before = serving_of(run)
    os.kill(before.shards[1].pid, signal.SIGKILL)
    run.wait_for(lambda e: e["kind"] == "recovered" and e["what"] == "shard 1")
    coordinator = run.wait_for(lambda e: e["kind"] == "coordinator_started")
    os.kill(coordinator["pid"], signal.SIGKILL)
    run.wait_for(lambda e: e["kind"] == "recovered" and e["what"] == "the coordinator")
    went_on(run)
    result, found = ended_cleanly(run)
    after = serving_of(run)
    assert after.shards[0] == before.shards[0], "the other shard is what it was"
    assert after.shards[1].incarnation == before.shards[1].incarnation + 1
    assert after.coordinator == 2
    shard = recovery_of(result, "shard 1")
    assert shard["how"] == "snapshot"
    assert found.forgotten >= shard["items_leased_again"]
    recovery_of(result, "the coordinator")
    assert not [e for e in run.events() if e["kind"] == "replica_lost"]


@pytest.mark.slow
def test_a_shard_with_a_twin_is_killed_and_then_its_twin(tiny: Make, background: Start) -> None:
    run = background(tiny(address="local", replicas=2, shards=2, shard_replication=2, **LONG))
    wait_until(lambda: read_serving(run.storage) is not None, run)
    wait_until(lambda: len(serving_of(run).twins) == 2, run)
    has_worked(run)
    twin = twin_of(run, 0)
    assert twin is not None
    os.kill(serving_of(run).shards[0].pid, signal.SIGKILL)
    run.wait_for(lambda e: e["kind"] == "recovered" and e["what"] == "shard 0")
    assert serving_of(run).shards[0] == twin
    wait_until(lambda: twin_of(run, 0) is not None, run)  # a new twin
    went_on(run)
    second = twin_of(run, 0)
    assert second is not None
    os.kill(second.pid, signal.SIGKILL)
    wait_until(lambda: twin_of(run, 0) not in (None, second), run)
    went_on(run)
    result, found = ended_cleanly(run)
    assert recovery_of(result, "shard 0")["how"] == "twin"
    assert recovery_of(result, "shard 0")["items_leased_again"] == 0
    assert found.forgotten == 0
    assert not [e for e in run.events() if e["kind"] == "shard_forgot"]


def test_a_node_with_a_shard_and_a_replica_on_it_is_lost(
    tiny: Make, background: Start, cluster: Cluster
) -> None:
    extra = add_node(cluster, 2, 2)
    cluster.wait_for_nodes()
    run = background(tiny(address=cluster.address, replicas=4, shards=4, **LONG))
    has_worked(run, 4)
    run.wait_for(lambda e: e["kind"] == "snapshot" and e["number"] >= 1)
    shard = next(e for e in serving_of(run).shards if e.node == extra.node_id)
    replicas = {
        e["replica"]
        for e in run.events()
        if e["kind"] == "replica_placed" and e["node"] == extra.node_id
    }
    assert replicas
    cluster.remove_node(extra)
    run.wait_for(lambda e: e["kind"] == "recovered" and e["what"] == f"shard {shard.shard}")
    for replica in replicas:
        run.wait_for(
            lambda e, r=replica: e["kind"] == "replica_replaced" and e["what"] == f"replica {r}"
        )
    went_on(run)
    result, _ = ended_cleanly(run)
    assert serving_of(run).shards[shard.shard].node != extra.node_id
    recovery_of(result, f"shard {shard.shard}")


@pytest.fixture
def spared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is given up is not killed: as on a node that the supervisor cannot reach."""
    killed: list[Any] = []
    kill, remove = ray_staff.ray.kill, ray_groups.remove_placement_group
    monkeypatch.setattr(ray_staff.ray, "kill", killed.append)
    monkeypatch.setattr(ray_groups, "remove_placement_group", killed.append)
    yield
    monkeypatch.setattr(ray_staff.ray, "kill", kill)
    monkeypatch.setattr(ray_groups, "remove_placement_group", remove)


def stopped_and_woken(run: Any, pid: int, replaced: Callable[[], bool]) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(replaced, run)
        went_on(run)
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.usefixtures("spared")
def test_a_replica_is_stopped_and_woken_after_another_has_its_place(
    tiny: Make, background: Start, cluster: Cluster
) -> None:
    run = background(tiny(address=cluster.address, replicas=2, shards=2, **LONG))
    has_worked(run)
    joined = run.wait_for(lambda e: e["kind"] == "replica_joined" and e["replica"] == 0)
    stopped_and_woken(
        run,
        joined["pid"],
        lambda: any(e["kind"] == "replica_replaced" for e in run.events()),
    )
    went_on(run)
    result, _ = ended_cleanly(run)
    assert "did not say anything" in recovery_of(result, "replica 0")["cause"]


@pytest.mark.usefixtures("spared")
@pytest.mark.parametrize("replication", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_shard_is_stopped_and_woken_after_another_serves(
    tiny: Make, background: Start, cluster: Cluster, replication: int
) -> None:
    config = tiny(
        address=cluster.address, replicas=2, shards=1, shard_replication=replication, **LONG
    )
    run = background(config)
    has_worked(run)
    if replication == 2:
        wait_until(lambda: len(serving_of(run).twins) == 1, run)
    run.wait_for(lambda e: e["kind"] == "snapshot" and e["number"] >= 1)
    old = serving_of(run).shards[0]
    stopped_and_woken(run, old.pid, lambda: serving_of(run).shards[0] != old)
    wait_until(lambda: not alive(old.pid), run)  # nobody but itself could end it
    went_on(run)
    result, _ = ended_cleanly(run)
    assert recovery_of(result, "shard 0")["how"] == ("twin" if replication == 2 else "snapshot")


@pytest.mark.slow
@pytest.mark.usefixtures("spared")
def test_a_coordinator_is_stopped_and_woken_after_another_has_its_place(
    tiny: Make, background: Start, cluster: Cluster
) -> None:
    run = background(tiny(address=cluster.address, replicas=2, shards=2, **LONG))
    has_worked(run)
    old = run.wait_for(lambda e: e["kind"] == "coordinator_started")
    stopped_and_woken(run, old["pid"], lambda: serving_of(run).coordinator == 2)
    wait_until(lambda: not alive(old["pid"]), run)
    went_on(run)
    result, _ = ended_cleanly(run)
    recovery_of(result, "the coordinator")
    numbers = [e["number"] for e in run.events() if e["kind"] == "snapshot"]
    assert len(numbers) == len(set(numbers))
