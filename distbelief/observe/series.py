"""What a run's events say over time, as series to plot: plain values in, plain values out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from distbelief.observe.events import RECOVERIES
from distbelief.observe.record import Record

Axis = Literal["examples", "seconds"]
Points = list[tuple[float, float]]

MOST_POINTS = 240
SMOOTH_FROM = 24
"""A series of fewer points is shown as it is."""

SPAN_S = 2.0
"""Throughput is taken over so many seconds at least: replicas report about once a second."""


@dataclass(frozen=True, slots=True)
class Done:
    """One item that a replica has finished: when, examples finished by then, its loss if any."""

    t: float
    examples: int
    loss: float | None


@dataclass(slots=True)
class Life:
    """A replica or a shard, from its beginning to its end.

    ``end`` is ``running``, ``ended`` or ``lost``; ``ended`` is the last moment that is known.
    """

    name: str
    where: str
    began: float
    ended: float = 0.0
    end: Literal["running", "ended", "lost"] = "running"
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that a reader of the report will ask about."""

    t: float
    kind: str
    text: str


@dataclass(slots=True)
class Lives:
    """Takes events one by one, and keeps who lives."""

    all: list[Life] = field(default_factory=list)
    open: dict[str, Life] = field(default_factory=dict)

    def begin(self, name: str, t: float, where: str) -> None:
        """A new life, which ends an older one of that name."""
        self.close(name, t, "lost" if name in self.open else "ended", "")
        self.open[name] = Life(name, where, t)
        self.all.append(self.open[name])

    def close(self, name: str, t: float, end: Literal["ended", "lost"], cause: str) -> None:
        """The end of a life, if there is one."""
        life = self.open.pop(name, None)
        if life is not None:
            life.ended, life.end, life.cause = t, end, cause

    def rename(self, old: str, new: str, t: float) -> None:
        """Who lives under the one name goes on under the other, as a twin that takes over does."""
        self.close(new, t, "lost", "")
        life = self.open.pop(old, None)
        if life is not None:
            life.name = new
            self.open[new] = life

    def close_all(self, t: float) -> None:
        """The end of everything, in order."""
        for name in list(self.open):
            self.close(name, t, "ended", "")


def items_done(record: Record) -> list[Done]:
    """Every item that was finished, in the order of the reports."""
    found: list[Done] = []
    examples = 0
    for event in record.events:
        if event["kind"] == "resumed":
            examples = int(event.get("examples_applied", examples))
        if event["kind"] != "items":
            continue
        losses: Sequence[float | None] = event.get("losses", {}).get("loss", [])
        for i, item in enumerate(event["items"]):
            examples += record.plan.item(item).n_examples
            loss = losses[i] if i < len(losses) else None
            found.append(Done(event["t"], examples, loss))
    return found


def loss_points(done: Sequence[Done], axis: Axis) -> Points:
    """Means of the loss over consecutive items, in no more than ``MOST_POINTS`` points."""
    known = [(d, d.loss) for d in done if d.loss is not None and math.isfinite(d.loss)]
    size = max(1, math.ceil(len(known) / MOST_POINTS))
    sums: dict[float, list[float]] = {}
    for begin in range(0, len(known), size):
        part = known[begin : begin + size]
        last = part[-1][0]
        # Of items that were reported at once the order in time is not known.
        x = float(last.examples) if axis == "examples" else last.t
        sums.setdefault(x, []).extend(loss for _, loss in part)
    return [(x, sum(losses) / len(losses)) for x, losses in sums.items()]


def smoothed(points: Points) -> Points:
    """An exponential mean over about a twentieth of the points, without a start at zero."""
    if len(points) < SMOOTH_FROM:
        return points
    decay = 1 - 2 / (len(points) / 20 + 1)
    mean = weight = 0.0
    found = []
    for x, y in points:
        mean, weight = decay * mean + (1 - decay) * y, decay * weight + (1 - decay)
        found.append((x, mean / weight))
    return found


def throughput_points(done: Sequence[Done]) -> Points:
    """Images a second, over equal spans of time from the first item to the last."""
    if len(done) < 2 or done[-1].t <= done[0].t:
        return []
    begin, end = done[0].t, done[-1].t
    width = max(SPAN_S, (end - begin) / (MOST_POINTS / 2))
    n = max(1, int((end - begin) / width))
    width = (end - begin) / n
    counts = [0] * n
    # What was done before the first report is of a span that nobody knows.
    for before, now in itertools.pairwise(done):
        if now.t > begin:
            place = min(n, math.ceil((now.t - begin) / width)) - 1
            counts[place] += max(0, now.examples - before.examples)
    return [(begin + (i + 0.5) * width, count / width) for i, count in enumerate(counts)]


def evaluation_points(record: Record, figure: str, axis: Axis) -> Points:
    """A figure of the averaged weights: ``top1``, ``top5`` (shares) or ``loss``."""
    points = []
    for event in record.of("evaluation"):
        if figure not in event:
            continue
        examples = event.get("examples_applied", event["epoch"] * record.plan.n_examples)
        examples = min(examples, record.plan.total_examples)
        points.append((float(examples if axis == "examples" else event["t"]), float(event[figure])))
    return points


