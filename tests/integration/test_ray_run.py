"""Runs on a real Ray: a local one, and a cluster of three simulated nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from distbelief.audit import audit
from distbelief.config import TrainConfig
from distbelief.errors import ClusterError
from distbelief.observe.events import read_events
from distbelief.runtime.supervisor import Stop
from distbelief.runtime.train import train

OBJECT_STORE_NBYTES = 80 << 20


@pytest.fixture
def three_nodes() -> Iterator[Cluster]:
    """Three nodes of two CPUs each; this process has not joined."""
    cluster = Cluster()
    for _ in range(3):
        cluster.add_node(
            num_cpus=2, object_store_memory=OBJECT_STORE_NBYTES, include_dashboard=False
        )
    yield cluster
    cluster.shutdown()


def silent(line: str) -> None:
    pass


@pytest.mark.timeout(180)
def test_a_local_ray_is_started_and_shut_down(tiny: Callable[..., TrainConfig]) -> None:
    result = train(tiny(address="local"), silent)
    assert result["status"] == "finished"
    assert result["examples_applied"] == 180
    assert result["validation"]["n_examples"] == 20
    assert audit(Path(result["run_dir"])).clean
    assert not ray.is_initialized()


@pytest.mark.timeout(180)
def test_a_cluster_of_three_nodes(tiny: Callable[..., TrainConfig], three_nodes: Cluster) -> None:
    config = tiny(address=three_nodes.address, replicas=3, shards=3, epochs=10_000)
    run_dir, stop = Path(str(config.run_dir)), Stop()

    def stop_when_all_have_worked(line: str) -> None:
        if (run_dir / "events.jsonl").exists():
            happened = read_events(run_dir / "events.jsonl")
            if {r for e in happened if e["kind"] == "items" for r in e["replicas"]} == {0, 1, 2}:
                stop.event.set()

    result = train(config, stop_when_all_have_worked, stop)
    assert result["status"] == "interrupted"
    found = audit(run_dir)
    assert found.clean, found.counter_example
    assert found.examples == result["examples_applied"] > 0
    events = read_events(run_dir / "events.jsonl")
    # What the processes themselves say of where they run.
    for kind in ("shard_started", "replica_placed"):
        nodes = Counter(event["node"] for event in events if event["kind"] == kind)
        assert sorted(nodes.values()) == [1, 1, 1], kind
        assert set(nodes) == {node.node_id for node in three_nodes.list_all_nodes()}


@pytest.mark.timeout(180)
def test_a_cluster_without_room_says_so(
    tiny: Callable[..., TrainConfig], three_nodes: Cluster
) -> None:
    config = tiny(address=three_nodes.address, replicas=7, shards=1, patience_s=2.0)
    with pytest.raises(ClusterError, match=r"--replicas: .* room for 5 of 7"):
        train(config, silent)
    assert not Path(str(config.run_dir)).exists(), "something was left half-written"
