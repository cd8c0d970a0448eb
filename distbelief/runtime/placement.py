"""Which node each process goes to: a pure decision, for placement groups to carry out."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from distbelief.config import TrainConfig
from distbelief.errors import ClusterError
from distbelief.replication import ReplicaConfig

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
    """Where a shard goes, or a replica with all of its stages.

    Attributes:
        role: Shard or replica.
        index: The shard's number, or the replica's slot.
        bundles: What each process takes: one for a shard, one a stage for a replica.
        node_ids: The node of each; None if all must wait for nodes yet to come.
    """

    role: str
    index: int
    bundles: tuple[dict[str, float], ...]
    node_ids: tuple[str, ...] | None


def decide_devices(config: TrainConfig, n_gpus: float) -> TrainConfig:
    """The configuration with the device of every stage decided: ``cpu``, or ``cuda``.

    A stage that takes a GPU sees no other, so that a device's number says nothing. Without being
    told, stages take one each if the cluster has as many as that needs.

    Args:
        config: The run.
        n_gpus: GPUs of the whole cluster.
    """
    words = [slot.device_of(stage) for slot in config.slots for stage in range(slot.stages)]
    auto = "cuda" if n_gpus >= sum(word != "cpu" for word in words) else "cpu"

    def decided(device: str) -> str:
        kinds = (auto if kind == "auto" else kind.partition(":")[0] for kind in device.split("+"))
        return "+".join(kinds)

    groups = tuple(
        re.sub(r"(?<![\w-])device=([^,\s]+)", lambda m: f"device={decided(m[1])}", text)
        for text in config.cluster.replica_group
    )
    return dataclasses.replace(
        config,
        replica=dataclasses.replace(config.replica, device=decided(config.replica.device)),
        cluster=dataclasses.replace(config.cluster, replica_group=groups),
    )


def bundle_for(role: str, nodes: Sequence[Node], *, gpu: bool = False) -> dict[str, float]:
    """What one shard, or one stage of a replica, takes from its node.

    Its own resource where the cluster has such, else one CPU; a stage on an accelerator takes that
    as well.
    """
    own = any(node.total.get(role, 0) for node in nodes)
    bundle = {role: 1.0} if own else {"CPU": 1.0}
    if gpu and role == REPLICA:
        bundle["GPU"] = 1.0
    return bundle


def bundles_of(slot: ReplicaConfig, nodes: Sequence[Node]) -> tuple[dict[str, float], ...]:
    """What each stage of a replica takes, once its devices are decided."""
    return tuple(
        bundle_for(REPLICA, nodes, gpu=slot.device_of(stage).startswith("cuda"))
        for stage in range(slot.stages)
    )


def place(
    nodes: Sequence[Node], n_shards: int, slots: Sequence[ReplicaConfig], *, copies: int = 1
) -> list[Placement]:
    """Spreads shards, then replicas, each over the nodes that have room, least laden first.

    Shards come first, since a run cannot do without them. A replica's stages go to one node if any
    has room for all, else to as few as possible; replicas that need most choose first. One that
    does not fit whole is left without nodes: the cluster may grow.

    Args:
        nodes: The cluster.
        n_shards: Shards of the run.
        slots: Its replicas, their devices decided.
        copies: Places of each shard, on different nodes where that is possible: with 2 for a twin.

    Returns:
        The shards in order, then their second places, then the replicas in order.
    """
    free = {node.node_id: dict(node.free) for node in nodes}
    shards = [(bundle_for(SHARD, nodes),)] * (n_shards * copies)
    replicas = [bundles_of(slot, nodes) for slot in slots]
    placements = []
    for role, needs in ((SHARD, shards), (REPLICA, replicas)):
        laden = dict.fromkeys(free, 0)
        found: dict[int, Placement] = {}
        for index in sorted(range(len(needs)), key=lambda i: _greed(needs[i]), reverse=True):
            beside = found.get(index - n_shards) if role == SHARD else None
            shunned = () if beside is None else beside.node_ids or ()
            node_ids = _choose_apart(free, laden, needs[index], shunned)
            found[index] = Placement(role, index, needs[index], node_ids)
            for node_id, bundle in zip(node_ids or (), needs[index], strict=False):
                laden[node_id] += 1
                _take(free[node_id], bundle)
        placements += [found[index] for index in range(len(needs))]
    return placements


def place_again(nodes: Sequence[Node], old: Placement, *, shunned: Iterable[str] = ()) -> Placement:
    """A place for a replacement, on the nodes with most room; it may have what the old one held.

    Nodes that are ``shunned`` are taken only if no other has room.
    """
    free = {node.node_id: dict(node.free) for node in nodes}
    for node_id, bundle in zip(old.node_ids or (), old.bundles, strict=False):
        if node_id in free:
            for name, amount in bundle.items():
                free[node_id][name] = free[node_id].get(name, 0.0) + amount
    node_ids = _choose_apart(free, dict.fromkeys(free, 0), old.bundles, shunned)
    return dataclasses.replace(old, node_ids=node_ids)


def neighbours(
    placements: Iterable[Placement], hosts: Mapping[str, str], slot: int, stage: int
) -> int:
    """Stages of replicas on the host of one of them, itself included; 1 if that is not known.

    Args:
        placements: Of the whole run.
        hosts: The host of each node.
        slot: The replica's slot.
        stage: Its stage.
    """
    host_of = {
        (p.index, k): hosts.get(node_id)
        for p in placements
        if p.role == REPLICA
        for k, node_id in enumerate(p.node_ids or ())
    }
    host = host_of.get((slot, stage))
    return 1 if host is None else list(host_of.values()).count(host)


def require_room(placements: Sequence[Placement], nodes: Sequence[Node], patience_s: float) -> None:
    """Raises ClusterError with the figures if some process was not placed in time."""
    for role in (SHARD, REPLICA):
        mine = [p for p in placements if p.role == role]
        placed = sum(p.node_ids is not None for p in mine)
        if placed < len(mine):
            wanted = Counter(_in_words(p.bundles) for p in mine)
            alike = len(wanted) == 1
            each = [text if alike else f"{n} of {text}" for text, n in wanted.items()]
            raise ClusterError(
                f"--{role}s: the cluster of {len(nodes)} nodes has room for {placed} of "
                f"{len(mine)} {role}s ({' and '.join(each)}{' each' if alike else ''}), and no "
                f"more came within {patience_s:g} s; ask for fewer or add nodes"
            )


def _choose_apart(
    free: Mapping[str, Resources],
    laden: Mapping[str, int],
    bundles: Sequence[Resources],
    shunned: Iterable[str],
) -> tuple[str, ...] | None:
    """As :func:`_choose`, without nodes that are shunned if that can be."""
    avoided = set(shunned)
    apart = {node_id: has for node_id, has in free.items() if node_id not in avoided}
    return _choose(apart, laden, bundles) or _choose(free, laden, bundles)


def _choose(
    free: Mapping[str, Resources], laden: Mapping[str, int], bundles: Sequence[Resources]
) -> tuple[str, ...] | None:
    """A node for each bundle, or None if not all fit."""
    chosen: dict[int, str] = {}
    name = next(iter(bundles[0]))
    # What needs more than the others goes first: the others can go anywhere.
    waiting = sorted(range(len(bundles)), key=lambda k: len(bundles[k]), reverse=True)
    while waiting:
        held = {
            node_id: _held(has, waiting, bundles)
            for node_id, has in free.items()
            if node_id not in chosen.values()
        }
        most = max(map(len, held.values()), default=0)
        if most == 0:
            return None
        best = min(
            (node_id for node_id in held if len(held[node_id]) == most),
            key=lambda node_id: (laden[node_id], -free[node_id].get(name, 0.0)),
        )
        chosen.update(dict.fromkeys(held[best], best))
        waiting = [k for k in waiting if k not in chosen]
    return tuple(chosen[k] for k in range(len(bundles)))


def _held(has: Resources, waiting: Sequence[int], bundles: Sequence[Resources]) -> list[int]:
    """Which of the bundles that wait a node would hold, the first ones first."""
    left, found = dict(has), []
    for k in waiting:
        if all(left.get(name, 0.0) >= amount for name, amount in bundles[k].items()):
            _take(left, bundles[k])
            found.append(k)
    return found


def _take(free: dict[str, float], bundle: Resources) -> None:
    for name, amount in bundle.items():
        free[name] -= amount


def _greed(bundles: Sequence[Resources]) -> tuple[float, int]:
    """By what replicas are compared: GPUs, which are few, before processes."""
    return sum(bundle.get("GPU", 0.0) for bundle in bundles), len(bundles)


def _in_words(bundles: Sequence[Resources]) -> str:
    """As in ``1 CPU, 1 GPU`` or ``2 x 1 CPU``."""
    texts = [", ".join(f"{amount:g} {name}" for name, amount in b.items()) for b in bundles]
    if len(texts) == 1:
        return texts[0]
    texts = [f"({text})" if "," in text else text for text in texts]
    return f"{len(texts)} x {texts[0]}" if len(set(texts)) == 1 else " + ".join(texts)
