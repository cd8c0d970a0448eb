"""Placement as tables: which node each shard and each replica goes to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.config import ClusterConfig, TrainConfig
from distbelief.errors import ClusterError
from distbelief.replication import ReplicaConfig
from distbelief.runtime.placement import (
    REPLICA,
    SHARD,
    Node,
    Placement,
    bundle_for,
    bundles_of,
    decide_devices,
    neighbours,
    place,
    place_again,
    require_room,
)

CPU: dict[str, float] = {"CPU": 1.0}
GPU: dict[str, float] = {"CPU": 1.0, "GPU": 1.0}
PLAIN = ReplicaConfig(device="cpu")


def slot(stages: int = 1, device: str = "cpu") -> ReplicaConfig:
    return ReplicaConfig(stages=stages, device=device)


def nodes(*free: dict[str, float]) -> list[Node]:
    """Nodes of which all is free."""
    return [Node(f"node{i}", f"host{i}", dict(has), dict(has)) for i, has in enumerate(free)]


def where(placements: list[Placement], role: str) -> list[str | None]:
    """The node of each, or of each of its stages: ``"01"`` is two stages on two nodes."""
    mine = [p for p in placements if p.role == role]
    assert [p.index for p in mine] == list(range(len(mine)))
    return [
        None if p.node_ids is None else "".join(n.removeprefix("node") for n in p.node_ids)
        for p in mine
    ]


@pytest.mark.parametrize(
    ("role", "free", "gpu", "bundle"),
    [
        (SHARD, [{"CPU": 4}], False, {"CPU": 1}),
        (REPLICA, [{"CPU": 4}], False, {"CPU": 1}),
        (SHARD, [{"CPU": 4}, {"CPU": 4, "shard": 2}], False, {"shard": 1}),
        (REPLICA, [{"CPU": 4}, {"CPU": 4, "shard": 2}], False, {"CPU": 1}),
        (REPLICA, [{"CPU": 4, "replica": 1}], False, {"replica": 1}),
        (REPLICA, [{"CPU": 4, "replica": 0}], False, {"CPU": 1}),
        (REPLICA, [{"CPU": 4, "GPU": 1}], True, {"CPU": 1, "GPU": 1}),
        (REPLICA, [{"CPU": 4, "GPU": 1, "replica": 1}], True, {"replica": 1, "GPU": 1}),
        (SHARD, [{"CPU": 4, "GPU": 1}], True, {"CPU": 1}),
        (SHARD, [], False, {"CPU": 1}),
    ],
)
def test_bundle(
    role: str, free: list[dict[str, float]], gpu: bool, bundle: dict[str, float]
) -> None:
    assert bundle_for(role, nodes(*free), gpu=gpu) == bundle


@pytest.mark.parametrize(
    ("free", "n_shards", "n_replicas", "shards", "replicas"),
    [
        # One node with room for all.
        ([{"CPU": 4}], 1, 2, ["0"], ["0", "0"]),
        # Shards spread, then replicas spread anew, first to where most is free.
        ([{"CPU": 4}, {"CPU": 4}], 2, 2, ["0", "1"], ["0", "1"]),
        ([{"CPU": 4}, {"CPU": 4}], 1, 2, ["0"], ["1", "0"]),
        ([{"CPU": 2}, {"CPU": 4}], 1, 3, ["1"], ["1", "0", "1"]),
        # A node that is full is passed over.
        ([{"CPU": 1}, {"CPU": 4}], 1, 3, ["1"], ["1", "0", "1"]),
        ([{"CPU": 1}, {"CPU": 3}], 2, 2, ["1", "0"], ["1", "1"]),
        # Shards first; what does not fit waits.
        ([{"CPU": 2}], 2, 2, ["0", "0"], [None, None]),
        ([{"CPU": 2}], 3, 1, ["0", "0", None], [None]),
        ([], 1, 1, [None], [None]),
        # Resources of our own say where.
        (
            [{"CPU": 8}, {"CPU": 1, "shard": 2}, {"CPU": 1, "shard": 1}],
            3,
            2,
            ["1", "2", "1"],
            ["0", "1"],
        ),
        (
            [{"CPU": 8, "shard": 1}, {"CPU": 8, "replica": 2}, {"CPU": 8, "replica": 1}],
            1,
            4,
            ["0"],
            ["1", "2", "1", None],
        ),
        # Own resources do not take a CPU.
        ([{"CPU": 1, "shard": 3}], 3, 1, ["0", "0", "0"], ["0"]),
    ],
)
def test_place(
    free: list[dict[str, float]],
    n_shards: int,
    n_replicas: int,
    shards: list[str | None],
    replicas: list[str | None],
) -> None:
    found = place(nodes(*free), n_shards, [PLAIN] * n_replicas)
    assert (where(found, SHARD), where(found, REPLICA)) == (shards, replicas)


@pytest.mark.parametrize(
    ("free", "slots", "replicas"),
    [
        # One node takes all there is room for; a replica that does not fit whole waits.
        ([{"CPU": 6}], [slot(2)] * 2, ["00", "00"]),
        ([{"CPU": 4}], [slot(2)] * 2, ["00", None]),
        ([{"CPU": 2}], [slot(2)], [None]),
        # Four nodes of one: the shard's is full, the second replica waits.
        ([{"CPU": 1}] * 4, [slot(2)] * 2, ["12", None]),
        ([{"CPU": 1}] * 6, [slot(2)] * 2, ["12", "34"]),
        # Four nodes of two: replicas spread, each on a node of its own.
        ([{"CPU": 2}] * 4, [slot(2)] * 2, ["11", "22"]),
        ([{"CPU": 4}] * 4, [slot(2)] * 4, ["11", "22", "33", "00"]),
        # A replica stays together though it makes a node more laden than others.
        ([{"CPU": 5}, {"CPU": 1}, {"CPU": 1}], [slot(2)] * 2, ["00", "00"]),
        # No node has room for all: as few as possible, neighbours together, those with most first.
        ([{"CPU": 1}, {"CPU": 3}, {"CPU": 2}], [slot(4)], ["1122"]),
        ([{"CPU": 3}, {"CPU": 2}, {"CPU": 1}], [slot(4)], ["0011"]),
        ([{"CPU": 3}, {"CPU": 1}, {"CPU": 1}], [slot(4)], ["0012"]),
        ([{"CPU": 1}, {"CPU": 4}, {"CPU": 2}], [slot(5)], ["11122"]),
        # What needs most chooses first, so that it stays whole; a smaller one fills the gap.
        ([{"CPU": 2}, {"CPU": 3}], [slot(), slot(), slot(2)], ["1", "1", "00"]),
        ([{"CPU": 3}], [slot(3), slot(2)], [None, "00"]),
        # A GPU for each stage that takes one.
        ([{"CPU": 3, "GPU": 2}], [slot(2, "cuda")], ["00"]),
        ([{"CPU": 8}, {"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}], [slot(2, "cuda")], ["12"]),
        ([{"CPU": 8}, {"CPU": 1, "GPU": 1}], [slot(2, "cuda")], [None]),
        # A stage that could be anywhere leaves the GPU's node to the one that could not.
        ([{"CPU": 3}, {"CPU": 1, "GPU": 1}], [slot(2, "cpu+cuda")], ["01"]),
        ([{"CPU": 2}, {"CPU": 1, "GPU": 1}], [slot(2, "cpu+cuda")], ["01"]),
        ([{"CPU": 9}, {"CPU": 2, "GPU": 1}], [slot(), slot(1, "cuda")], ["0", "1"]),
        ([{"CPU": 1}, {"CPU": 1, "GPU": 1}], [slot(), slot(1, "cuda")], [None, "1"]),
        # Replicas that differ.
        (
            [{"CPU": 4, "GPU": 2}, {"CPU": 4}],
            [slot(), slot(2, "cuda"), slot()],
            ["1", "00", "1"],
        ),
        # Resources of our own, one for each stage.
        (
            [{"CPU": 1, "shard": 1}, {"CPU": 1, "replica": 2}, {"CPU": 1, "replica": 3}],
            [slot(2), slot(2), slot()],
            ["22", "11", "2"],
        ),
    ],
)
def test_place_stages(
    free: list[dict[str, float]], slots: list[ReplicaConfig], replicas: list[str | None]
) -> None:
    found = place(nodes(*free), 1, slots)
    assert where(found, REPLICA) == replicas
    assert where(found, SHARD) != [None]


@pytest.mark.parametrize(
    ("slot", "free", "bundles"),
    [
        (slot(), {"CPU": 4}, (CPU,)),
        (slot(3), {"CPU": 4}, (CPU, CPU, CPU)),
        (slot(2, "cuda"), {"CPU": 4}, (GPU, GPU)),
        (slot(2, "cpu+cuda"), {"CPU": 4}, (CPU, GPU)),
        (slot(2, "cuda:1"), {"replica": 2}, ({"replica": 1, "GPU": 1},) * 2),
        (slot(2), {"replica": 0}, (CPU, CPU)),
    ],
)
def test_bundles_of_a_replica(
    slot: ReplicaConfig, free: dict[str, float], bundles: tuple[dict[str, float], ...]
) -> None:
    assert bundles_of(slot, nodes(free)) == bundles


def test_replicas_with_accelerators_go_where_those_are() -> None:
    cluster = nodes({"CPU": 16}, {"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 2})
    found = place(cluster, 1, [slot(1, "cuda")] * 4)
    assert where(found, SHARD) == ["0"]
    assert where(found, REPLICA) == ["1", "2", "2", None]


def test_the_nodes_are_only_read() -> None:
    cluster = nodes({"CPU": 3})
    place(cluster, 1, [slot(2)])
    place_again(cluster, Placement(REPLICA, 0, (CPU, CPU), ("node0", "node0")))
    assert cluster == nodes({"CPU": 3})


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=5),
    st.integers(0, 6),
    st.lists(st.sampled_from([slot(), slot(2), slot(3), slot(1, "cuda"), slot(2, "cpu+cuda")])),
)
def test_no_node_takes_more_than_it_has_and_none_waits_beside_room(
    has: list[tuple[int, int]], n_shards: int, slots: list[ReplicaConfig]
) -> None:
    cluster = nodes(*({"CPU": float(n), "GPU": float(min(n, m))} for n, m in has))
    found = place(cluster, n_shards, slots)
    assert len(found) == n_shards + len(slots)
    left = {node.node_id: dict(node.free) for node in cluster}
    for p in found:
        assert p.node_ids is None or len(p.node_ids) == len(p.bundles)
        for node_id, bundle in zip(p.node_ids or (), p.bundles, strict=False):
            for name, amount in bundle.items():
                left[node_id][name] -= amount
                assert left[node_id][name] >= 0
    for p in found:
        if p.node_ids is None:  # the whole cluster is too small for it, however it is cut
            n, n_gpu = len(p.bundles), sum("GPU" in bundle for bundle in p.bundles)
            room = sum(free["CPU"] for free in left.values())
            gpus = sum(min(free["CPU"], free["GPU"]) for free in left.values())
            assert room < n or gpus < n_gpu
    shards = [p.node_ids for p in found if p.role == SHARD]
    if has and all(n >= n_shards for n, _ in has):  # room everywhere: spread evenly
        counts = [shards.count((node.node_id,)) for node in cluster]
        assert max(counts) - min(counts) <= 1


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(1, 6))
def test_the_stages_of_a_replica_lie_on_as_few_nodes_as_possible(
    cpus: list[int], n_stages: int
) -> None:
    (found,) = place(nodes(*({"CPU": float(n)} for n in cpus)), 0, [slot(n_stages)])
    largest = sorted(cpus, reverse=True)
    enough = [n for n in range(1, len(cpus) + 1) if sum(largest[:n]) >= n_stages]
    if not enough:
        assert found.node_ids is None
        return
    assert found.node_ids is not None
    assert len(set(found.node_ids)) == enough[0]
    changes = sum(a != b for a, b in zip(found.node_ids, found.node_ids[1:], strict=False))
    assert changes == enough[0] - 1, "stages of one node are neighbours"


@pytest.mark.parametrize(
    ("free", "n_shards", "n_replicas", "shards", "replicas"),
    [
        # Primaries first, spread as ever; each twin on another node than its primary.
        ([{"CPU": 4}, {"CPU": 4}], 1, 1, ["0", "1"], ["0"]),
        ([{"CPU": 4}, {"CPU": 4}], 2, 2, ["0", "1", "1", "0"], ["0", "1"]),
        ([{"CPU": 4}] * 3, 2, 0, ["0", "1", "2", "0"], []),
        ([{"CPU": 4}] * 3, 3, 0, ["0", "1", "2", "1", "0", "0"], []),
        # The only node that has room is better than none.
        ([{"CPU": 4}], 1, 1, ["0", "0"], ["0"]),
        ([{"CPU": 8}], 2, 1, ["0"] * 4, ["0"]),
        ([{"CPU": 4}, {"CPU": 0}], 1, 1, ["0", "0"], ["0"]),
        # A twin goes to a node that is laden rather than to its primary's.
        ([{"CPU": 9}, {"CPU": 1}], 1, 2, ["0", "1"], ["0", "0"]),
        # Twins wait like all else.
        ([{"CPU": 1}, {"CPU": 2}], 2, 1, ["1", "0", "1", None], [None]),
        ([{"CPU": 2}], 3, 0, ["0", "0", *[None] * 4], []),
        # Resources of their own.
        (
            [{"CPU": 8}, {"CPU": 1, "shard": 2}, {"CPU": 1, "shard": 2}],
            2,
            1,
            ["1", "2", "2", "1"],
            ["0"],
        ),
    ],
)
def test_twins_are_apart_from_their_primaries(
    free: list[dict[str, float]],
    n_shards: int,
    n_replicas: int,
    shards: list[str | None],
    replicas: list[str | None],
) -> None:
    found = place(nodes(*free), n_shards, [PLAIN] * n_replicas, copies=2)
    assert (where(found, SHARD), where(found, REPLICA)) == (shards, replicas)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(0, 5), max_size=5), st.integers(1, 5))
def test_a_twin_is_beside_its_primary_only_where_no_other_node_has_room(
    has: list[int], n_shards: int
) -> None:
    cluster = nodes(*({"CPU": float(n)} for n in has))
    found = where(place(cluster, n_shards, [], copies=2), SHARD)
    assert len(found) == 2 * n_shards
    free = {str(i): n for i, n in enumerate(has)}
    for index, node in enumerate(found):
        assert node is not None or not any(free.values())
        if node is None:
            continue
        if index >= n_shards and node == found[index - n_shards]:
            assert not any(n for other, n in free.items() if other != node)
        free[node] -= 1
        assert free[node] >= 0


def test_place_again_takes_the_nodes_with_most_room() -> None:
    cluster = nodes({"CPU": 1}, {"CPU": 3}, {"CPU": 2})

    def again(*bundles: dict[str, float]) -> Placement:
        return place_again(cluster, Placement(REPLICA, 7, bundles, None))

    assert again(CPU) == Placement(REPLICA, 7, (CPU,), ("node1",))
    assert again(CPU, CPU, CPU).node_ids == ("node1",) * 3
    assert again(*[CPU] * 5).node_ids == ("node1",) * 3 + ("node2",) * 2
    assert again(*[CPU] * 7).node_ids is None
    assert again({"CPU": 4.0}).node_ids is None
    assert place_again([], Placement(REPLICA, 7, (CPU,), None)).node_ids is None


def test_place_again_looks_for_the_whole_bundle() -> None:
    cluster = nodes({"CPU": 8}, {"CPU": 2, "GPU": 1})
    assert place_again(cluster, Placement(REPLICA, 0, (GPU,), None)).node_ids == ("node1",)


def test_place_again_may_have_what_the_lost_one_held() -> None:
    full = [Node(f"node{i}", f"host{i}", {"CPU": 0.0}, {"CPU": 2.0}) for i in range(2)]
    old = Placement(REPLICA, 1, (CPU, CPU), ("node9", "node1"))
    assert place_again(full, old).node_ids is None, "one stage's room has died with its node"
    grown = [*full, *nodes({"CPU": 0}, {"CPU": 1})[1:]]
    grown[2] = Node("node2", "host2", {"CPU": 1.0}, {"CPU": 1.0})
    again = place_again(grown, old)
    assert sorted(again.node_ids or ()) == ["node1", "node2"]


@pytest.mark.parametrize(
    ("shunned", "bundles", "expected"),
    [
        ((), (CPU,), ("node1",)),
        (("node1",), (CPU,), ("node2",)),
        (("node1", "node2"), (CPU,), ("node0",)),
        (iter(["node1", "node2"]), (CPU,), ("node0",)),
        (("node9",), (CPU,), ("node1",)),
        # Better there than nowhere.
        (("node0", "node1", "node2"), (CPU,), ("node1",)),
        (("node1",), (CPU, CPU), ("node2", "node2")),
        (("node1", "node2"), (CPU, CPU), ("node1", "node1")),
        (("node1",), (CPU, CPU, CPU), ("node2", "node2", "node0")),
    ],
)
def test_place_again_avoids_nodes_that_are_shunned(
    shunned: Any, bundles: tuple[dict[str, float], ...], expected: tuple[str, ...]
) -> None:
    cluster = nodes({"CPU": 1}, {"CPU": 3}, {"CPU": 2})
    again = place_again(cluster, Placement(SHARD, 7, bundles, None), shunned=shunned)
    assert again == Placement(SHARD, 7, bundles, expected)


def test_room_on_a_shunned_node_is_given_back_and_left() -> None:
    cluster = [Node("node0", "a", {"CPU": 0.0}), Node("node1", "b", {"CPU": 1.0})]
    old = Placement(SHARD, 0, (CPU,), ("node0",))
    assert place_again(cluster, old, shunned=["node0"]).node_ids == ("node1",)
    assert place_again(cluster[:1], old, shunned=["node0"]).node_ids == ("node0",)


@pytest.mark.parametrize(
    ("placed", "counts"),
    [
        # By stage processes, wherever their replicas begin.
        ([("a", "a"), ("a", "b")], [[3, 3], [3, 1]]),
        ([("a",), ("b",), ("b",)], [[1], [2], [2]]),
        # Two nodes of one host share its cores.
        ([("a", "a2"), ("b",)], [[2, 2], [1]]),
        # What waits is not there, and has nobody beside it that is known.
        ([("a",), None], [[1], [1]]),
        # A node that nobody knows.
        ([("x",), ("x",)], [[1], [1]]),
    ],
)
def test_neighbours(placed: list[tuple[str, ...] | None], counts: list[list[int]]) -> None:
    hosts = {"a": "A", "a2": "A", "b": "B"}
    placements = [Placement(SHARD, 0, (CPU,), ("a",))] + [
        Placement(REPLICA, i, (CPU,) * len(counts[i]), node_ids)
        for i, node_ids in enumerate(placed)
    ]
    found = [
        [neighbours(placements, hosts, i, k) for k in range(len(stages))]
        for i, stages in enumerate(counts)
    ]
    assert found == counts


@pytest.mark.parametrize(
    ("replica", "groups", "n_gpus", "devices"),
    [
        # Without being told: a GPU each if there are enough, else none.
        ({}, (), 0, ["cpu", "cpu"]),
        ({}, (), 1, ["cpu", "cpu"]),
        ({}, (), 2, ["cuda", "cuda"]),
        ({"stages": 2}, (), 3, ["cpu", "cpu"]),
        ({"stages": 2}, (), 4, ["cuda", "cuda"]),
        # Told: as told, whatever there is; a stage sees one GPU, whose number is 0.
        ({"device": "cuda"}, (), 0, ["cuda", "cuda"]),
        ({"device": "cpu"}, (), 8, ["cpu", "cpu"]),
        ({"device": "cuda:3"}, (), 0, ["cuda", "cuda"]),
        ({"device": "cpu+cuda:1", "stages": 2}, (), 0, ["cpu+cuda", "cpu+cuda"]),
        # Stages that are on the host leave GPUs to the others.
        ({"device": "cpu+auto", "stages": 2}, (), 2, ["cpu+cuda", "cpu+cuda"]),
        ({"device": "cpu+auto", "stages": 2}, (), 1, ["cpu+cpu", "cpu+cpu"]),
        # Those that were told to take one take it from the others.
        ({"device": "cuda+auto", "stages": 2}, (), 3, ["cuda+cpu", "cuda+cpu"]),
        # Replicas that differ.
        ({}, ("2x device=cuda:1", "1x stages=2"), 4, ["cuda", "cuda", "cuda"]),
        ({}, ("2x device=cuda:1", "1x stages=2"), 3, ["cuda", "cuda", "cpu"]),
        (
            {},
            ("1x device=auto+cpu,stages=2,device-memory-gb=2", "1x micro-batches=4"),
            2,
            ["cuda+cpu", "cuda"],
        ),
    ],
)
def test_devices(
    replica: dict[str, Any], groups: tuple[str, ...], n_gpus: int, devices: list[str]
) -> None:
    config = TrainConfig(
        replica=ReplicaConfig(**replica), cluster=ClusterConfig(replica_group=groups)
    )
    decided = decide_devices(config, float(n_gpus))
    assert [s.device for s in decided.slots] == devices
    # Nothing else has changed.
    assert [(s.stages, s.micro_batches, s.device_memory_gb) for s in decided.slots] == [
        (s.stages, s.micro_batches, s.device_memory_gb) for s in config.slots
    ]
    assert decide_devices(decided, 0.0) == decided


def test_room_for_all_raises_nothing() -> None:
    cluster = nodes({"CPU": 3})
    require_room(place(cluster, 1, [PLAIN] * 2), cluster, 60.0)
    require_room([], cluster, 60.0)


@pytest.mark.parametrize(
    ("free", "n_shards", "slots", "text"),
    [
        (
            [{"CPU": 2}],
            1,
            [slot()] * 3,
            "--replicas: the cluster of 1 nodes has room for 1 of 3 replicas (1 CPU each)",
        ),
        (
            [{"CPU": 1}, {"CPU": 1}],
            3,
            [slot()],
            "--shards: the cluster of 2 nodes has room for 2 of 3 shards (1 CPU each)",
        ),
        (
            [{"CPU": 8}],
            1,
            [slot(1, "cuda")],
            "--replicas: the cluster of 1 nodes has room for 0 of 1 replicas (1 CPU, 1 GPU each)",
        ),
        (
            [{"CPU": 1, "replica": 3, "shard": 1}],
            1,
            [slot(2)] * 2,
            "--replicas: the cluster of 1 nodes has room for 1 of 2 replicas (2 x 1 replica each)",
        ),
        (
            [{"CPU": 8, "GPU": 1}],
            1,
            [slot(2, "cuda")],
            "--replicas: the cluster of 1 nodes has room for 0 of 1 replicas "
            "(2 x (1 CPU, 1 GPU) each)",
        ),
        (
            [{"CPU": 8}],
            1,
            [slot(2, "cpu+cuda")],
            "--replicas: the cluster of 1 nodes has room for 0 of 1 replicas "
            "(1 CPU + (1 CPU, 1 GPU) each)",
        ),
        (
            [{"CPU": 4}],
            1,
            [slot(2), slot(), slot()],
            "--replicas: the cluster of 1 nodes has room for 2 of 3 replicas "
            "(1 of 2 x 1 CPU and 2 of 1 CPU)",
        ),
    ],
)
def test_no_room_names_the_option_the_figures_and_the_remedy(
    free: list[dict[str, float]], n_shards: int, slots: list[ReplicaConfig], text: str
) -> None:
    cluster = nodes(*free)
    with pytest.raises(ClusterError) as caught:
        require_room(place(cluster, n_shards, slots), cluster, 60.0)
    assert str(caught.value) == (
        f"{text}, and no more came within 60 s; ask for fewer or add nodes"
    )


@pytest.mark.parametrize("role", [SHARD, REPLICA])
def test_own_resources_are_asked_for_though_none_is_free(role: str) -> None:
    busy = [Node("node0", "host0", {"CPU": 4.0}, {"CPU": 4.0, role: 1.0})]
    assert bundle_for(role, busy) == {role: 1.0}
    assert [p.node_ids for p in place(busy, 1, [PLAIN]) if p.role == role] == [None]
