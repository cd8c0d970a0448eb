"""Evaluations beside the training: what waits, what is left out, what is told."""

from typing import Any

import pytest

from distbelief.errors import TransportError
from distbelief.runtime.evaluations import Evaluations


class Told:
    """Events as they are written."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})


@pytest.fixture
def told() -> Told:
    return Told()


def test_two_may_wait_and_the_next_is_left_out(told: Told) -> None:
    evaluations = Evaluations(lambda: None, None, told)
    for epoch in (1, 2, 3):
        evaluations.ask(epoch)
    assert told.events == [{"kind": "evaluation_left_out", "epoch": 3}]
    assert [evaluations.next(0.001) for _ in range(3)] == [1, 2, None]


def test_a_result_is_told_and_kept_without_what_is_not_for_keeps(told: Told) -> None:
    result = {"top1": 0.5, "seconds": 1.5, "histograms": {"a": 1}}
    evaluations = Evaluations(lambda: dict(result), {"top1": 0.25}, told)
    assert evaluations.newest == {"top1": 0.25}
    found = evaluations.run(3, 120)
    assert found == ({"top1": 0.5, "seconds": 1.5}, {"a": 1})
    assert evaluations.newest == {"epoch": 3, "top1": 0.5}
    assert told.events == [
        {"kind": "evaluation", "epoch": 3, "examples_applied": 120, "top1": 0.5, "seconds": 1.5}
    ]


def test_without_validation_images_there_is_nothing_to_tell(told: Told) -> None:
    evaluations = Evaluations(lambda: None, None, told)
    assert evaluations.run(1, 10) is None
    assert (told.events, evaluations.newest) == ([], None)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ZeroDivisionError("a bug"), "ZeroDivisionError: a bug"),
        (
            TransportError(1, "UNAVAILABLE", "away"),
            "shard 1 did not answer (UNAVAILABLE): away",
        ),
    ],
)
def test_what_it_raises_is_an_event_and_the_newest_result_stays(
    error: Exception, cause: str, told: Told
) -> None:
    def fail() -> None:
        raise error

    evaluations = Evaluations(fail, {"epoch": 1, "top1": 0.25}, told)
    assert evaluations.run(2, 10) is None
    (event,) = told.events
    assert (event["kind"], event["epoch"]) == ("evaluation_failed", 2)
    assert event["cause"].partition(" (/")[0] == cause
    assert evaluations.newest == {"epoch": 1, "top1": 0.25}
