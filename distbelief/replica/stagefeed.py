"""What the stages of a replica compute next: the first stage says it, the others hear it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from distbelief.data.loader import Batch
from distbelief.errors import StageLostError
from distbelief.replica.feed import Feed, Pending, Work
from distbelief.replica.group import StageGroup, Word
from distbelief.types import LeasedItem

STILL_THERE_S = 5.0
"""How often the first stage says that it is waiting for work."""


class Source(Protocol):
    """Where the loop takes its work from."""

    @property
    def ready(self) -> bool:
        """Whether :meth:`next` would return at once; asked once before each call of it."""
        ...

    def next(self) -> Work | None:
        """Waits for the next item; None at the end. The one before counts as finished."""
        ...


class LeadingFeed:
    """The first stage's: tells the others of what its feed has."""

    def __init__(self, feed: Feed, group: StageGroup) -> None:
        self._feed = feed
        self._group = group
        self._told: list[Work | None] = []

    @property
    def ready(self) -> bool:
        """See :class:`Source`."""
        if not self._feed.ready:
            self._group.tell({"kind": "idle"})
            return False
        self._told.append(self._tell_next())
        return True

    def next(self) -> Work | None:
        """See :class:`Source`."""
        if self._told:
            return self._told.pop()
        while not self._feed.wait(STILL_THERE_S):
            self._group.tell({"kind": "idle"})
        return self._tell_next()

    def _tell_next(self) -> Work | None:
        work = self._feed.next()
        if work is None:
            self._group.tell({"kind": "end"})
            return None
        word = {"kind": "item", "item": asdict(work.item), "steps": len(work.batches)}
        self._group.tell(word)
        return Work(work.item, [_Told(batch, self._group) for batch in work.batches])


class FollowingFeed:
    """The other stages'."""

    def __init__(self, group: StageGroup, replica: int) -> None:
        self._group = group
        self._replica = replica
        self._heard: list[Word] = []

    @property
    def ready(self) -> bool:
        """See :class:`Source`."""
        word, _ = self._group.hear()
        if word["kind"] == "idle":
            return False
        self._heard.append(word)
        return True

    def next(self) -> Work | None:
        """See :class:`Source`."""
        word: Word = self._heard.pop() if self._heard else {"kind": "idle"}
        while word["kind"] == "idle":
            word, _ = self._group.hear()
        if word["kind"] == "end":
            return None
        if word["kind"] != "item":
            detail = f"it said {word['kind']!r}, where an item was due"
            raise StageLostError(self._replica, self._group.stage, detail)
        return Work(LeasedItem(**word["item"]), [_Heard(self._group) for _ in range(word["steps"])])


@dataclass(frozen=True, slots=True)
class _Told:
    """A batch that the others hear of, without its images, when it is taken."""

    batch: Pending
    group: StageGroup

    def done(self) -> bool:
        return self.batch.done()

    def result(self, timeout: float | None = None) -> Batch:
        while True:
            try:
                batch = self.batch.result(STILL_THERE_S)
                break
            except TimeoutError:
                if self.batch.done():  # just now, or it failed with an error of that kind
                    batch = self.batch.result()
                    break
                self.group.tell({"kind": "idle"})
        self.group.tell({"kind": "batch", "skipped": list(batch.skipped)}, [batch.labels])
        return batch


@dataclass(frozen=True, slots=True)
class _Heard:
    group: StageGroup

    def done(self) -> bool:
        return False

    def result(self, timeout: float | None = None) -> Batch:
        word: Word = {"kind": "idle"}
        while word["kind"] == "idle":
            word, arrays = self.group.hear()
        (labels,) = arrays
        nothing = np.empty(0, np.int64)
        return Batch(np.empty(0, np.uint8), labels, nothing, tuple(word["skipped"]))
