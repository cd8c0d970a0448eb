"""A replica is killed in the middle of a run."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distbelief.audit import audit
from distbelief.config import TrainConfig
from distbelief.observe.events import read_events
from distbelief.observe.view import Lines
from distbelief.runtime.supervisor import Stop
from distbelief.runtime.train import train
from distbelief.storage import Storage, storage_at


def wait_for_event(storage: Storage, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Polls the events of a run until one is as wanted; the test's timeout is the limit."""
    while True:
        for event in read_events(storage):
            if wanted(event):
                return event
        time.sleep(0.05)


@pytest.mark.timeout(240)
def test_the_others_go_on_and_it_is_replaced(tiny: Callable[..., TrainConfig]) -> None:
    # Epochs long enough that a replica always holds some items.
    config = tiny(address="local", replicas=2, shards=2, epochs=10_000, drawn_train=800)
    run_dir, stop = Path(str(config.run_dir)), Stop()
    result: dict[str, Any] = {}
    runner = threading.Thread(
        target=lambda: result.update(train(config, Lines(lambda line: None), stop))
    )
    runner.start()
    events = storage_at(run_dir)
    # Only once it has done items is it in the middle of its work.
    wait_for_event(events, lambda e: e["kind"] == "items" and 0 in e["replicas"])
    joined = wait_for_event(events, lambda e: e["kind"] == "replica_joined" and e["replica"] == 0)
    os.kill(joined["pid"], signal.SIGKILL)
    lost = wait_for_event(events, lambda e: e["kind"] == "replica_lost")
    # The run goes on until the replacement has done its part, and past the epochs of its leases.
    wait_for_event(events, lambda e: e["kind"] == "replica_replaced")
    reached = max(e["epoch"] for e in read_events(events) if e["kind"] == "epoch")
    wait_for_event(events, lambda e: e["kind"] == "epoch" and e["epoch"] >= reached + 3)
    stop.event.set()
    runner.join()
    assert result["status"] == "interrupted"
    found = audit(run_dir)
    assert found.clean, found.counter_example
    assert found.examples == result["examples_applied"]
    assert found.epochs_finished >= reached + 3
    happened = read_events(events)
    assert lost["replica"] == 0
    assert lost["items_returned"]
    after = [e for e in happened if e["kind"] == "items" and e["t"] > lost["t"]]
    assert any(1 in e["replicas"] for e in after), "the other did not go on"
    assert any(2 in e["replicas"] for e in after), "the replacement did no item"
    (recovery,) = result["recoveries"]
    assert recovery["what"] == "replica 0"
    assert recovery["seconds"] > 0
    assert recovery["items_leased_again"] == len(lost["items_returned"])
