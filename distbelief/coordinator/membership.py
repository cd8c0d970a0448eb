"""The replicas that take part, their pace, and how many items each may hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

FIRST_LEASE = 2
"""Items for a replica whose pace is not known yet: one to compute, one to load meanwhile."""

SHARE_OF_EPOCH = 0.75
"""Of an epoch's items, what all replicas may hold together."""


@dataclass(slots=True)
class Member:
    """A replica, as the coordinator last heard of it."""

    replica: int
    host: str
    pid: int
    last_seen: float
    seconds_per_item: float | None = None
    items_done: int = 0
    examples_done: int = 0
    waiting_s: float = 0.0
    parameters_age_s: float | None = None
    left: bool = False
    stages: int = 1


@dataclass(slots=True)
class Membership:
    """Who takes part."""

    members: dict[int, Member] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)

    def pace(self) -> float:
        """Items a second of all who are there; a pace not known yet counts as the others'."""
        present = [m for m in self.members.values() if not m.left]
        known = [1 / m.seconds_per_item for m in present if m.seconds_per_item]
        return sum(known) * len(present) / len(known) if known else 0.0

    def wanted(
        self, replica: int, *, n_held: int, n_open: int, items_per_epoch: int, lease_s: float
    ) -> int:
        """How many items to lease a replica now.

        It shall hold ``lease_s`` seconds of work at its own pace; it is topped up before it falls
        below. All replicas together hold less than an epoch: leases come from two epochs, and if
        one replica held all that these have left, the others would wait for it. Towards the run's
        end each gets no more than its share of what remains, so that all end together.

        Args:
            replica: The replica that asks.
            n_held: Items that it holds.
            n_open: Items of the run that nobody has done yet, held ones included.
            items_per_epoch: Items of an epoch.
            lease_s: Seconds of work to hold at least.
        """
        member = self.members[replica]
        if not member.seconds_per_item or member.left:
            return max(0, FIRST_LEASE - n_held)
        shared = min(n_open, SHARE_OF_EPOCH * items_per_epoch)
        horizon_s = min(1.25 * lease_s, shared / self.pace())
        target = max(FIRST_LEASE, math.ceil(horizon_s / member.seconds_per_item))
        return max(0, target - n_held)
