"""Runs on a real Ray: a local one, and a cluster of three simulated nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from distbelief.audit import audit
from distbelief.config import TrainConfig
from distbelief.errors import ClusterError
from distbelief.observe.events import read_events
from distbelief.observe.report import Report
from distbelief.observe.view import Lines
from distbelief.runtime.runs import Resume
from distbelief.runtime.signals import Stop
from distbelief.runtime.train import train
from distbelief.storage import storage_at

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


class StopAtWork(Lines):
    """Stops a run at the first sign of work."""

    def __init__(self) -> None:
        super().__init__(silent)
        self.stop = Stop()

    def show(self, report: Report, *, last: bool = False) -> None:
        if report.examples_applied:
            self.stop.event.set()


def silent(line: str) -> None:
    pass


@pytest.mark.timeout(180)
def test_a_local_ray_is_started_and_shut_down(tiny: Callable[..., TrainConfig]) -> None:
    result = train(tiny(address="local"), Lines(silent))
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
            happened = read_events(storage_at(run_dir))
            if {r for e in happened if e["kind"] == "items" for r in e["replicas"]} == {0, 1, 2}:
                stop.event.set()

    result = train(config, Lines(stop_when_all_have_worked), stop)
    assert result["status"] == "interrupted"
    found = audit(run_dir)
    assert found.clean, found.counter_example
    assert found.examples == result["examples_applied"] > 0
    events = read_events(storage_at(run_dir))
    # What the processes themselves say of where they run.
    for kind in ("shard_started", "replica_placed"):
        nodes = Counter(event["node"] for event in events if event["kind"] == kind)
        assert sorted(nodes.values()) == [1, 1, 1], kind
        assert set(nodes) == {node.node_id for node in three_nodes.list_all_nodes()}


@pytest.mark.timeout(240)
def test_a_run_goes_on_with_other_shards_and_replicas(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(address="local", epochs=400)
    view = StopAtWork()
    first = train(config, view, view.stop)
    assert first["status"] == "interrupted"
    assert first["snapshot"]["even"]
    assert first["snapshot"]["examples_applied"] == first["examples_applied"]
    longer = first["examples_applied"] + 90
    config = replace(config, cluster=replace(config.cluster, shards=3, replicas=1))
    config = replace(config, max_examples=longer)
    second = train(config, Lines(silent), resume=Resume(first["run_dir"]))
    assert second["status"] == "finished"
    assert second["examples_applied"] >= longer
    found = audit(first["run_dir"])
    assert found.clean, found.counter_example
    assert (found.n_shards, found.examples) == (3, second["examples_applied"])


@pytest.mark.timeout(180)
def test_a_cluster_without_room_says_so(
    tiny: Callable[..., TrainConfig], three_nodes: Cluster
) -> None:
    config = tiny(address=three_nodes.address, replicas=7, shards=1, patience_s=2.0)
    with pytest.raises(ClusterError, match=r"--replicas: .* room for 5 of 7"):
        train(config, Lines(silent))
    assert not Path(str(config.run_dir)).exists(), "something was left half-written"
