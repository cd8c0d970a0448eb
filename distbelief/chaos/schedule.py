"""What is done to a run, when and to whom: a pure function of a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["replica", "shard", "twin", "coordinator", "evaluator"]
Deed = Literal["kill", "stop"]

FIRST_S = 10.0
"""Seconds for which a run that has begun is left alone."""

QUIET_S = 20.0
"""Seconds at the end in which nothing happens any more."""

SHORTEST_STOP_S, LONGEST_STOP_S = 1.0, 8.0
"""How long a process is stopped: some are woken in time, some are given up before."""

KILLS = 0.6
"""The share of kills."""

CHOICES = 1 << 16


@dataclass(frozen=True, slots=True)
class Action:
    """Something that is done to one process of a run.

    Attributes:
        at_s: Seconds after the run has begun to train.
        deed: SIGKILL, or SIGSTOP and after a while SIGCONT.
        kind: What the process is.
        choice: Which of those that are there: its number modulo theirs.
        stopped_s: Seconds for which it is stopped; 0 of a kill.
    """

    at_s: float
    deed: Deed
    kind: Kind
    choice: int
    stopped_s: float = 0.0


def schedule(seed: int, *, total_s: float, every_s: float, twins: bool) -> tuple[Action, ...]:
    """Everything that is done; the same seed and arguments give the same.

    Kinds take turns in an order that is drawn anew for each round, so that none is left out.

    Args:
        seed: Of the draws.
        total_s: Seconds that the run trains.
        every_s: From one action to the next.
        twins: Whether the run has twins.
    """
    draw = random.Random(seed)
    kinds: list[Kind] = ["replica", "shard", "coordinator", "evaluator"]
    if twins:
        kinds.append("twin")
    found: list[Action] = []
    waiting: list[Kind] = []
    at_s = max(FIRST_S, every_s)
    while at_s <= total_s - QUIET_S:
        if not waiting:
            waiting = draw.sample(kinds, len(kinds))
        kind, choice = waiting.pop(), draw.randrange(CHOICES)
        kills = draw.random() < KILLS
        stopped_s = round(draw.uniform(SHORTEST_STOP_S, LONGEST_STOP_S), 1)
        if kills:
            found.append(Action(at_s, "kill", kind, choice))
        else:
            found.append(Action(at_s, "stop", kind, choice, stopped_s))
        at_s += every_s
    return tuple(found)
