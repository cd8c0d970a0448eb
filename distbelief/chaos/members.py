"""Who is at work in a run, as its folder tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distbelief.chaos.schedule import Kind
from distbelief.serving import Serving


@dataclass(frozen=True, slots=True)
class Member:
    """A process of a run and its part.

    Attributes:
        kind: What it is.
        name: As the run calls it when it tells of a recovery.
        pid: Its process.
        number: Which replica or shard; 0 of the others.
        start: Which start of it; a shard's incarnation.
        node: Where it runs.
    """

    kind: Kind
    name: str
    pid: int
    number: int = 0
    start: int = 1
    node: str = ""


def members(serving: Serving | None, events: Sequence[dict[str, Any]]) -> list[Member]:
    """Those who are at work, each kind in the order of its numbers.

    A replica is at work once it has joined and until it is lost or has left, a shard or a twin as
    long as it is named as such, and of the others the one that was started last is.

    Args:
        serving: Who serves.
        events: All of the run so far.
    """
    replicas: dict[int, Member] = {}
    nodes: dict[int, str] = {}
    beside: dict[Kind, Member] = {}
    for event in events:
        match event["kind"]:
            case "replica_placed":
                nodes[event["replica"]] = event.get("node", "")
            case "replica_joined":
                k = event["replica"]
                replicas[k] = Member(
                    "replica", f"replica {k}", event["pid"], k, node=nodes.get(k, "")
                )
            case "replica_lost":
                replicas.pop(event["replica"], None)
            case "coordinator_started" | "evaluator_started":
                kind: Kind = "coordinator" if event["kind"][0] == "c" else "evaluator"
                beside[kind] = Member(
                    kind, f"the {kind}", event["pid"], 0, event["start"], event["node"]
                )
            case "coordinator_lost" | "evaluator_lost":
                beside.pop("coordinator" if event["kind"][0] == "c" else "evaluator", None)
    found = [replicas[k] for k in sorted(replicas)]
    if serving is not None:
        sides: tuple[tuple[Kind, Any], ...] = (("shard", serving.shards), ("twin", serving.twins))
        for kind, endpoints in sides:
            found += [
                Member(kind, f"shard {e.shard}", e.pid, e.shard, e.incarnation, e.node)
                for e in sorted(endpoints, key=lambda e: e.shard)
            ]
    return found + [beside[kind] for kind in sorted(beside)]


def chosen(there: Sequence[Member], kind: Kind, choice: int) -> Member | None:
    """The one of a kind that a choice means; None if there is none."""
    mine = [member for member in there if member.kind == kind]
    return mine[choice % len(mine)] if mine else None
