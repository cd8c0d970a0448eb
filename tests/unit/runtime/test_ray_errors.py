"""What is told of what Ray raises, with no cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayTaskError,
)

from distbelief.errors import DataError, ProcessLostError
from distbelief.runtime import ray_errors
from distbelief.runtime.ray_errors import is_unreachable, unwrapped

UNAVAILABLE = ActorUnavailableError("The actor is temporarily unavailable", None)


def raised(cause: Exception) -> Exception:
    """What Ray makes of an exception in a call."""
    return cast(Exception, RayTaskError("run", "trace", cause).as_instanceof_cause())


@pytest.mark.parametrize("error", [DataError("/data", "is gone"), ProcessLostError("a", "b")])
def test_what_is_ours_stays_what_it_is(error: Exception) -> None:
    assert unwrapped(error, "shard 1") is error
    assert unwrapped(raised(error), "shard 1") is error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ActorDiedError(), "its process died"),
        (RayActorError(), "its process died"),
        (raised(ActorDiedError()), "its process died"),  # in the actor, of another
        (UNAVAILABLE, "its node does not answer"),
        (raised(UNAVAILABLE), "its node does not answer"),
        (raised(ValueError("\n  a bug\nand more")), "ValueError: a bug"),
        (raised(ValueError()), "ValueError: ValueError"),
        (GetTimeoutError("too late"), "GetTimeoutError: too late"),
    ],
)
def test_why_a_process_is_lost(error: Exception, cause: str) -> None:
    found = unwrapped(error, "shard 1")
    assert isinstance(found, ProcessLostError)
    assert (found.what, found.cause) == ("shard 1", cause)


@pytest.mark.parametrize(
    ("error", "unreachable"),
    [
        (None, False),
        (UNAVAILABLE, True),
        (ActorDiedError(), False),
        # Of another actor, which the one that was called could not reach.
        (raised(UNAVAILABLE), False),
    ],
)
def test_only_ray_itself_knows_that_a_node_may_be_gone(
    error: Exception | None, unreachable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(call: Any) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(ray_errors, "ray", SimpleNamespace(get=get))
    assert is_unreachable("call") is unreachable
