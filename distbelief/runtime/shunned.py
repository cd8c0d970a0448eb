"""Nodes on which processes fell silent: for a while nothing new is placed there."""

from __future__ import annotations

FOR_S = 60.0
"""Ray itself takes a node that is gone for alive for some 15 to 65 s."""


class Shunned:
    """Remembers them; no clock, times are given in seconds."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def add(self, node: str, at: float) -> None:
        """A process of this node fell silent."""
        self._since[node] = at

    def nodes(self, at: float) -> frozenset[str]:
        """Those that are shunned at that time."""
        return frozenset(node for node, since in self._since.items() if at - since < FOR_S)
