"""Evaluations of the averaged weights beside the training."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

from distbelief.errors import as_distbelief_error

Evaluate = Callable[[], "dict[str, Any] | None"]
Emit = Callable[..., None]


class Evaluations:
    """Epochs whose weights are to be evaluated, and the newest result.

    Two may wait; one that comes on top is left out, and said so. One thread asks, one evaluates.

    Args:
        evaluate: Evaluates; None without validation images. May raise anything: training does not
            depend on it.
        validation: The newest result of a run that is resumed.
        emit: Writes an event.
    """

    def __init__(self, evaluate: Evaluate, validation: dict[str, Any] | None, emit: Emit) -> None:
        self._evaluate = evaluate
        self._emit = emit
        self._waiting: queue.Queue[int] = queue.Queue(2)
        self.newest = validation

    def ask(self, epoch: int) -> None:
        """Has the weights evaluated as they will be soon after that epoch's end."""
        try:
            self._waiting.put_nowait(epoch)
        except queue.Full:
            self._emit("evaluation_left_out", epoch=epoch)

    def next(self, timeout_s: float) -> int | None:
        """The next epoch that was asked for, if one is within ``timeout_s``."""
        try:
            return self._waiting.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def run(self, epoch: int, examples: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Evaluates now; returns the result and the histograms that came with it, if any did."""
        try:
            result = self._evaluate()
        except Exception as error:
            cause = str(as_distbelief_error(error))
            self._emit("evaluation_failed", epoch=epoch, cause=cause)
            return None
        if result is None:
            return None
        histograms = result.pop("histograms", {})
        self.newest = {"epoch": epoch, **{k: v for k, v in result.items() if k != "seconds"}}
        self._emit("evaluation", epoch=epoch, examples_applied=examples, **result)
        return result, histograms
