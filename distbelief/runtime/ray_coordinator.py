"""The coordinator's actor as the others reach it: whichever of its starts is the present one."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from distbelief.errors import ProcessLostError
from distbelief.runtime.ray_errors import unwrapped
from distbelief.runtime.world import cause_of
from distbelief.transport.routes import FileDirectory
from distbelief.types import Orders, ReplicaReport

SLICE_S = 1.0
"""An answer that takes longer may never come: who is the coordinator is looked at meanwhile."""

PAUSE_S = 0.3


def coordinator_name(key: str, start: int) -> str:
    """The name of the actor that one start of a run's coordinator has."""
    return f"{key}-coordinator-{start}"


class RayCoordinator:
    """Satisfies :class:`~distbelief.services.CoordinatorService`, while coordinators come and go.

    Args:
        key: The word that the names of the run's actors begin with.
        directory: Knows which start of the coordinator is the present one.
        patience_s: How long a call waits for one that answers.
    """

    def __init__(self, key: str, directory: FileDirectory, patience_s: float) -> None:
        self._key = key
        self._directory = directory
        self._patience_s = patience_s

    def report(self, report: ReplicaReport) -> Orders:
        """See :class:`~distbelief.services.CoordinatorService`."""
        orders: Orders = self._call("report", report)
        return orders

    def emit(self, kind: str, **fields: Any) -> None:
        """Writes an event."""
        self._call("emit", kind, fields)

    def _call(self, method: str, *arguments: Any) -> Any:
        """The answer of the present coordinator; the call may have been carried out twice."""
        give_up_at = time.monotonic() + self._patience_s
        while True:
            start = self._directory.serving.coordinator
            try:
                actor: Any = ray.get_actor(coordinator_name(self._key, start))
                answer = getattr(actor, method).remote(*arguments)
                while not ray.wait([answer], timeout=SLICE_S)[0]:
                    self._directory.look()
                    if self._directory.serving.coordinator != start:
                        break
                    if time.monotonic() > give_up_at:
                        raise ProcessLostError("the coordinator", "it does not answer")
                else:
                    return ray.get(answer)
            except (RayActorError, ValueError) as error:  # it is dead, or there is none yet
                if time.monotonic() > give_up_at:
                    cause = cause_of(unwrapped(error))
                    raise ProcessLostError("the coordinator", cause) from error
                time.sleep(PAUSE_S)
                self._directory.look()
            except RayTaskError as error:
                found = unwrapped(error, "the coordinator")
                if not isinstance(found, ProcessLostError) or time.monotonic() > give_up_at:
                    raise found from error
                time.sleep(PAUSE_S)  # one that is of no use any more, and says so
                self._directory.look()
            except RayError as error:
                raise ProcessLostError("the coordinator", cause_of(unwrapped(error))) from error
