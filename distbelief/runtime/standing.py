"""Whether a run goes on, has ended or has died, as its folder shows it to others; light."""

from __future__ import annotations

import time
from dataclasses import dataclass

from distbelief.errors import DataError
from distbelief.observe.record import Record, read_record, silent_s
from distbelief.runtime.claim import held
from distbelief.storage import Storage

DIED_S = 15.0
"""A run whose folder nobody holds, and that has written nothing for so long, has died."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a run stands.

    Attributes:
        record: What its folder holds.
        word: ``running``, which it is until its process has let go of the folder; ``finished``,
            ``interrupted`` or ``failed``; or ``died``, of which the record tells nothing.
    """

    record: Record
    word: str

    @property
    def summary(self) -> dict[str, object]:
        """What ``train`` says at the end: the contents of ``summary.json``, and ``run_dir``."""
        written = self.record.summary or {}
        return {**written, "status": self.word, "run_dir": self.record.url}


def standing_of(storage: Storage) -> Standing:
    """How the run in a folder stands.

    Raises:
        DataError: it is no run's folder, or it cannot be read.
    """
    try:
        # In this order: a run that ends meanwhile has written so before it let go.
        goes_on = held(storage)
        record = read_record(storage)
    except OSError as error:
        raise DataError(storage.url, f"cannot be read: {error.strerror or error}") from error
    word = record.end[0]
    if goes_on:
        word = "running"
    elif word == "running" and silent_s(record, time.time()) > DIED_S:
        word = "died"
    return Standing(record, word)
