"""The tree of exceptions: each survives pickling, and its text says what and what to do."""

import copy
import pickle

import pytest

from distbelief import errors
from distbelief.data import UnreadableImage
from distbelief.errors import (
    ClusterError,
    ConfigError,
    DataError,
    DismissedError,
    DistBeliefError,
    ProcessLostError,
    RunError,
    ShardRefusedError,
    StageLostError,
    SupersededError,
    TransportError,
    UnexpectedError,
    UsageError,
    as_distbelief_error,
)
from distbelief.types import Refusal

SAMPLES = [
    DistBeliefError("something"),
    UsageError("--recipe: there is none"),
    ConfigError("max_norm", "must be greater than 0, not -1"),
    DataError("/data/train", "holds no images; give another --data"),
    ClusterError("--shards: no room; ask for fewer"),
    RunError("the run failed"),
    TransportError(3, "UNAVAILABLE", "connection refused"),
    ShardRefusedError(1, Refusal.SIZE, "4 values for 5 parameters"),
    ProcessLostError("shard 2", "its push log cannot be written"),
    StageLostError(3, 1, "no answer (connection closed)"),
    DismissedError("3 gradients in a row were refused (not_finite)"),
    SupersededError("the run", 2),
    UnexpectedError("ValueError: a bug (model.py:3, in forward)"),
]


def tree(root: type[BaseException]) -> set[type[BaseException]]:
    return {root}.union(*(tree(kind) for kind in root.__subclasses__()))


def test_every_exception_of_the_module_has_a_sample() -> None:
    declared = {kind for kind in tree(DistBeliefError) if kind.__module__ == errors.__name__}
    assert {type(error) for error in SAMPLES} == declared


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickling(error: DistBeliefError, protocol: int) -> None:
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is type(error)
    assert vars(back) == vars(error)
    assert (back.args, str(back)) == (error.args, str(error))


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_copying(error: DistBeliefError) -> None:
    back = copy.copy(error)
    assert (type(back), vars(back), str(back)) == (type(error), vars(error), str(error))


def test_an_unreadable_image_is_of_the_tree_and_survives_pickling() -> None:
    error = UnreadableImage("/data/a.jpg", "cannot be opened")
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back, DistBeliefError)
    assert (type(back), vars(back)) == (UnreadableImage, vars(error))
    assert str(back) == "/data/a.jpg: cannot be opened"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            ConfigError("max_norm", "must be greater than 0, not -1"),
            "--max-norm: must be greater than 0, not -1",
        ),
        (ConfigError("lr", "must be greater than 0"), "--lr: must be greater than 0"),
        (DataError("/data", "has no train/ folder"), "/data: has no train/ folder"),
        (
            TransportError(3, "UNAVAILABLE", "host:1: refused"),
            "shard 3 did not answer (UNAVAILABLE): host:1: refused",
        ),
        (
            ShardRefusedError(1, Refusal.SIZE, "4 values for 5"),
            "shard 1 refused (size): 4 values for 5",
        ),
        (ProcessLostError("shard 2", "it has ended"), "shard 2 was lost: it has ended"),
        (ClusterError("--address: nobody there"), "--address: nobody there"),
        (
            StageLostError(3, 1, "connection closed"),
            "stage 1 of replica 3 lost touch with another: connection closed",
        ),
        (DismissedError("3 refusals"), "it was dismissed: 3 refusals"),
        (
            SupersededError("the coordinator", 2),
            "start 2 of the coordinator goes on elsewhere; this one ends",
        ),
    ],
)
def test_text_names_what_and_why(error: DistBeliefError, text: str) -> None:
    assert str(error) == text


def test_facts_are_fields() -> None:
    transport = TransportError(3, "UNAVAILABLE", "gone")
    assert (transport.shard, transport.code, transport.detail) == (3, "UNAVAILABLE", "gone")
    refused = ShardRefusedError(1, "too_late", "late")
    assert (refused.shard, refused.reason, refused.detail) == (1, "too_late", "late")
    config = ConfigError("lr", "bad")
    assert (config.field, config.problem) == ("lr", "bad")
    data = DataError("/d", "bad")
    assert (data.path, data.problem) == ("/d", "bad")
    lost = ProcessLostError("shard 0", "killed")
    assert (lost.what, lost.cause) == ("shard 0", "killed")
    stage = StageLostError(3, 1, "closed")
    assert (stage.replica, stage.stage, stage.detail) == (3, 1, "closed")
    assert DismissedError("3 refusals").reason == "3 refusals"
    superseded = SupersededError("the run", 2)
    assert (superseded.what, superseded.start) == ("the run", 2)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_exit_codes(error: DistBeliefError) -> None:
    assert error.exit_code == (2 if isinstance(error, UsageError) else 1)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_of_ours_is_itself(error: DistBeliefError) -> None:
    assert as_distbelief_error(error) is error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a bug"), "ValueError: a bug"),
        (OSError(28, "full"), "OSError: [Errno 28] full"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_another_error_becomes_one_that_names_it(error: BaseException, text: str) -> None:
    found = as_distbelief_error(error)
    assert type(found) is UnexpectedError
    assert str(found) == text
    assert found.__cause__ is error
    assert found.exit_code == 1


def test_it_tells_where_it_was_raised() -> None:
    def forward() -> None:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(ZeroDivisionError) as caught:
        forward()
    line = forward.__code__.co_firstlineno + 1
    expected = f"ZeroDivisionError: division by zero ({__file__}:{line}, in forward)"
    assert str(as_distbelief_error(caught.value)) == expected
