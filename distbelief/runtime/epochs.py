"""The ends of epochs: told as events, and the weights evaluated after each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from distbelief.coordinator.coordinator import RunStatus
from distbelief.observe.events import read_events
from distbelief.runtime.evaluations import Evaluations
from distbelief.runtime.recorder import Recorder
from distbelief.storage import Storage

WAIT_S = 0.2


class Epochs:
    """Which epochs have been finished and told; one thread notes, one evaluates.

    Args:
        n_epochs: Of the run.
        status: How the run stands.
        evaluations: Evaluates.
        record: Where both are told.
    """

    def __init__(
        self,
        n_epochs: int,
        status: Callable[[], RunStatus],
        evaluations: Evaluations,
        record: Recorder,
    ) -> None:
        self._n_epochs = n_epochs
        self._status = status
        self._evaluations = evaluations
        self._record = record
        self._evaluated = 0
        self.told = 0
        """The last one whose end is in the events."""

    def begin(self, told: Sequence[int]) -> None:
        """Goes on from what has been told in earlier times."""
        self.told = min(self._status().epochs_finished, max(told, default=0))

    def note(self) -> None:
        """Tells the ends of epochs since the last call, and has the weights evaluated."""
        finished = self._status().epochs_finished
        self.told = min(self.told, finished)  # a shard may have forgotten some
        while self.told < finished:
            self.told += 1
            self._record.emit("epoch", epoch=self.told)
            # The run's last epoch is evaluated when everything has ended.
            if self._evaluated < self.told < self._n_epochs:
                self._evaluated = self.told
                self._evaluations.ask(self.told)

    def evaluate(self, closing: threading.Event) -> None:
        """Evaluates what was asked for until ``closing`` is set."""
        while not closing.is_set():
            epoch = self._evaluations.next(WAIT_S)
            if epoch is not None:
                self.evaluate_after(epoch)

    def evaluate_after(self, epoch: int) -> None:
        """Evaluates the weights as they are now, after that epoch."""
        examples = self._status().examples_applied
        found = self._evaluations.run(epoch, examples)
        if found is not None:
            self._record.evaluation(examples, *found)


def told_epochs(storage: Storage) -> list[int]:
    """The epochs whose end is in a run's events."""
    return [int(e["epoch"]) for e in read_events(storage) if e["kind"] == "epoch"]
