"""The run's record: what is written to ``events.jsonl`` and for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from distbelief.observe.events import EventLog
from distbelief.observe.report import Report, progress_event, staleness_since
from distbelief.observe.tensorboard import TensorBoard
from distbelief.storage import Storage
from distbelief.types import ItemOutcome


class Recorder:
    """Writes events, and some of them for TensorBoard too.

    Args:
        storage: The run's folder.
        started_at: Start of the run, in seconds since the epoch.
        tensorboard: Whether there shall be event files.
    """

    def __init__(self, storage: Storage, started_at: float, *, tensorboard: bool) -> None:
        self._events = EventLog(storage, started_at)
        self.emit = self._events.emit
        self.sync = self._events.sync
        self._board = TensorBoard(storage) if tensorboard else None
        self.staleness_told: dict[int, int] = {}
        """Applied pushes by staleness, as they were when progress was last recorded."""

    @property
    def trouble(self) -> str:
        """Why events cannot be written just now, or empty."""
        return self._events.trouble

    @property
    def failure(self) -> str:
        """Why events cannot be written any more, or empty."""
        return self._events.failure

    def close(self) -> None:
        """Closes the files."""
        self._tell(lambda board: board.close())
        self._events.close()

    def outcomes(self, outcomes: Sequence[tuple[int, ItemOutcome]]) -> None:
        """Records what replicas did with items."""
        done = [(replica, o) for replica, o in outcomes if not o.refusal]
        names = dict.fromkeys(name for _, o in done for name in o.losses)
        if done:
            losses = {
                name: [round(o.losses[name], 5) if name in o.losses else None for _, o in done]
                for name in names
            }
            self.emit(
                "items",
                items=[o.item for _, o in done],
                replicas=[replica for replica, _ in done],
                losses=losses,
            )
        for replica, o in outcomes:
            if o.refusal:
                # By name, if they made what is not finite of parameters that are.
                culprits = {"culprits": list(o.culprits)} if o.culprits else {}
                self.emit("refused", replica=replica, item=o.item, reason=o.refusal, **culprits)

    def progress(self, report: Report) -> None:
        """Records how the run stands."""
        staleness = staleness_since(report.staleness, self.staleness_told)
        self.staleness_told = report.staleness
        self.emit("progress", **progress_event(report, staleness))
        self._tell(lambda board: board.progress(report, staleness))

    def evaluation(self, examples: int, result: dict[str, Any], histograms: dict[str, Any]) -> None:
        """Records an evaluation for TensorBoard; its event is written where it is done."""
        self._tell(lambda board: board.evaluation(examples, result, histograms))

    def _tell(self, write: Callable[[TensorBoard], None]) -> None:
        """TensorBoard is for looking on: the run does not depend on it."""
        if self._board is None:
            return
        try:
            write(self._board)
        except OSError as error:
            self.emit("tensorboard_failed", cause=str(error))
