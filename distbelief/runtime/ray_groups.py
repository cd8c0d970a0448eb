"""The room of a run in its cluster: a placement group for each shard and for each replica."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distbelief.errors import ClusterError
from distbelief.replication import ReplicaConfig
from distbelief.runtime.placement import (
    Placement,
    neighbours,
    place,
    place_again,
    require_room,
)
from distbelief.runtime.ray_cluster import nodes

SLICE_S = 0.5
NODE_LABEL = "ray.io/node-id"


class Groups:
    """Reserves room on nodes that a pure decision has chosen; :meth:`clear` gives it back."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, int], PlacementGroup] = {}
        self._placements: dict[tuple[str, int], Placement] = {}
        self._hosts: dict[str, str] = {}

    def reserve(
        self,
        n_shards: int,
        slots: Sequence[ReplicaConfig],
        *,
        copies: int,
        patience_s: float,
        say: Callable[[str], None],
        check: Callable[[], None],
    ) -> None:
        """Reserves room for all; blocks until there is, ``patience_s`` at most.

        ``check`` is called again and again meanwhile, and may raise to end the wait.

        Args:
            n_shards: Shards of the run.
            slots: Its replicas, their devices decided.
            copies: Places of each shard; see :func:`~distbelief.runtime.placement.place`.
            patience_s: How long to wait for nodes that are not there yet.
            say: Tells the user.
            check: See above.

        Raises:
            ClusterError: there is not room enough; the text has the figures.
        """
        here = nodes()
        self._hosts = {node.node_id: node.host for node in here}
        placements = place(here, n_shards, slots, copies=copies)
        for placement in placements:
            self._add(placement)
        unplaced = sum(len(p.bundles) for p in placements if p.node_ids is None)
        if unplaced:
            say(f"waiting for room in the cluster for {unplaced} more processes")
        waits = [group.ready() for group in self._groups.values()]
        give_up_at = time.monotonic() + patience_s
        while time.monotonic() < give_up_at:
            ready, _ = ray.wait(waits, num_returns=len(waits), timeout=SLICE_S)
            if len(ready) == len(waits):
                self._hosts = {node.node_id: node.host for node in nodes()}
                return
            check()
        require_room(placements, here, patience_s)
        raise ClusterError(
            f"the cluster had room for the run, but did not give it within {patience_s:g} s; "
            f"see `ray status`"
        )

    def bundle(self, role: str, index: int, stage: int = 0) -> dict[str, float]:
        """What a process takes."""
        return dict(self._placements[role, index].bundles[stage])

    def strategy(self, role: str, index: int, stage: int = 0) -> PlacementGroupSchedulingStrategy:
        """How Ray is told to place a process in its group."""
        group = self._groups[role, index]
        return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=stage)

    def neighbours(self, slot: int, stage: int) -> int:
        """Stages of replicas on the host of one of them, itself included."""
        placements = [self._settled(*key) for key in self._groups]
        return neighbours(placements, self._hosts, slot, stage)

    def node_of(self, role: str, index: int, stage: int = 0) -> str | None:
        """The node of a process, if it has been decided."""
        node_ids = self._settled(role, index).node_ids
        return None if node_ids is None else node_ids[stage]

    def renew(
        self, role: str, index: int, *, shunned: Iterable[str] = (), hung: bool = False
    ) -> None:
        """Reserves anew if a node of the group has died or is shunned; does not wait.

        Args:
            role: Of the group.
            index: Of the group.
            shunned: Nodes that do not answer, whatever Ray thinks of them.
            hung: Whether the process may be there still, and hold what the group has.
        """
        old = self._settled(role, index)
        here = nodes()
        self._hosts = {node.node_id: node.host for node in here}
        alive = self._hosts.keys() - set(shunned)
        if not hung and old.node_ids is not None and alive >= set(old.node_ids):
            return
        remove_placement_group(self._groups[role, index])
        self._add(place_again(here, old, shunned=shunned))

    def clear(self) -> None:
        """Gives all room back."""
        for group in self._groups.values():
            remove_placement_group(group)
        self._groups.clear()

    def _add(self, placement: Placement) -> None:
        selector: Any = None
        if placement.node_ids is not None:
            selector = [{NODE_LABEL: node_id} for node_id in placement.node_ids]
        group = placement_group(
            [dict(bundle) for bundle in placement.bundles],
            strategy="PACK",
            bundle_label_selector=selector,
        )
        self._groups[placement.role, placement.index] = group
        self._placements[placement.role, placement.index] = placement

    def _settled(self, role: str, index: int) -> Placement:
        """The placement, with the nodes that Ray has chosen where it was left to Ray."""
        placement = self._placements[role, index]
        if placement.node_ids is None:
            table: dict[str, Any] = placement_group_table(self._groups[role, index])
            where: dict[int, str] = table["bundles_to_node_id"]
            node_ids = tuple(where[stage] for stage in range(len(placement.bundles)))
            if all(node_ids):
                placement = dataclasses.replace(placement, node_ids=node_ids)
                self._placements[role, index] = placement
        return placement
