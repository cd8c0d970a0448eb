"""Which node each shard and replica goes to: a pure decision, for placement groups to carry out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distbelief.errors import ClusterError

Resources = Mapping[str, float]

SHARD, REPLICA = "shard", "replica"
"""Resources of our own: where a cluster has them, only nodes with them are taken."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster: what it has in all, and what of it is free."""

    node_id: str
    host: str
    free: dict[str, float] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one process goes; ``node_id`` is None if it must wait for a node yet to come."""

    role: str
    index: int
    bundle: dict[str, float]
    node_id: str | None


def bundle_for(role: str, nodes: Sequence[Node], *, gpu: bool = False) -> dict[str, float]:
    """What one shard or replica takes from its node.

    Its own resource where the cluster has such, else one CPU; a replica on an accelerator takes
    that as well.
    """
    own = any(node.total.get(role, 0) for node in nodes)
    bundle = {role: 1.0} if own else {"CPU": 1.0}
    if gpu and role == REPLICA:
        bundle["GPU"] = 1.0
    return bundle


def place(
    nodes: Sequence[Node], n_shards: int, n_replicas: int, *, gpu: bool = False
) -> list[Placement]:
    """Spreads shards, then replicas, each over the nodes that have room, least laden first.

    Shards come first, since a run cannot do without them. A process that fits nowhere now is left
    without a node: the cluster may grow.
    """
    free = {node.node_id: dict(node.free) for node in nodes}
    placements = []
    for role, count in ((SHARD, n_shards), (REPLICA, n_replicas)):
        bundle = bundle_for(role, nodes, gpu=gpu)
        laden = dict.fromkeys(free, 0)
        for index in range(count):
            node_id = _least_laden(free, laden, bundle)
            placements.append(Placement(role, index, bundle, node_id))
            if node_id is not None:
                laden[node_id] += 1
                for name, amount in bundle.items():
                    free[node_id][name] -= amount
    return placements


def place_one(nodes: Sequence[Node], role: str, index: int, bundle: Resources) -> Placement:
    """A place for a replacement, on the node with most room."""
    free = {node.node_id: dict(node.free) for node in nodes}
    node_id = _least_laden(free, dict.fromkeys(free, 0), bundle)
    return Placement(role, index, dict(bundle), node_id)


def require_room(placements: Sequence[Placement], nodes: Sequence[Node], patience_s: float) -> None:
    """Raises ClusterError with the figures if some process was not placed in time."""
    for role in (SHARD, REPLICA):
        mine = [p for p in placements if p.role == role]
        placed = sum(p.node_id is not None for p in mine)
        if placed < len(mine):
            wanted = ", ".join(f"{amount:g} {name}" for name, amount in mine[0].bundle.items())
            raise ClusterError(
                f"--{role}s: the cluster of {len(nodes)} nodes has room for {placed} of "
                f"{len(mine)} {role}s ({wanted} each), and no more came within {patience_s:g} s; "
                f"ask for fewer or add nodes"
            )


def _least_laden(
    free: Mapping[str, Resources], laden: Mapping[str, int], bundle: Resources
) -> str | None:
    fitting = [
        node_id
        for node_id, has in free.items()
        if all(has.get(name, 0.0) >= amount for name, amount in bundle.items())
    ]
    if not fitting:
        return None
    name = next(iter(bundle))
    return min(fitting, key=lambda node_id: (laden[node_id], -free[node_id].get(name, 0.0)))
