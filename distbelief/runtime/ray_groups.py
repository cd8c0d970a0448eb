"""The placement groups of a run: one for each shard and one for each replica."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distbelief.errors import ClusterError
from distbelief.runtime.placement import (
    REPLICA,
    Placement,
    place,
    place_one,
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
        n_replicas: int,
        *,
        gpu: bool,
        patience_s: float,
        say: Callable[[str], None],
        check: Callable[[], None],
    ) -> None:
        """Reserves room for all; blocks until there is, ``patience_s`` at most.

        ``check`` is called again and again meanwhile, and may raise to end the wait.

        Raises:
            ClusterError: there is not room enough; the text has the figures.
        """
        here = nodes()
        self._hosts = {node.node_id: node.host for node in here}
        placements = place(here, n_shards, n_replicas, gpu=gpu)
        for placement in placements:
            self._add(placement)
        unplaced = sum(p.node_id is None for p in placements)
        if unplaced:
            say(f"waiting for room in the cluster for {unplaced} more processes")
        waits = [group.ready() for group in self._groups.values()]
        give_up_at = time.monotonic() + patience_s
        while time.monotonic() < give_up_at:
            ready, _ = ray.wait(waits, num_returns=len(waits), timeout=SLICE_S)
            if len(ready) == len(waits):
                return
            check()
        require_room(placements, here, patience_s)
        raise ClusterError(
            f"the cluster had room for the run, but did not give it within {patience_s:g} s; "
            f"see `ray status`"
        )

    def bundle(self, role: str, index: int) -> dict[str, float]:
        """What a process takes."""
        return dict(self._placements[role, index].bundle)

    def strategy(self, role: str, index: int) -> PlacementGroupSchedulingStrategy:
        """How Ray is told to place a process in its group."""
        group = self._groups[role, index]
        return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)

    def neighbours(self, index: int) -> int:
        """Replicas on the host of replica slot ``index``, itself included."""
        host = self._host(REPLICA, index)
        slots = [slot for role, slot in self._placements if role == REPLICA]
        return sum(self._host(REPLICA, slot) == host for slot in slots) if host else 1

    def renew(self, role: str, index: int) -> None:
        """Reserves anew if the node has died; does not wait."""
        old = self._placements[role, index]
        here = nodes()
        if old.node_id in {node.node_id for node in here}:
            return
        self._hosts = {node.node_id: node.host for node in here}
        remove_placement_group(self._groups[role, index])
        self._add(place_one(here, role, index, old.bundle))

    def clear(self) -> None:
        """Gives all room back."""
        for group in self._groups.values():
            remove_placement_group(group)
        self._groups.clear()

    def _add(self, placement: Placement) -> None:
        selector: Any = None
        if placement.node_id is not None:
            selector = [{NODE_LABEL: placement.node_id}]
        group = placement_group([dict(placement.bundle)], bundle_label_selector=selector)
        self._groups[placement.role, placement.index] = group
        self._placements[placement.role, placement.index] = placement

    def _host(self, role: str, index: int) -> str | None:
        return self._hosts.get(self._placements[role, index].node_id or "")
