"""What Ray is asked to reserve, with a stand-in for Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from distbelief.errors import ClusterError
from distbelief.replication import ReplicaConfig
from distbelief.runtime import ray_groups
from distbelief.runtime.placement import REPLICA, SHARD, Node
from distbelief.runtime.ray_groups import NODE_LABEL, Groups


@dataclass(eq=False)
class Group:
    """A placement group, and where Ray has put it."""

    bundles: list[dict[str, float]]
    strategy: str
    selector: list[dict[str, str]] | None
    where: list[str]

    def ready(self) -> Group:
        return self


class Cluster:
    """Its nodes and its placement groups."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.groups: list[Group] = []
        self.late: list[str] = []
        self.now = 0.0

    def add(self, n: int, host: str, **has: float) -> None:
        self.nodes.append(Node(f"node{n}", host, dict(has), dict(has)))

    def placement_group(
        self,
        bundles: list[dict[str, float]],
        strategy: str,
        bundle_label_selector: list[dict[str, str]] | None,
    ) -> Group:
        where = [""] * len(bundles)
        if bundle_label_selector is not None:
            where = [selector[NODE_LABEL] for selector in bundle_label_selector]
        self.groups.append(Group(bundles, strategy, bundle_label_selector, where))
        return self.groups[-1]

    def wait(self, waits: list[Group], *, num_returns: int, timeout: float) -> tuple[Any, Any]:
        """What waits gets the nodes that come late."""
        self.now += timeout
        for group in waits:
            if not all(group.where) and self.late:
                group.where = [self.late.pop(0) for _ in group.bundles]
        return [group for group in waits if all(group.where)], []


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    replacements: dict[str, Any] = {
        "nodes": lambda: list(cluster.nodes),
        "placement_group": cluster.placement_group,
        "remove_placement_group": cluster.groups.remove,
        "placement_group_table": lambda group: {"bundles_to_node_id": dict(enumerate(group.where))},
        "ray": SimpleNamespace(wait=cluster.wait),
        "time": SimpleNamespace(monotonic=lambda: cluster.now),
    }
    for name, value in replacements.items():
        monkeypatch.setattr(ray_groups, name, value)
    return cluster


def slot(stages: int = 1) -> ReplicaConfig:
    return ReplicaConfig(stages=stages, device="cpu")


def reserve(
    groups: Groups,
    *slots: ReplicaConfig,
    said: list[str] | None = None,
    copies: int = 1,
    check: Callable[[], None] = lambda: None,
) -> None:
    say = [].append if said is None else said.append
    groups.reserve(1, slots, copies=copies, patience_s=2.0, say=say, check=check)


def test_a_group_for_each_replica_with_a_bundle_for_each_stage(cluster: Cluster) -> None:
    cluster.add(0, "a", CPU=2)
    cluster.add(1, "b", CPU=2)
    cluster.add(2, "c", CPU=1)
    groups = Groups()
    reserve(groups, slot(), slot(3))
    found = {len(group.bundles): group for group in cluster.groups[1:]}
    assert [group.bundles for group in cluster.groups] == [
        [{"CPU": 1}],
        [{"CPU": 1}],
        [{"CPU": 1}] * 3,
    ]
    assert {group.strategy for group in cluster.groups} == {"PACK"}
    # The shard has a part of the first node; the larger replica chooses first.
    assert found[3].selector == [{NODE_LABEL: n} for n in ("node1", "node1", "node0")]
    assert found[1].selector == [{NODE_LABEL: "node2"}]
    assert [groups.strategy(REPLICA, 1, k).placement_group_bundle_index for k in range(3)] == [
        0,
        1,
        2,
    ]
    assert groups.strategy(REPLICA, 1, 2).placement_group is found[3]
    assert groups.bundle(REPLICA, 1, 2) == groups.bundle(SHARD, 0) == {"CPU": 1}
    assert [groups.neighbours(1, k) for k in range(3)] == [2, 2, 1]
    groups.clear()
    assert cluster.groups == []


