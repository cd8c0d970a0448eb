"""How soon what dies serves again: each kind of death several times, on this host's own Ray."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from distbelief.bench.strike import Measured, Target
from distbelief.chaos.background import Background
from distbelief.chaos.processes import MARK
from distbelief.chaos.schedule import Kind
from distbelief.errors import RunError

if TYPE_CHECKING:
    from distbelief.runtime.ray_simulated import SimulatedNodes

REPLICAS, SHARDS = 2, 2

Say = Callable[[str], None]


@dataclass
class Case:
    """One kind of death, and what was measured.

    Attributes:
        name: For people.
        limit_s: What is promised, None if nothing is.
        values: Seconds, one of each time.
        details: Where a value is of a recovery: all of it.
        failure: Why it was not measured as often as it should be, or empty.
    """

    name: str
    limit_s: float | None = None
    values: list[float] = field(default_factory=list)
    details: list[Measured] = field(default_factory=list)
    failure: str = ""

    def add(self, measured: Measured) -> None:
        """Takes note of a recovery."""
        self.values.append(measured.seconds)
        self.details.append(measured)

    @property
    def median_s(self) -> float | None:
        """The median, None before anything was measured."""
        return median(self.values) if self.values else None

    @property
    def kept(self) -> bool:
        """Whether it recovered each time, and the median is within what is promised."""
        seconds = self.median_s
        if self.failure:
            return False
        return self.limit_s is None or (seconds is not None and seconds <= self.limit_s)


def measure_recovery(runs: int, folder: Path, say: Say) -> list[Case]:
    """Measures every case so many times; blocks for two to five minutes for each time.

    What dies again within a minute is restarted with a delay, so that minutes are waited in vain.

    A run that does not begin, ends by itself or does not recover is told, and counts as a failure
    of its cases.

    Args:
        runs: How many times.
        folder: Where the runs' folders go, which must hold none.
        say: Tells the user.
    """
    found: list[Case] = []
    for name, measure in (
        ("twins", _with_twins),
        ("single", _without_twins),
        ("nodes", _nodes_removed),
    ):
        cases: list[Case] = []
        try:
            measure(runs, folder / name, say, cases)
        except RunError as error:  # what has been measured is of use all the same
            say(f"{name}: {error}")
            for case in cases:
                case.failure = case.failure or str(error)
        found += cases
    return found


def _with_twins(runs: int, run_dir: Path, say: Say, cases: list[Case]) -> None:
    kinds: list[tuple[Case, Kind, int, bool]] = [
        (Case("replica killed", 15.0), "replica", 0, False),
        (Case("shard with a twin killed", 3.0), "shard", 0, False),
        (Case("coordinator killed", 15.0), "coordinator", 0, False),
        (Case("evaluator killed"), "evaluator", 0, False),
        (Case("shard with a twin stopped", None), "shard", 1, True),
    ]
    cases += [case for case, *_ in kinds]
    options = {
        "replicas": REPLICAS,
        "shards": SHARDS,
        "shard_replication": 2,
        "address": "local",
    }
    with Background(run_dir, options) as run:
        target = Target(run, REPLICAS, SHARDS)
        run.await_work(REPLICAS, twins=SHARDS)
        for i in range(runs):
            for case, kind, first, stop in kinds:
                case.add(target.strike(kind, first + i, stop=stop))
                _tell(case, say)
        run.stop()


def _without_twins(runs: int, run_dir: Path, say: Say, cases: list[Case]) -> None:
    case = Case("shard without a twin killed", 15.0)
    cases.append(case)
    options = {"replicas": REPLICAS, "shards": SHARDS, "address": "local"}
    with Background(run_dir, options) as run:
        target = Target(run, REPLICAS)
        run.await_work(REPLICAS)
        for i in range(runs):
            case.add(target.strike("shard", i))
            _tell(case, say)
        run.stop()


def _nodes_removed(runs: int, run_dir: Path, say: Say, cases: list[Case]) -> None:
    """A node with a shard and a replica on it is removed, of three; then another one comes."""
    found = Case("node removed: found", 5.0)
    shard = Case("node removed: its shard serves")
    replica = Case("node removed: its replica works")
    both = Case("node removed: both", 15.0)
    cases += [found, shard, replica, both]
    with _marked_nodes() as (nodes, mark):
        options = {"replicas": REPLICAS, "shards": SHARDS, "address": nodes.address}
        with Background(run_dir, options, mark=mark) as run:
            target = Target(run, REPLICAS)
            run.await_work(REPLICAS)
            for _ in range(runs):
                _remove_a_node(target, nodes, found, shard, replica, both)
                for case in cases:
                    _tell(case, say)
                nodes.add()
            run.stop()


def _remove_a_node(
    target: Target, nodes: SimulatedNodes, found: Case, shard: Case, replica: Case, both: Case
) -> None:
    target.await_whole()
    there = [member for member, _ in target.run.members()]
    pairs = [
        (a, b)
        for a in there
        for b in there
        if (a.kind, b.kind) == ("shard", "replica") and a.node == b.node
    ]
    if not pairs:
        raise RunError("no node has a shard and a replica")
    lost_shard, lost_replica = pairs[0]
    target.await_rested(lost_shard.name)
    at = target.now()
    nodes.remove(lost_shard.node)
    of_shard = target.recovered(lost_shard.name, at)
    of_replica = target.recovered(lost_replica.name, at)
    found.values.append(max(of_shard.found_s, of_replica.found_s))
    shard.add(of_shard)
    replica.add(of_replica)
    both.values.append(max(of_shard.seconds, of_replica.seconds))


@contextmanager
def _marked_nodes() -> Iterator[tuple[SimulatedNodes, str]]:
    """Three nodes with room for a shard and a replica each, whose processes inherit a mark."""
    # Ray is imported only where it is used.
    from distbelief.runtime.ray_simulated import simulated_nodes

    mark = uuid.uuid4().hex
    os.environ[MARK] = mark
    try:
        with simulated_nodes(3, {"shard": 1, "replica": 1}) as nodes:
            yield nodes, mark
    finally:
        del os.environ[MARK]


def _tell(case: Case, say: Say) -> None:
    say(f"{case.name}: {case.values[-1]:.2f} s")
