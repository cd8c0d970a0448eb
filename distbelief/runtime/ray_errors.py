"""What went wrong in an actor, without what Ray wraps around it."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from distbelief.errors import DistBeliefError, ProcessLostError


def unwrapped(error: BaseException, what: str = "a process") -> DistBeliefError:
    """What went wrong in an actor, without what Ray wraps around it; ``what`` if it has died."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if isinstance(error, DistBeliefError):
        return error
    if isinstance(error, ActorUnavailableError):
        return ProcessLostError(what, "its node does not answer")
    if isinstance(error, RayActorError):
        return ProcessLostError(what, "its process died")
    text = str(error).strip().splitlines()
    reason = next((line.strip() for line in text if line.strip()), type(error).__name__)
    return ProcessLostError(what, f"{type(error).__name__}: {reason}")


def is_unreachable(call: Any) -> bool:
    """Whether a call that is over has failed since Ray cannot reach the actor.

    Of a process that died Ray knows so from its node. That it does not means that the node itself
    may be gone, which Ray takes for alive for a while.
    """
    try:
        ray.get(call)
    except RayError as error:  # one that was raised in the actor is of this kind too, and no sign
        return isinstance(error, ActorUnavailableError) and not isinstance(error, RayTaskError)
    return False
