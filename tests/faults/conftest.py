"""Runs in the background, and their events as they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from distbelief.config import TrainConfig
from distbelief.observe.events import read_events
from distbelief.observe.view import Lines
from distbelief.runtime.supervisor import Stop
from distbelief.runtime.train import train
from distbelief.storage import Storage, storage_at

Event = dict[str, Any]


class Background:
    """A run in a thread, to be stopped."""

    def __init__(self, config: TrainConfig) -> None:
        self.storage: Storage = storage_at(str(config.run_dir))
        self._stop = Stop()
        self._result: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(config,))
        self._thread.start()

    def _run(self, config: TrainConfig) -> None:
        try:
            self._result.update(train(config, Lines(lambda line: None), self._stop))
        except BaseException as error:
            self._error = error

    def events(self) -> list[Event]:
        """What happened so far."""
        return read_events(self.storage)

    def wait_for(self, wanted: Callable[[Event], bool]) -> Event:
        """Polls the events until one is as wanted; the test's timeout is the limit."""
        while True:
            for event in self.events():
                if wanted(event):
                    return event
            if self._error is not None:
                raise self._error
            time.sleep(0.05)

    def stop(self) -> dict[str, Any]:
        """Ends the run in order; returns its summary."""
        self._stop.event.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result


@pytest.fixture
def background() -> Callable[[TrainConfig], Background]:
    """Starts a run in a thread."""
    return Background
