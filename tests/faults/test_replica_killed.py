"""A replica is killed in the middle of a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distbelief.audit import audit
from distbelief.config import TrainConfig


@pytest.mark.timeout(240)
def test_the_others_go_on_and_it_is_replaced(
    tiny: Callable[..., TrainConfig], background: Callable[[TrainConfig], Any]
) -> None:
    # Epochs long enough that a replica always holds some items.
    config = tiny(address="local", replicas=2, shards=2, epochs=10_000, drawn_train=800)
    run = background(config)
    # Only once it has done items is it in the middle of its work.
    run.wait_for(lambda e: e["kind"] == "items" and 0 in e["replicas"])
    joined = run.wait_for(lambda e: e["kind"] == "replica_joined" and e["replica"] == 0)
    os.kill(joined["pid"], signal.SIGKILL)
    lost = run.wait_for(lambda e: e["kind"] == "replica_lost")
    # The run goes on until the replacement has done its part, and past the epochs of its leases.
    run.wait_for(lambda e: e["kind"] == "replica_replaced")
    reached = max(e["epoch"] for e in run.events() if e["kind"] == "epoch")
    run.wait_for(lambda e: e["kind"] == "epoch" and e["epoch"] >= reached + 3)
    result = run.stop()
    assert result["status"] == "interrupted"
    found = audit(Path(str(config.run_dir)))
    assert found.clean, found.counter_example
    assert found.examples == result["examples_applied"]
    assert found.epochs_finished >= reached + 3
    assert lost["replica"] == 0
    assert lost["items_returned"]
    after = [e for e in run.events() if e["kind"] == "items" and e["t"] > lost["t"]]
    assert any(1 in e["replicas"] for e in after), "the other did not go on"
    assert any(2 in e["replicas"] for e in after), "the replacement did no item"
    (recovery,) = result["recoveries"]
    assert recovery["what"] == "replica 0"
    assert recovery["seconds"] > 0
    assert recovery["items_leased_again"] == len(lost["items_returned"])
