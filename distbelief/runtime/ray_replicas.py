"""The replicas of a run on Ray: an actor for each stage, lost and replaced together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import RayError, RayTaskError

from distbelief.errors import DistBeliefError, ProcessLostError, StageLostError
from distbelief.runtime.endpoints import Access
from distbelief.runtime.placement import REPLICA
from distbelief.runtime.ray_actors import Handle, Ref, ReplicaActor, replica_name
from distbelief.runtime.ray_errors import unwrapped
from distbelief.runtime.ray_groups import Groups
from distbelief.runtime.ray_staff import Staff
from distbelief.runtime.worker import ModelSpec, Threads
from distbelief.runtime.world import ReplicaEnd, first_cause

CAUSE_S = 3.0
"""How long the other stages of a replica are waited for once one has failed: they may know why."""


@dataclass(slots=True)
class _Running:
    """A replica at work: its actors, and the stage of each call that has not ended."""

    slot: int
    actors: list[Handle]
    calls: dict[Ref, int]


class Replicas:
    """Starts replicas in the slots of a run, and tells how they end. Has one caller at a time.

    The actors of the first replicas are created here, so that they import while the shards start.

    Args:
        spec: The run, its devices decided.
        groups: Where each slot has its room.
        staff: Creates and ends actors.
    """

    def __init__(self, spec: ModelSpec, groups: Groups, staff: Staff) -> None:
        self._spec = spec
        self._slots = spec.config.slots
        self._groups = groups
        self._staff = staff
        self._running: dict[int, _Running] = {}
        self._free = list(range(len(self._slots)))
        self._spares = {slot: self._actors(slot) for slot in self._free}

    @property
    def calls(self) -> list[Ref]:
        """What to wait for: the call of each stage that has not ended."""
        return [call for running in self._running.values() for call in running.calls]

    def start(self, replica: int, access: Access) -> None:
        """Starts a replica in the slot that has been free the longest; does not block."""
        slot = self._free.pop(0)
        actors = self._spares.pop(slot, None) or self._actors(slot)
        n_stages = len(actors)
        # A reference, which Ray resolves for every stage before its call begins.
        meeting = actors[0].meet.remote(n_stages) if n_stages > 1 else None
        calls = {
            actor.run.remote(self._spec, replica, slot, stage, meeting, access): stage
            for stage, actor in enumerate(actors)
        }
        self._running[replica] = _Running(slot, actors, calls)

    def ended(self, ready: Sequence[Ref], *, shunned: Iterable[str] = ()) -> list[ReplicaEnd]:
        """What calls that are over mean for their replicas; those are then gone, every stage.

        A replica has ended in order when all stages have. When one fails, the others are waited
        for, :data:`CAUSE_S` at most. Nodes that are ``shunned`` are not for their successors.
        """
        ends = []
        for replica, running in list(self._running.items()):
            errors = self._errors(replica, running, ready)
            if errors:
                self._ask_the_others(replica, running, errors)
            elif running.calls:
                continue
            self._dismiss(replica)
            if errors:
                self._groups.renew(REPLICA, running.slot, shunned=shunned)
            ends.append(ReplicaEnd(replica, first_cause(errors) if errors else None))
        return ends

    def give_up(self, replica: int, cause: str, *, shunned: Iterable[str]) -> ReplicaEnd | None:
        """Takes a replica for dead that does not answer; its end, unless it has ended already."""
        running = self._running.get(replica)
        if running is None:
            return None
        self._dismiss(replica)
        self._groups.renew(REPLICA, running.slot, shunned=shunned, hung=True)
        return ReplicaEnd(replica, ProcessLostError("its process", cause))

    def names(self) -> dict[str, int]:
        """The replica of each process that is at work, by the name of the process."""
        return {
            replica_name(replica, stage): replica
            for replica, running in self._running.items()
            for stage in range(len(running.actors))
        }

    def node_of(self, replica: int, stage: int) -> str | None:
        """The node of a process, if it is known."""
        return self._groups.node_of(REPLICA, self._running[replica].slot, stage)

    def seat(self, call: Ref) -> tuple[int, int] | None:
        """The replica and the stage that have that call."""
        for replica, running in self._running.items():
            if call in running.calls:
                return replica, running.calls[call]
        return None

    def _actors(self, slot: int) -> list[Handle]:
        """A process for each stage."""
        config = self._slots[slot]
        return [
            self._staff.in_group(
                ReplicaActor,
                REPLICA,
                slot,
                stage,
                threads=Threads(config.threads, self._groups.neighbours(slot, stage)),
            )
            for stage in range(config.stages)
        ]

    def _dismiss(self, replica: int) -> None:
        running = self._running.pop(replica)
        for actor in running.actors:
            self._staff.kill(actor)
        self._free.append(running.slot)

    def _errors(
        self, replica: int, running: _Running, ready: Sequence[Ref]
    ) -> dict[int, DistBeliefError]:
        """How stages have failed, of those whose calls are over."""
        errors = {}
        for call in ready:
            if call in running.calls:
                stage = running.calls.pop(call)
                error = _error_of(call, replica, stage, len(running.actors))
                if error is not None:
                    errors[stage] = error
        return errors

    def _ask_the_others(
        self, replica: int, running: _Running, errors: dict[int, DistBeliefError]
    ) -> None:
        """Adds what a replica's other stages say in time, unless the cause is clear already."""
        give_up_at = time.monotonic() + CAUSE_S
        while running.calls and not ReplicaEnd(replica, first_cause(errors)).fatal:
            left_s = max(0.0, give_up_at - time.monotonic())
            over, _ = ray.wait(list(running.calls), num_returns=1, timeout=left_s)
            if not over:
                return
            errors.update(self._errors(replica, running, over))


def _error_of(call: Ref, replica: int, stage: int, n_stages: int) -> DistBeliefError | None:
    """How a stage's call failed, if it did."""
    try:
        ray.get(call)
    except RayTaskError as error:
        # Ours leave actors as ours: this is that of the first stage, which had to open the meeting.
        if isinstance(error.cause, RayError) and stage > 0:
            return StageLostError(replica, stage, "the first stage opened no meeting")
        return unwrapped(error, _name(replica, stage, n_stages))
    except RayError as error:
        return unwrapped(error, _name(replica, stage, n_stages))
    return None


def _name(replica: int, stage: int, n_stages: int) -> str:
    return "its process" if n_stages == 1 else f"stage {stage} of replica {replica}"