def test_where_ray_has_put_a_replica_counts_as_its_place(cluster: Cluster) -> None:
    cluster.add(0, "a", CPU=1)
    cluster.late = ["node1", "node2"]
    groups, said = Groups(), list[str]()
    reserve(groups, slot(2), said=said)
    assert said == ["waiting for room in the cluster for 2 more processes"]
    cluster.add(1, "b", CPU=1)
    cluster.add(2, "b", CPU=1)
    group = cluster.groups[1]
    assert (group.selector, group.where) == (None, ["node1", "node2"])
    groups.renew(REPLICA, 0)
    assert cluster.groups[1] is group, "nothing has died"
    assert [groups.neighbours(0, stage) for stage in range(2)] == [2, 2]


def test_no_room_in_time(cluster: Cluster) -> None:
    cluster.add(0, "a", CPU=2)
    with pytest.raises(ClusterError, match=r"--replicas: .* room for 0 of 1 replicas \(2 x 1 CPU"):
        reserve(Groups(), slot(2))
    assert cluster.now == 2.0


def test_a_wait_can_be_ended(cluster: Cluster) -> None:
    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reserve(Groups(), slot(), check=check)
    assert cluster.now == ray_groups.SLICE_S


def test_a_replica_whose_nodes_live_keeps_its_room(cluster: Cluster) -> None:
    cluster.add(0, "a", CPU=4)
    groups = Groups()
    reserve(groups, slot(2))
    before = list(cluster.groups)
    groups.renew(REPLICA, 0)
    assert cluster.groups == before


def test_a_replica_that_lost_any_of_its_nodes_gets_others(cluster: Cluster) -> None:
    for n, host in enumerate("abcd"):
        cluster.add(n, host, CPU=1)
    groups = Groups()
    reserve(groups, slot(2))
    shard, old = cluster.groups
    assert old.where == ["node1", "node2"]
    # The second stage's node dies; the first one's is still taken, by the group that is given up.
    cluster.nodes = [
        Node("node0", "a", {"CPU": 0}, {"CPU": 1}),
        Node("node1", "b", {"CPU": 0}, {"CPU": 1}),
        Node("node3", "d", {"CPU": 1}, {"CPU": 1}),
    ]
    groups.renew(REPLICA, 0)
    assert cluster.groups[0] is shard
    (new,) = cluster.groups[1:]
    assert sorted(new.where) == ["node1", "node3"]
    assert groups.strategy(REPLICA, 0, 1).placement_group is new
    # Without room anywhere it waits for nodes to come.
    cluster.nodes = cluster.nodes[:1]
    groups.renew(REPLICA, 0)
    assert cluster.groups[1].selector is None
    assert groups.neighbours(0, 0) == 1


def test_each_shard_has_a_place_for_its_twin_on_another_node(cluster: Cluster) -> None:
    for n, host in enumerate("ab"):
        cluster.add(n, host, CPU=4)
    groups = Groups()
    reserve(groups, slot(), copies=2)
    assert [groups.node_of(SHARD, place) for place in range(2)] == ["node0", "node1"]
    assert groups.node_of(REPLICA, 0) == "node0"
    assert len(cluster.groups) == 3


def test_a_node_that_is_not_decided_yet_is_not_known(cluster: Cluster) -> None:
    cluster.add(0, "a", CPU=1)
    groups = Groups()
    with pytest.raises(ClusterError):
        reserve(groups, slot())
    assert (groups.node_of(SHARD, 0), groups.node_of(REPLICA, 0)) == ("node0", None)


@pytest.mark.parametrize(
    ("shunned", "hung", "expected"),
    [
        ((), False, "node0"),
        (("node1",), False, "node0"),
        # The node does not answer, whatever Ray thinks of it.
        (("node0",), False, "node1"),
        # The process may hold its room still, and Ray would have to wait for it.
        ((), True, "node0"),
        (("node0",), True, "node1"),
        (("node0", "node1"), True, "node0"),
    ],
)
def test_a_shard_leaves_a_node_that_is_shunned(
    shunned: tuple[str, ...], hung: bool, expected: str, cluster: Cluster
) -> None:
    cluster.add(0, "a", CPU=4)
    cluster.add(1, "b", CPU=2)
    groups = Groups()
    reserve(groups)
    (before,) = cluster.groups
    groups.renew(SHARD, 0, shunned=shunned, hung=hung)
    (after,) = cluster.groups
    assert groups.node_of(SHARD, 0) == expected
    kept = not hung and "node0" not in shunned
    assert (after is before) == kept
    assert groups.strategy(SHARD, 0).placement_group is after
