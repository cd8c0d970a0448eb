"""A Ray cluster of several simulated nodes on this host, for whoever measures or tries things."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray.cluster_utils import Cluster

from distbelief.runtime.ray_cluster import OBJECT_STORE_NBYTES


class SimulatedNodes:
    """A head, which has no room for shards and replicas, and nodes that have.

    This process has not joined. Made by :func:`simulated_nodes`.
    """

    def __init__(self, cluster: Any, room: Mapping[str, float]) -> None:
        self._cluster = cluster
        self._room = dict(room)
        self._nodes: dict[str, Any] = {}

    @property
    def address(self) -> str:
        """Where to join it, HOST:PORT."""
        return str(self._cluster.address)

    def add(self) -> str:
        """Starts a node, and waits until it is there; returns its name."""
        node = self._cluster.add_node(num_cpus=1, resources=self._room, **_COMMON)
        self._nodes[node.node_id] = node
        return str(node.node_id)

    def remove(self, node: str) -> None:
        """Kills everything that runs on a node, at once."""
        self._cluster.remove_node(self._nodes.pop(node), allow_graceful=False)


_COMMON: dict[str, Any] = {
    "object_store_memory": OBJECT_STORE_NBYTES,
    "include_dashboard": False,
}


@contextmanager
def simulated_nodes(n: int, room: Mapping[str, float]) -> Iterator[SimulatedNodes]:
    """A cluster for the time of the block, which ends with all its processes.

    Args:
        n: How many nodes beside the head.
        room: What each has, by resource.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)  # as ray.init does for a run
    cluster: Any = Cluster()
    try:
        cluster.add_node(num_cpus=1, **_COMMON)
        nodes = SimulatedNodes(cluster, room)
        for _ in range(n):
            nodes.add()
        yield nodes
    finally:
        cluster.shutdown()