def staleness_points(record: Record) -> Points:
    """The mean staleness of the pushes between two progress events, over time."""
    points = []
    for event in record.of("progress"):
        counts = {int(value): n for value, n in event.get("staleness", {}).items()}
        if total := sum(counts.values()):
            mean = sum(value * n for value, n in counts.items()) / total
            points.append((float(event["t"]), mean))
    return points


def waiting_points(record: Record) -> Points:
    """The share of the replicas' time so far that they waited for data, over time."""
    return [(float(e["t"]), float(e["waiting"])) for e in record.of("progress") if "waiting" in e]


def shard_points(record: Record, figure: str) -> dict[str, Points]:
    """A figure of each shard over time; of many shards their sum alone."""
    by_shard: dict[int, Points] = {}
    summed: Points = []
    for event in record.of("progress"):
        shards: list[dict[str, Any]] = event.get("shards", [])
        for shard in shards:
            point = (float(event["t"]), float(shard.get(figure, 0.0)))
            by_shard.setdefault(shard["shard"], []).append(point)
        if shards:
            total = sum(float(shard.get(figure, 0.0)) for shard in shards)
            summed.append((float(event["t"]), total))
    if len(by_shard) > 8:
        return {f"{len(by_shard)} shards": summed}
    return {f"shard {shard}": points for shard, points in sorted(by_shard.items())}


def lives(record: Record) -> list[Life]:
    """Shards and replicas, in the order in which they began."""
    known = Lives()
    placed: dict[int, str] = {}
    last = 0.0
    for event in record.events:
        kind, t = event["kind"], float(event["t"])
        if kind == "resumed":
            known.close_all(last)
        elif kind == "shard_started":
            where = str(event.get("node") or event.get("address") or "")
            known.begin(_shard_name(event), t, where)
        elif kind == "replica_placed" and not event.get("stage"):
            placed[event["replica"]] = str(event.get("node", ""))
        elif kind == "replica_joined":
            where = str(event.get("host") or placed.get(event["replica"], ""))
            known.begin(f"replica {event['replica']}", t, where)
        elif kind in ("replica_lost", "shard_lost"):
            name = _shard_name(event) if kind == "shard_lost" else f"replica {event['replica']}"
            known.close(name, t, "lost", str(event.get("cause", "")))
        elif kind == "recovered" and event.get("how") == "twin":
            known.rename(f"twin of {event['what']}", str(event["what"]), t)
        elif kind == "end":
            known.close_all(t)
        last = max(last, t)
    if record.end[0] != "running":
        known.close_all(last)
    for life in known.open.values():
        life.ended = last
    return known.all


def incidents(record: Record) -> list[Incident]:
    """What was lost, replaced, set aside, left out or went wrong, in order."""
    found = []
    for e in record.events:
        text = _told(e)
        if text:
            found.append(Incident(float(e["t"]), e["kind"], text))
    return found


def _told(e: dict[str, Any]) -> str:
    kind = e["kind"]
    if kind == "shard_lost":
        return f"{_shard_name(e)} was lost: {e.get('cause', '')}"
    if kind == "replica_lost":
        n = len(e.get("items_returned", ()))
        went = f"; {n} item{'s' if n != 1 else ''} went to others" if n else ""
        return f"replica {e.get('replica')} was lost: {e.get('cause', '')}{went}"
    if kind in RECOVERIES:
        by = f" by replica {e['replica']}" if kind == "replica_replaced" and "replica" in e else ""
        seconds = e.get("seconds")
        after = f" after {seconds:.1f} s" if seconds is not None else ""
        return f"{e.get('what', '')} replaced{by}{after}"
    told = {
        "resumed": "resumed from snapshot {snapshot} at {examples_applied} images",
        "set_aside": "item {item} set aside: {reason}",
        "coordinator_lost": "the coordinator was lost: {cause}",
        "evaluator_lost": "the evaluator was lost: {cause}",
        "replica_dismissed": "replica {replica} was dismissed: {cause}",
        "shard_forgot": "shard {shard} has forgotten {items} items, which are done again",
        "evaluation_failed": "evaluation after epoch {epoch} failed: {cause}",
        "evaluation_left_out": "evaluation after epoch {epoch} left out",
        "snapshot_failed": "a snapshot failed: {cause}",
        "tensorboard_failed": "TensorBoard's file could not be written: {cause}",
        "not_drained": "replicas {replicas} did not end in time",
        "failure": "the run failed: {cause}",
        "end": "{status}",
    }
    return told[kind].format_map(_Known(e)) if kind in told else ""


def _shard_name(event: dict[str, Any]) -> str:
    name = f"shard {event.get('shard')}"
    return f"twin of {name}" if event.get("role") == "twin" else name


class _Known(dict[str, Any]):
    """Fields of an event; one that it lacks is left open."""

    def __missing__(self, name: str) -> str:
        return "?"
