"""The file that asks a run to end."""

from __future__ import annotations

import threading

from distbelief.runtime.stopping import NAME, StopFile, request_stop, withdraw
from distbelief.storage import Storage

HANG_S = 30.0


def test_the_event_is_set_and_the_file_goes(storage: Storage) -> None:
    event = threading.Event()
    with StopFile(storage, event, every_s=0.01):
        assert not event.is_set()
        request_stop(storage)
        assert event.wait(HANG_S)
    assert not storage.exists(NAME)


def test_an_older_request_means_another_process(storage: Storage) -> None:
    request_stop(storage)
    event = threading.Event()
    with StopFile(storage, event, every_s=60.0):
        assert not storage.exists(NAME)
        request_stop(storage)  # too late to be seen: the run has ended
    assert not storage.exists(NAME)
    assert not event.is_set()


def test_a_request_is_withdrawn(storage: Storage) -> None:
    withdraw(storage)
    request_stop(storage)
    withdraw(storage)
    assert not storage.exists(NAME)
