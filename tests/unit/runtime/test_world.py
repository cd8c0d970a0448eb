"""What a supervisor is told: which processes there are, and why they have ended."""

from __future__ import annotations

import pytest

from distbelief.errors import (
    ConfigError,
    DataError,
    DistBeliefError,
    ProcessLostError,
    ShardRefusedError,
    StageLostError,
    TransportError,
    UnexpectedError,
)
from distbelief.runtime.world import Post, ProcessEnd, ReplicaEnd, first_cause

CONFIG = ConfigError("classes", "a label is 3")
DATA = DataError("/data", "is gone")
REFUSED = ShardRefusedError(1, "layout", "another")
KILLED = ProcessLostError("stage 1 of replica 0", "its process ended with exit code -9")
AWAY = TransportError(0, "UNAVAILABLE", "away")
BUG = UnexpectedError("ValueError: a bug")
LOST = StageLostError(0, 0, "no answer")
ALSO_LOST = StageLostError(0, 2, "no answer")


@pytest.mark.parametrize(
    ("errors", "cause"),
    [
        ({0: BUG}, BUG),
        ({0: LOST}, LOST),
        ({0: LOST, 1: KILLED}, KILLED),
        ({2: ALSO_LOST, 0: LOST, 1: BUG}, BUG),
        ({2: ALSO_LOST, 0: LOST}, LOST),  # none knows better
        ({0: KILLED, 1: CONFIG}, CONFIG),  # whoever was heard first
        ({0: BUG, 2: REFUSED, 1: LOST}, REFUSED),
        ({0: LOST, 3: DATA, 1: AWAY}, DATA),
        ({2: REFUSED, 1: CONFIG}, CONFIG),
        ({1: AWAY, 0: BUG}, BUG),  # of its like the first stage's
        ({1: BUG, 2: KILLED}, BUG),
    ],
)
def test_the_first_cause(errors: dict[int, DistBeliefError], cause: DistBeliefError) -> None:
    assert first_cause(errors) is cause


@pytest.mark.parametrize(
    ("error", "fatal"),
    [
        (None, False),
        (CONFIG, True),
        (DATA, True),
        (REFUSED, True),
        (LOST, False),
        (KILLED, False),
        (AWAY, False),
        (BUG, False),
    ],
)
def test_what_no_other_replica_could_do_better(error: DistBeliefError | None, fatal: bool) -> None:
    assert ReplicaEnd(0, error).fatal is fatal


@pytest.mark.parametrize(
    ("post", "name", "process"),
    [
        (Post("shard", 1, 2), "shard 1", "shard 1 start 2"),
        (Post("coordinator", 0, 3), "the coordinator", "coordinator start 3"),
        (Post("evaluator", 0, 1), "the evaluator", "evaluator start 1"),
    ],
)
def test_how_a_post_is_called(post: Post, name: str, process: str) -> None:
    """For people, and by its process itself."""
    assert (post.name, str(post)) == (name, process)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ProcessLostError("shard 1", "no beat for 4 s"), "no beat for 4 s"),
        (DATA, "/data: is gone"),
        (AWAY, "shard 0 did not answer (UNAVAILABLE): away"),
    ],
)
def test_a_cause_does_not_say_who_again(error: DistBeliefError, cause: str) -> None:
    assert ProcessEnd(Post("shard", 1, 2), error).cause == cause
