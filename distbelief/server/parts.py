"""Parts of pushes: what has come of an item's gradient, outside the writer's queue.

Where several stages of a replica overlap a shard, the shard gets a gradient as several pushes. They
are copied side by side into one vector, a joint, whose calls wait until it covers the shard's
range; then it is one push. A replica has one joint at most, since it pushes one item at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from distbelief.errors import ProcessLostError
from distbelief.server.admission import Verdict
from distbelief.server.joint import Caller, Joint, Part
from distbelief.types import PushReply, Refusal


@dataclass(frozen=True, slots=True)
class Turned:
    """A part that is refused by itself; ``again`` if its joint was refused before, for that."""

    verdict: Verdict
    again: bool


class Parts:
    """The joints of a shard. Thread-safe.

    Args:
        begin: First element of the shard.
        size: Its elements.
        accounted: Whether an item is applied or set aside; called under the lock, under which
            :meth:`settle` has that changed.
        lost: What to raise when the shard does not run.
    """

    def __init__(
        self,
        begin: int,
        size: int,
        accounted: Callable[[int], bool],
        lost: Callable[[], ProcessLostError],
    ) -> None:
        self._begin = begin
        self._size = size
        self._accounted = accounted
        self._lost = lost
        self._lock = threading.Lock()
        self._running = False
        self._joints: dict[int, Joint] = {}
        self._callers: set[Caller] = set()
        # As many as there were joints at once; kept, so that their pages stay mapped.
        self._free: list[torch.Tensor] = []

    def start(self) -> None:
        """From now on there is a writer that will answer."""
        with self._lock:
            self._running = True

    # For the threads of callers

    def join(self, caller: Caller, flaw: Verdict | None) -> Joint | Turned | None:
        """Has a call wait with its replica's joint, whose flaw a flawed part's is, too.

        Returns:
            The joint; or, if that is not :meth:`Joint.of` the push, one that must be displaced
            first; or why the part is refused by itself; or None if the item needs no more pushes.

        Raises:
            ProcessLostError: nobody would answer.
        """
        push = caller.push
        with self._lock:
            if not self._running:
                raise self._lost()
            if self._accounted(push.item):
                return None
            joint = self._joints.get(push.replica)
            if joint is not None and not joint.of(push):
                if push.lease < joint.lease:
                    detail = f"of lease {push.lease}, its replica has gone on to {joint.lease}"
                    return Turned(Verdict(Refusal.LEASE, detail), again=False)
                if not joint.closed:
                    return joint
                joint = None
            if joint is None:
                joint = self._joints[push.replica] = Joint(push)
            if joint.refusal is not None:
                return Turned(joint.refusal, again=True)
            self._enter(joint, caller, flaw or joint.misfit(push))
            return joint

    def _enter(self, joint: Joint, caller: Caller, flaw: Verdict | None) -> None:
        joint.callers.append(caller)
        self._callers.add(caller)
        if flaw is not None:
            joint.flaw = joint.flaw or flaw
        elif not joint.sealed:
            joint.parts[caller.range] = Part(*caller.range, caller.norm, caller.push.base)
            joint.copying += 1
            caller.copies = True
            if joint.vector is None:
                joint.vector = self._free.pop() if self._free else torch.empty(self._size)

    def copy(self, joint: Joint, caller: Caller) -> None:
        """Copies the part's gradient to its place, unless that is not needed any more."""
        vector = joint.vector
        if not caller.copies or vector is None:
            return
        begin, end = caller.range
        copied = False
        try:
            vector[begin - self._begin : end - self._begin].copy_(caller.push.gradient)
            copied = True
        finally:
            with self._lock:
                joint.copying -= 1
                self._release(joint)
                if not copied:
                    joint.parts.pop((begin, end), None)

    def seal(self, joint: Joint) -> bool:
        """Whether the joint has just become complete or flawed: this caller is to conclude it."""
        with self._lock:
            covered = sum(part.end - part.begin for part in joint.parts.values())
            complete = covered == self._size and not joint.copying
            if joint.closed or joint.sealed or not (complete or joint.flaw):
                return False
            joint.sealed = True
            return True

    def unseal(self, joint: Joint) -> None:
        """The caller did not get to conclude it: another one may."""
        with self._lock:
            joint.sealed = False

    def leave(self, joint: Joint, caller: Caller) -> bool:
        """Lets a call go whose part stays; false if its answer is being written."""
        with self._lock:
            if caller.claimed:
                return False
            joint.callers.remove(caller)
            self._callers.discard(caller)
            return True

    # For the shard's writer

    def settle(self, item: int, mark: Callable[[], None]) -> list[Joint]:
        """Has ``mark`` account for the item, so that no part joins it any more.

        Returns the joints of it that this has ended.
        """
        with self._lock:
            mark()
            if not self._joints:
                return []
            joints = [joint for joint in self._joints.values() if joint.item == item]
            ended = [joint for joint in joints if not joint.closed]
            for joint in joints:
                del self._joints[joint.replica]
                self._close(joint)
            return ended

    def refuse(self, joint: Joint, verdict: Verdict) -> None:
        """Ends a joint that is not closed; its replica's later parts of it are refused alike."""
        with self._lock:
            joint.refusal = verdict
            self._close(joint)

    def displace(self, joint: Joint) -> None:
        """Ends a joint that is not closed, for the next one of its replica."""
        with self._lock:
            del self._joints[joint.replica]
            self._close(joint)

    def answer(self, caller: Caller, reply: PushReply) -> None:
        """Hands a claimed call its answer."""
        with self._lock:
            self._callers.discard(caller)
        caller.answer.set_result(reply)

    def abandon(self) -> None:
        """The writer has ended: whoever waits for it is told so."""
        with self._lock:
            self._running = False
            callers = list(self._callers)
            self._callers.clear()
            for joint in self._joints.values():
                self._close(joint)
            self._joints.clear()
        for caller in callers:
            caller.answer.set_exception(self._lost())

    def _close(self, joint: Joint) -> None:
        joint.closed = True
        for caller in joint.callers:
            caller.claimed = True
        self._release(joint)

    def _release(self, joint: Joint) -> None:
        """A vector that nobody writes to any more is free for the next joint."""
        if joint.closed and not joint.copying and joint.vector is not None:
            self._free.append(joint.vector)
            joint.vector = None
