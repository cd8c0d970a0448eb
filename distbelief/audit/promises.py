"""What a run says that it has finished, and the audit therefore has to find."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from distbelief.audit.history import Log
from distbelief.audit.lineage import Histories
from distbelief.errors import DataError
from distbelief.items import ItemPlan
from distbelief.server.applied import ItemSet


def promised(
    plan: ItemPlan,
    events: Iterable[dict[str, Any]],
    status: str,
    final: Sequence[Log],
    histories: Histories,
    start: int | None,
) -> range:
    """The items that must have been applied, or set aside, on every shard.

    All if the run says that it is finished; else those of the epochs that its events call done
    since it was last resumed, or a shard went back to a snapshot, and of those before the two from
    which leases came when the latest item was applied.

    Args:
        plan: The run's items.
        events: All that it has told, in order.
        status: How it has ended, or empty.
        final: The log of each shard that serves.
        histories: How they rest on others.
        start: The incarnation with which the run's last start began its shards, if known.

    Raises:
        DataError: an event is damaged.
    """
    if status == "finished":
        return range(plan.n_items)
    lines = [histories.followed(log) for log in final]
    epochs = _told(events, lines)
    starts = {line[-1].header.incarnation for line in lines}
    if starts == {min(starts) if start is None else start}:  # none went back since
        applied = [histories.at(log, log.end).applied for log in final]
        # Of a run that goes on, or was killed, logs are not of one moment: the least counts.
        least_or_most = max if status else min
        latest = least_or_most(_latest(items) for items in applied)
        epochs = max(epochs, latest // plan.items_per_epoch - 1)
    return range(min(epochs * plan.items_per_epoch, plan.n_items))


def _told(events: Iterable[dict[str, Any]], lines: Sequence[Sequence[Log]]) -> int:
    """Epochs that were called done, and that nothing has undone since."""
    epochs, lost = 0, set[tuple[int, int]]()
    for event in events:
        kind = event["kind"]
        if kind == "resumed" or (kind == "recovered" and event.get("how") == "snapshot"):
            epochs = 0
            lost.clear()
        elif kind == "epoch":
            epochs = max(epochs, _number(event, "epoch"))
        elif kind == "shard_lost" and event.get("role") != "twin":
            lost.add((_number(event, "shard"), _number(event, "incarnation")))
    for line in lines:
        shard, known = line[0].header.shard, {log.header.incarnation for log in line}
        if any(s == shard and i < max(known) and i not in known for s, i in lost):
            return 0  # it went back, which will be told when all is well again
    return epochs


def _number(event: dict[str, Any], name: str) -> int:
    try:
        return int(event[name])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("events.jsonl", f"is damaged: {event['kind']}: {error!r}") from error


def _latest(items: ItemSet) -> int:
    return items.intervals[-1][1] - 1 if items.intervals else 0
