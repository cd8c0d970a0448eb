"""What was done twice in a run since a part of it had been forgotten, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from distbelief.audit.history import Log
from distbelief.audit.lineage import Histories, Key
from distbelief.audit.twins import Pair

Start = tuple[int, int]
"""A shard and its incarnation."""


@dataclass(frozen=True, slots=True)
class Redone:
    """Pushes of one start of a shard that no surviving history has, and why."""

    shard: int
    incarnation: int
    pushes: int
    why: str

    def __str__(self) -> str:
        some = f"{self.pushes:,} {'push' if self.pushes == 1 else 'pushes'}"
        return f"{some} of shard {self.shard} (start {self.incarnation}): {self.why}"


@dataclass(frozen=True, slots=True)
class Loss:
    """The end of a shard's start, in which ``part`` of the run: it begins with each resumption."""

    cause: str
    role: str
    part: int


@dataclass(frozen=True)
class Told:
    """What a run's events say of its shards' starts and ends.

    Attributes:
        lost: Starts that were lost.
        part: The part of the run in which each start began.
    """

    lost: dict[Start, Loss]
    part: dict[Start, int]

    @classmethod
    def by(cls, events: Iterable[dict[str, Any]]) -> Told:
        """From the events, in order; one that lacks something tells nothing."""
        told, part = cls({}, {}), 0
        for event in events:
            start = event.get("shard"), event.get("incarnation")
            if event["kind"] == "resumed":
                part += 1
            elif not (isinstance(start[0], int) and isinstance(start[1], int)):
                continue
            elif event["kind"] == "shard_started":
                told.part[start[0], start[1]] = part
            elif event["kind"] == "shard_lost":
                cause = str(event.get("cause", "")).removeprefix(f"shard {start[0]} was lost: ")
                loss = Loss(cause, str(event.get("role", "primary")), part)
                told.lost[start[0], start[1]] = loss
        return told


def survivors(final: Sequence[Log], histories: Histories) -> dict[Key, int]:
    """The logs of which a part survives, and up to which clock."""
    kept: dict[Key, int] = {}
    for last in final:
        kept[last.key] = last.end
        for log in histories.ancestry(last):
            for source, clock in histories.sources(log):
                kept[source.key] = max(kept.get(source.key, 0), clock)
    return kept


def redone(
    logs: Sequence[Log],
    kept: dict[Key, int],
    pairs: Sequence[Pair],
    beside: Collection[Key],
    told: Told,
) -> tuple[Redone, ...]:
    """What each log has that does not survive.

    A push that a twin and its primary both have is one push.

    Args:
        logs: All of them.
        kept: Up to which clock they survive.
        pairs: Twins and primaries, in the order of the twins' starts.
        beside: Twins that follow shards that serve; they have nothing of their own.
        told: What the events say.
    """
    kept, counted = dict(kept), {log.key: log.header.clock for log in logs}
    surviving = [log for log in logs if log.key in kept]
    for pair in reversed(pairs):
        also = min(kept.get(pair.twin.key, -1), pair.agreed)
        kept[pair.primary.key] = max(kept.get(pair.primary.key, -1), also)
    for pair in pairs:
        also = min(kept[pair.primary.key], pair.agreed)
        kept[pair.twin.key] = max(kept.get(pair.twin.key, -1), also)
        counted[pair.twin.key] = pair.agreed
    found = []
    for log in sorted(logs, key=lambda log: (log.header.incarnation, log.header.shard)):
        pushes = log.end - max(counted[log.key], kept.get(log.key, -1))
        if pushes > 0 and log.key not in beside:
            why = _why(log, surviving, told)
            found.append(Redone(log.header.shard, log.header.incarnation, pushes, why))
    return tuple(found)


def _why(log: Log, surviving: Sequence[Log], told: Told) -> str:
    shard, n_shards, incarnation = log.key
    loss, end = told.lost.get((shard, incarnation)), ""
    if loss is not None and loss.role == "twin":
        return f"a twin of shard {shard} was lost ({loss.cause})"
    if loss is not None:
        end = f"shard {shard} was lost ({loss.cause})"
    later = [
        other
        for other in surviving
        if other.header.incarnation > incarnation
        and other.header.snapshot is not None
        and other.overlaps(log)
    ]
    successor = min(later, key=lambda other: other.header.incarnation, default=None)
    if successor is None:
        return end or "nothing rests on them"
    snapshot = successor.header.snapshot
    began = told.part.get((successor.header.shard, successor.header.incarnation))
    if loss is not None and n_shards == successor.header.n_shards and began in (None, loss.part):
        return f"{end} and went on from snapshot {snapshot}"
    resumed = f"the run was resumed from snapshot {snapshot}"
    return f"{end}; {resumed}" if end else resumed
