"""One stage of a replica is killed in the middle of a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from distbelief.audit import audit
from distbelief.config import TrainConfig
from distbelief.runtime.prepare import prepare

pytestmark = pytest.mark.timeout(300)

OBJECT_STORE_NBYTES = 80 << 20


@pytest.fixture
def four_nodes() -> Iterator[Cluster]:
    """Four nodes, each with room for one stage; this process has not joined."""
    cluster = Cluster()
    for _ in range(4):
        cluster.add_node(
            num_cpus=1,
            resources={"replica": 1, "shard": 1},
            object_store_memory=OBJECT_STORE_NBYTES,
            include_dashboard=False,
        )
    yield cluster
    cluster.shutdown()


def kill_a_stage(run: Any, replica: int, stage: int) -> dict[str, Any]:
    """Kills it once it has worked; returns once its replacement has done an item."""
    run.wait_for(lambda e: e["kind"] == "items" and {0, 1} <= set(e["replicas"]))
    placed = run.wait_for(
        lambda e: e["kind"] == "replica_placed" and (e["replica"], e["stage"]) == (replica, stage)
    )
    os.kill(placed["pid"], signal.SIGKILL)
    lost: dict[str, Any] = run.wait_for(lambda e: e["kind"] == "replica_lost")
    run.wait_for(lambda e: e["kind"] == "replica_replaced")
    return lost


def check_that_only_it_was_lost(run: Any, result: dict[str, Any], lost: dict[str, Any]) -> None:
    found = audit(Path(result["run_dir"]))
    assert found.clean, found.counter_example
    assert found.examples == result["examples_applied"]
    assert [e["replica"] for e in run.events() if e["kind"] == "replica_lost"] == [lost["replica"]]
    during = [
        e
        for e in run.events()
        if e["kind"] == "items"
        and lost["t"] < e["t"] < lost["t"] + result["recoveries"][0]["seconds"]
    ]
    assert any(1 - lost["replica"] in e["replicas"] for e in during), "the other did not go on"


@pytest.mark.parametrize("stage", [0, 1])
def test_on_one_machine(
    tiny: Callable[..., TrainConfig], background: Callable[[TrainConfig], Any], stage: int
) -> None:
    config = tiny(stages=2, boundaries="inception4b", epochs=10_000, drawn_train=1600)
    run = background(config)
    lost = kill_a_stage(run, 0, stage)
    result = run.stop()
    assert f"stage {stage} of replica 0 was lost" in lost["cause"]
    check_that_only_it_was_lost(run, result, lost)


def test_on_a_cluster_of_four_nodes(
    tiny: Callable[..., TrainConfig],
    background: Callable[[TrainConfig], Any],
    four_nodes: Cluster,
) -> None:
    """Each stage on a node of its own talks to the shards that it overlaps, and to no other."""
    config = tiny(
        address=four_nodes.address,
        stages=2,
        shards=3,
        boundaries="inception5b",
        epochs=10_000,
        drawn_train=1600,
        evaluate=False,
    )
    layout = prepare(config).layout
    run = background(config)
    lost = kill_a_stage(run, 1, 1)
    result = run.stop()
    assert "stage 1 of replica 1 was lost" in lost["cause"]
    check_that_only_it_was_lost(run, result, lost)
    placed = [e for e in run.events() if e["kind"] == "replica_placed" and e["replica"] < 2]
    nodes = {(e["replica"], e["stage"]): e["node"] for e in placed}
    assert len(set(nodes.values())) == 4
    cut = next(p.begin for p in layout.parameters if p.name.startswith("inception5b"))
    shards = [e for e in run.events() if e["kind"] == "progress"][-1]["shards"]
    for shard, (begin, end) in zip(shards, layout.shard_ranges(3), strict=True):
        overlapping = {"0"} if end <= cut else {"1"} if begin >= cut else {"0", "1"}
        assert {name.partition(".")[2] for name in shard["traffic"]} == overlapping
