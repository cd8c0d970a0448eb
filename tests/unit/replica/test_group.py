"""How the stages of a replica tell each other things, in processes of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distbelief.errors import StageLostError
from distbelief.replica import group as module
from distbelief.replica.group import Alone, Meeting, Stages, Word

WORD = {
    "kind": "item",
    "item": {"number": 2**53 + 1, "rate": 0.1},
    "skipped": [3, 4],
    "name": "a cat, Katze, 猫 \u2028",
    "nothing": None,
    "losses": {"loss": float("nan"), "main": float("inf")},
}
ARRAYS: list[NDArray[Any]] = [
    np.array([2**62, -1, 0]),
    np.array([[0.5, np.nan], [np.inf, -0.0]], dtype=np.float32),
    np.zeros((0,), dtype=np.int64),
    np.zeros((0, 3), dtype=np.uint8),
    np.array(7.5),
    np.arange(24, dtype=np.int16).reshape(2, 3, 4)[:, ::2].swapaxes(0, 1),  # not contiguous
    np.array([True, False]),
    np.array([1, 256], dtype=">u2"),
]


def told(group: Stages, word: Word, arrays: Sequence[NDArray[Any]]) -> Any:
    """What each stage knows after the first has told it."""
    if group.stage == 0:
        group.tell(word, arrays)
        return word, list(arrays)
    return group.hear()


def test_a_word_and_arrays_come_as_they_were_told(crew: Any) -> None:
    for word, arrays in crew.run(3, told, WORD, ARRAYS):
        assert repr(word) == repr(WORD)  # NaN equals nothing
        assert len(arrays) == len(ARRAYS)
        for found, wanted in zip(arrays, ARRAYS, strict=True):
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
            assert found.tobytes() == wanted.tobytes()


def test_a_word_may_come_without_arrays_and_arrays_are_ones_own(crew: Any) -> None:
    def two(group: Stages) -> Any:
        first = told(group, {"kind": "idle"}, [])
        word, (labels,) = told(group, {}, [np.arange(3)])
        labels += 1  # may be written to
        return first, word, labels.tolist()

    assert crew.run(2, two) == 2 * [(({"kind": "idle"}, []), {}, [1, 2, 3])]


def gathered(group: Stages) -> Any:
    word = {"stage": group.stage, "text": "x" * (1000 * group.stage), "norm": float("nan")}
    return [group.gather(word), group.gather({}), group.gather({"refused": "stale"})]


def test_gather_gives_all_the_same_in_the_order_of_stages(crew: Any) -> None:
    for words, empty, last in crew.run(3, gathered):
        assert [word["stage"] for word in words] == [0, 1, 2]
        assert [len(word["text"]) for word in words] == [0, 1000, 2000]
        assert all(word["norm"] != word["norm"] for word in words)
        assert empty == 3 * [{}]
        assert last == 3 * [{"refused": "stale"}]


def test_a_group_may_follow_another_in_a_process(crew: Any) -> None:
    for _ in range(2):
        assert crew.run(2, lambda group: (group.stage, group.n_stages)) == [(0, 2), (1, 2)]


def test_what_json_does_not_know_is_refused_where_it_is_said(crew: Any) -> None:
    outcomes = crew.outcomes(2, lambda group: told(group, {"kind": object()}, []))
    assert isinstance(outcomes[0], TypeError)
    assert isinstance(outcomes[1], StageLostError)


# A stage that is gone


def one_ends(group: Stages, who: int, how: str) -> Any:
    if group.stage == who:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("a bug")
    return group.gather({})


@pytest.mark.parametrize("who", [0, 1, 2])
def test_the_others_of_a_stage_that_fails_are_told(who: int, crew: Any) -> None:
    outcomes = crew.outcomes(3, one_ends, who, "fails", timeout_s=600.0)
    for stage, outcome in enumerate(outcomes):
        if stage == who:
            assert isinstance(outcome, ValueError)
            continue
        assert isinstance(outcome, StageLostError)
        assert (outcome.replica, outcome.stage) == (7, stage)
        assert outcome.detail.startswith("no answer (")


@pytest.mark.parametrize("who", [0, 1])
def test_the_others_of_a_stage_that_is_killed_are_told(who: int, crew: Any) -> None:
    outcomes = crew.outcomes(2, one_ends, who, "killed", timeout_s=600.0)
    assert isinstance(outcomes[who], EOFError)
    assert isinstance(outcomes[1 - who], StageLostError)
    assert outcomes[1 - who].stage == 1 - who


def test_a_stage_that_hangs_is_given_up(crew: Any, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def hangs(group: Stages) -> Any:
        if group.stage == 1:
            return pipe.read_text()  # which comes when the other has given up
        try:
            return group.gather({})
        finally:
            pipe.write_text("gave up")

    crew.run(2, lambda group: None)  # both processes are there, and meet at once
    outcomes = crew.outcomes(2, hangs, timeout_s=3.0)
    assert isinstance(outcomes[0], StageLostError)
    assert outcomes[1] == "gave up"


def test_stages_that_do_not_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEET_S", 0.05)
    nowhere = Meeting("127.0.0.1", 9)
    stages = Stages(nowhere, replica=3, stage=1, n_stages=2, address="127.0.0.1", timeout_s=1.0)
    with pytest.raises(StageLostError) as caught, stages:
        pass
    assert (caught.value.replica, caught.value.stage) == (3, 1)
    assert caught.value.detail.startswith("they did not meet (")
    assert str(caught.value).startswith("stage 1 of replica 3 lost touch with another: they did")


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (RuntimeError("gloo: gone\nand a trace"), "no answer (gloo: gone)"),
        (RuntimeError(""), "no answer (RuntimeError)"),
        (torch.distributed.DistBackendError("closed"), "no answer (closed)"),
    ],
)
def test_what_torch_says_becomes_one_line(error: Exception, detail: str) -> None:
    stages = Stages(
        Meeting("h", 1), replica=3, stage=1, n_stages=2, address="127.0.0.1", timeout_s=1.0
    )
    with pytest.raises(StageLostError) as caught, stages.watched():
        raise error
    assert caught.value.detail == detail
    assert caught.value.__cause__ is error


def test_other_errors_pass() -> None:
    stages = Stages(
        Meeting("h", 1), replica=3, stage=1, n_stages=2, address="127.0.0.1", timeout_s=1.0
    )
    with pytest.raises(ValueError, match="a bug"), stages.watched():
        raise ValueError("a bug")


def test_a_replica_of_one_stage_is_alone() -> None:
    alone = Alone()
    assert alone.gather({"norm": 1.0}) == [{"norm": 1.0}]
    assert (alone.stage, alone.n_stages) == (0, 1)
