"""The actors of a run that are no replicas: as they start, are watched, and end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from distbelief.errors import ProcessLostError
from distbelief.runtime.ray_actors import Handle, Ref
from distbelief.runtime.ray_errors import unwrapped
from distbelief.runtime.ray_staff import Staff
from distbelief.runtime.world import Post, ProcessEnd, ProcessUp
from distbelief.serving import Endpoint


@dataclass(slots=True)
class _Held:
    """An actor, and the call that tells how it does: first its start, then its watch."""

    actor: Handle
    call: Ref
    give_up_at: float | None


class Posts:
    """Who holds which post. Has one caller at a time.

    Args:
        staff: Ends actors.
    """

    def __init__(self, staff: Staff) -> None:
        self._staff = staff
        self._held: dict[Post, _Held] = {}

    def start(self, post: Post, actor: Handle, starting: Ref, allowed_s: float) -> None:
        """Takes note of an actor that starts, for which it has ``allowed_s`` seconds."""
        self._held[post] = _Held(actor, starting, time.monotonic() + allowed_s)

    def actor(self, post: Post) -> Handle:
        """Who holds it."""
        return self._held[post].actor

    @property
    def calls(self) -> list[Ref]:
        """What to wait for."""
        return [held.call for held in self._held.values()]

    def holder(self, call: Ref) -> Post | None:
        """The post whose holder has that call."""
        return next((post for post, held in self._held.items() if held.call == call), None)

    def names(self) -> dict[str, Post]:
        """The posts by the names that their processes give the supervisor."""
        return {str(post): post for post in self._held}

    def happened(self, over: Sequence[Ref]) -> list[ProcessEnd | ProcessUp]:
        """What calls that are over mean, and starts that take too long."""
        found: list[ProcessEnd | ProcessUp] = []
        now = time.monotonic()
        for post, held in list(self._held.items()):
            if held.call in over:
                found.append(self._learn(post, held))
            elif held.give_up_at is not None and now > held.give_up_at:
                found.append(ProcessEnd(post, ProcessLostError(post.name, "it did not start")))
        return found

    def dismiss(self, post: Post) -> None:
        """Ends the actor at once, if there is one."""
        held = self._held.pop(post, None)
        if held is not None:
            self._staff.kill(held.actor)

    def _learn(self, post: Post, held: _Held) -> ProcessEnd | ProcessUp:
        try:
            answer: Any = ray.get(held.call)
        except RayError as error:
            return ProcessEnd(post, unwrapped(error, post.name))
        if held.give_up_at is None:
            return ProcessEnd(post, ProcessLostError(post.name, "it ended by itself"))
        held.call, held.give_up_at = held.actor.watch.remote(), None
        if isinstance(answer, Endpoint):
            return ProcessUp(post, answer)
        return ProcessUp(post, about=answer)
