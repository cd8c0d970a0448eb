"""Placement as tables: which node each shard and each replica goes to."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.errors import ClusterError
from distbelief.runtime.placement import (
    REPLICA,
    SHARD,
    Node,
    Placement,
    bundle_for,
    place,
    place_one,
    require_room,
)


def nodes(*free: dict[str, float]) -> list[Node]:
    """Nodes of which all is free."""
    return [Node(f"node{i}", f"host{i}", dict(has), dict(has)) for i, has in enumerate(free)]


def where(placements: list[Placement], role: str) -> list[str | None]:
    mine = [p for p in placements if p.role == role]
    assert [p.index for p in mine] == list(range(len(mine)))
    return [None if p.node_id is None else p.node_id.removeprefix("node") for p in mine]


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
    found = place(nodes(*free), n_shards, n_replicas)
    assert (where(found, SHARD), where(found, REPLICA)) == (shards, replicas)


def test_replicas_with_accelerators_go_where_those_are() -> None:
    cluster = nodes({"CPU": 16}, {"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 2})
    found = place(cluster, 1, 4, gpu=True)
    assert where(found, SHARD) == ["0"]
    assert where(found, REPLICA) == ["1", "2", "2", None]


def test_the_nodes_are_only_read() -> None:
    cluster = nodes({"CPU": 2})
    place(cluster, 1, 1)
    place_one(cluster, SHARD, 0, {"CPU": 1.0})
    assert cluster == nodes({"CPU": 2})


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 5), max_size=5), st.integers(0, 6), st.integers(0, 6), st.booleans())
def test_no_node_takes_more_than_it_has_and_none_waits_beside_room(
    cpus: list[int], n_shards: int, n_replicas: int, gpu: bool
) -> None:
    cluster = nodes(*({"CPU": float(n), "GPU": float(n // 2)} for n in cpus))
    found = place(cluster, n_shards, n_replicas, gpu=gpu)
    assert len(found) == n_shards + n_replicas
    left = {node.node_id: dict(node.free) for node in cluster}
    for p in found:
        if p.node_id is None:
            continue
        for name, amount in p.bundle.items():
            left[p.node_id][name] -= amount
            assert left[p.node_id][name] >= 0
    for p in found:
        if p.node_id is None:
            fits = [
                all(has[name] >= amount for name, amount in p.bundle.items())
                for has in left.values()
            ]
            assert not any(fits)
    shards = [p.node_id for p in found if p.role == SHARD]
    if all(n >= n_shards for n in cpus) and cpus:  # room everywhere: spread evenly
        counts = [shards.count(node.node_id) for node in cluster]
        assert max(counts) - min(counts) <= 1


def test_place_one_takes_the_node_with_most_room() -> None:
    cluster = nodes({"CPU": 1}, {"CPU": 3}, {"CPU": 2})
    assert place_one(cluster, REPLICA, 7, {"CPU": 1.0}) == Placement(
        REPLICA, 7, {"CPU": 1.0}, "node1"
    )
    assert place_one(cluster, REPLICA, 7, {"CPU": 4.0}).node_id is None
    assert place_one([], REPLICA, 7, {"CPU": 1.0}).node_id is None


def test_place_one_looks_for_the_whole_bundle() -> None:
    cluster = nodes({"CPU": 8}, {"CPU": 2, "GPU": 1})
    assert place_one(cluster, REPLICA, 0, {"CPU": 1.0, "GPU": 1.0}).node_id == "node1"


def test_room_for_all_raises_nothing() -> None:
    cluster = nodes({"CPU": 3})
    require_room(place(cluster, 1, 2), cluster, 60.0)
    require_room([], cluster, 60.0)


@pytest.mark.parametrize(
    ("free", "n_shards", "n_replicas", "gpu", "text"),
    [
        (
            [{"CPU": 2}],
            1,
            3,
            False,
            "--replicas: the cluster of 1 nodes has room for 1 of 3 replicas (1 CPU each), and no "
            "more came within 60 s; ask for fewer or add nodes",
        ),
        (
            [{"CPU": 1}, {"CPU": 1}],
            3,
            1,
            False,
            "--shards: the cluster of 2 nodes has room for 2 of 3 shards (1 CPU each), and no "
            "more came within 60 s; ask for fewer or add nodes",
        ),
        (
            [{"CPU": 8}],
            1,
            1,
            True,
            "--replicas: the cluster of 1 nodes has room for 0 of 1 replicas (1 CPU, 1 GPU each), "
            "and no more came within 60 s; ask for fewer or add nodes",
        ),
    ],
)
def test_no_room_names_the_option_the_figures_and_the_remedy(
    free: list[dict[str, float]],
    n_shards: int,
    n_replicas: int,
    gpu: bool,
    text: str,
) -> None:
    cluster = nodes(*free)
    with pytest.raises(ClusterError) as caught:
        require_room(place(cluster, n_shards, n_replicas, gpu=gpu), cluster, 60.0)
    assert str(caught.value) == text


@pytest.mark.parametrize("role", [SHARD, REPLICA])
def test_own_resources_are_asked_for_though_none_is_free(role: str) -> None:
    busy = [Node("node0", "host0", {"CPU": 4.0}, {"CPU": 4.0, role: 1.0})]
    assert bundle_for(role, busy) == {role: 1.0}
    assert [p.node_id for p in place(busy, 1, 1) if p.role == role] == [None]
