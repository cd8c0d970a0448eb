"""The ends of epochs: what is told, and what is evaluated."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from distbelief.coordinator.coordinator import RunStatus
from distbelief.observe.events import read_events
from distbelief.runtime.epochs import Epochs, told_epochs
from distbelief.runtime.evaluations import Evaluations
from distbelief.runtime.recorder import Recorder
from distbelief.storage import LocalStorage

DEADLINE_S = 20.0
N_EPOCHS = 4


class Run:
    """A run of four epochs, whose weights' accuracy is one over the number of evaluations."""

    def __init__(self, folder: Path) -> None:
        self.storage = LocalStorage(folder)
        self.record = Recorder(self.storage, 0.0, tensorboard=False)
        self.for_tensorboard: list[tuple[int, float]] = []
        self.record.evaluation = self._evaluation  # type: ignore[method-assign, assignment]
        self.finished = 0
        self.n_evaluated = 0
        self.has_images = True
        self.evaluations = Evaluations(self._evaluate, None, self.record.emit)
        self.epochs = Epochs(N_EPOCHS, self._status, self.evaluations, self.record)

    def _status(self) -> RunStatus:
        fields = {"epochs_finished": self.finished, "examples_applied": 100 * self.finished}
        return cast(RunStatus, SimpleNamespace(**fields))

    def _evaluate(self) -> dict[str, Any] | None:
        self.n_evaluated += 1
        return {"top1": 1 / self.n_evaluated} if self.has_images else None

    def _evaluation(self, examples: int, result: dict[str, Any], _: dict[str, Any]) -> None:
        self.for_tensorboard.append((examples, result["top1"]))

    def note(self, finished: int) -> None:
        self.finished = finished
        self.epochs.note()

    def asked(self) -> list[int]:
        """Epochs that are to be evaluated."""
        found = []
        while (epoch := self.evaluations.next(0.0001)) is not None:
            found.append(epoch)
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.storage) if event["kind"] == kind]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    run.record.close()


def test_every_end_is_told_once_and_evaluated(run: Run) -> None:
    for finished in (0, 1, 1, 1):
        run.note(finished)
    assert (run.epochs.told, told_epochs(run.storage), run.asked()) == (1, [1], [1])
    run.note(3)  # two at once
    assert (run.epochs.told, told_epochs(run.storage), run.asked()) == (3, [1, 2, 3], [2, 3])


def test_the_last_is_not_evaluated_beside_the_training(run: Run) -> None:
    run.note(N_EPOCHS - 1)
    run.asked()
    run.note(N_EPOCHS)
    assert told_epochs(run.storage) == list(range(1, N_EPOCHS + 1))
    assert run.asked() == []


def test_what_a_shard_has_forgotten_is_told_again_and_not_evaluated_again(run: Run) -> None:
    run.note(2)
    assert run.asked() == [1, 2]
    run.note(1)
    assert run.epochs.told == 1
    run.note(3)
    assert told_epochs(run.storage) == [1, 2, 2, 3]
    assert run.asked() == [3]


@pytest.mark.parametrize(
    ("told", "finished", "goes_on_from"),
    [
        ((), 2, 0),  # it died before it told any
        ((1, 2), 2, 2),
        ((2, 1), 3, 2),
        ((1, 2, 3), 1, 1),  # a snapshot of before
    ],
)
def test_a_run_goes_on_from_what_was_told(
    told: tuple[int, ...], finished: int, goes_on_from: int, run: Run
) -> None:
    run.finished = finished
    run.epochs.begin(told)
    assert run.epochs.told == goes_on_from
    run.note(3)
    assert told_epochs(run.storage) == list(range(goes_on_from + 1, 4))
    run.note(3)
    assert told_epochs(run.storage) == list(range(goes_on_from + 1, 4))


def test_an_evaluation_is_an_event_and_for_tensorboard(run: Run) -> None:
    run.finished = 2
    run.epochs.evaluate_after(2)
    (event,) = run.events("evaluation")
    assert (event["epoch"], event["examples_applied"], event["top1"]) == (2, 200, 1.0)
    assert run.for_tensorboard == [(200, 1.0)]


def test_without_images_there_is_nothing_to_tell(run: Run) -> None:
    run.has_images = False
    run.epochs.evaluate_after(1)
    assert (run.n_evaluated, run.events("evaluation"), run.for_tensorboard) == (1, [], [])


def test_one_thread_evaluates_what_another_has_noted_until_the_end(run: Run) -> None:
    closing = threading.Event()
    thread = threading.Thread(target=run.epochs.evaluate, args=(closing,), daemon=True)
    thread.start()
    for finished in (1, 2):
        run.note(finished)
        give_up_at = time.monotonic() + DEADLINE_S
        while len(run.for_tensorboard) < finished:
            assert time.monotonic() < give_up_at
            time.sleep(0.001)
    closing.set()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert [event["epoch"] for event in run.events("evaluation")] == [1, 2]
    assert run.for_tensorboard == [(100, 1.0), (200, 0.5)]


def test_a_run_that_has_told_nothing(tmp_path: Path) -> None:
    assert told_epochs(LocalStorage(tmp_path)) == []
