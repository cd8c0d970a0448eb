"""Named points in the code, at which a process can be made to die, to stop, or to fail.

Without a plan a point costs one comparison. A plan is plain values, so that it reaches the
processes of a run with all else that they must know.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

POINTS = (
    "before_compute",
    "before_push",
    "between_shards_of_a_push",
    "after_push",
    "before_report",
    "before_apply",
    "after_apply_before_log",
    "after_apply_before_answer",
    "before_mirror",
    "after_mirror_before_apply",
    "before_save",
    "before_manifest",
    "before_observe",
    "after_observe",
    "before_lease",
)
"""All points, in the order in which an item meets them."""


class InjectedError(BaseException):
    """A process dies here, where it is a thread of this one: no handler of errors catches it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at a point.

    Attributes:
        point: One of :data:`POINTS`.
        who: The process, as in ``replica 0``, ``shard 1``, ``coordinator``; every start of it
            counts by itself.
        nth: At which pass, from 1; each start of the process counts anew.
        action: ``kill`` and ``stop`` send SIGKILL and SIGSTOP to this process; ``die`` raises
            :class:`InjectedError`, for processes that are threads; ``fail`` raises OSError.
        start: Which start of the process, from 1; 0 for each.
    """

    point: str
    who: str
    nth: int = 1
    action: Literal["kill", "stop", "die", "fail"] = "kill"
    start: int = 1

    def __post_init__(self) -> None:
        if self.point not in POINTS:
            raise ValueError(f"there is no point {self.point!r}; there are {', '.join(POINTS)}")


class Injector:
    """Carries out a plan for one process; thread-safe.

    Args:
        plan: Faults of the whole run.
        who: This process.
        start: Which start of it.
    """

    def __init__(self, plan: Sequence[Fault] = (), who: str = "", start: int = 1) -> None:
        self._faults = [f for f in plan if f.who == who and f.start in (0, start)]
        self._passes: Counter[str] = Counter()
        self._lock = threading.Lock()

    def plans(self, point: str) -> bool:
        """Whether something is to happen at a point."""
        return any(fault.point == point for fault in self._faults)

    def at(self, point: str) -> None:
        """Passes a point; does not return if the process is to die here."""
        if not self._faults:
            return
        with self._lock:
            self._passes[point] += 1
            now = self._passes[point]
        for fault in self._faults:
            if (fault.point, fault.nth) == (point, now):
                _act(fault)


NONE = Injector()
"""Nothing happens."""


def _act(fault: Fault) -> None:
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.action == "fail":
        raise OSError(f"injected at {fault.point}")
    else:
        raise InjectedError(fault.point)
