"""The coordinator as the supervisor has it: its present start, which may be away just now."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from distbelief.runtime.endpoints import Access
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.ray_actors import CoordinatorActor, Handle, Ref
from distbelief.runtime.ray_coordinator import coordinator_name
from distbelief.runtime.ray_errors import unwrapped
from distbelief.runtime.ray_staff import Staff, ready
from distbelief.runtime.world import Post

SLICE_S = 0.5
CALL_S = 60.0


class PresentCoordinator:
    """Starts coordinators one after the other, and asks the present one. Has one caller at a time.

    Args:
        staff: Creates actors.
        key: The word that the names of the run's actors begin with.
    """

    def __init__(self, staff: Staff, key: str) -> None:
        self._staff = staff
        self._key = key
        self._post = Post("coordinator", 0, 0)
        self._up = False
        self._unwritten: list[tuple[str, dict[str, Any]]] = []
        self.is_silent: Callable[[], bool] = lambda: False
        """Whether it gives no sign of life, so that nobody should wait for its answer."""
        self.actor: Handle = None

    def create(self, start: int) -> Post:
        """Has a process for the next start of it, beside the driver; does not block."""
        self._post, self._up = Post("coordinator", 0, start), False
        name = coordinator_name(self._key, start)
        self.actor = self._staff.beside_driver(CoordinatorActor, name)
        return self._post

    def begin(self, spec: HostSpec, access: Access, evaluator: Handle) -> Ref:
        """Has the present one follow the shards; the call ends when it answers."""
        return self.actor.start.remote(spec, access, evaluator)

    def note(self, post: Post, *, up: bool) -> None:
        """A process is there, or is there no more: the present coordinator, perhaps."""
        if post == self._post:
            self._up = up

    def emit(self, kind: str, fields: dict[str, Any]) -> None:
        """Has an event written; one that cannot be written now is kept until it can."""
        self._unwritten.append((kind, fields))
        while self._unwritten:
            if self.ask("emit", *self._unwritten[0], told=True) is None:
                return
            self._unwritten.pop(0)

    def ask(self, method: str, *arguments: Any, told: bool = False) -> Any:
        """Its answer; None while it is away.

        With ``told`` an answer of nothing is True.
        """
        if not self._up:
            return None
        answer = getattr(self.actor, method).remote(*arguments)
        give_up_at = time.monotonic() + CALL_S
        while not ready([answer], 1, SLICE_S):
            if self.is_silent() or time.monotonic() > give_up_at:
                return None
        try:
            found = ray.get(answer)
        except RayActorError:
            return None
        except RayError as error:
            raise unwrapped(error, "the coordinator") from error
        return True if told else found
