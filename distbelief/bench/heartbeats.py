"""Whether the heartbeats cry wolf: a run at full load, to which nothing is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distbelief.chaos.background import Background

ALARMS = ("replica_lost", "shard_lost", "coordinator_lost", "evaluator_lost")
BUSY = "while True: pass"
LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class Quiet:
    """What happened while nothing was done.

    Attributes:
        seconds: For which it was watched.
        load: Processes that wanted a core, on average, at its end.
        examples: That were applied.
        alarms: Every loss that was told of.
    """

    seconds: float
    load: float
    examples: int
    alarms: list[dict[str, Any]]


def measure_heartbeats(
    seconds: float, run_dir: Path, *, burn: int, say: Callable[[str], None]
) -> Quiet:
    """Watches a run with twins and as many replicas as cores; blocks.

    Args:
        seconds: How long.
        run_dir: The run's folder.
        burn: Busy processes beside it.
        say: Tells the user.

    Raises:
        RunError: the run did not begin, or ended by itself.
    """
    replicas = max(2, os.cpu_count() or 1)
    options = {"replicas": replicas, "shards": 2, "shard_replication": 2, "address": "local"}
    with Background(run_dir, options) as run, _busy(burn):
        run.await_work(replicas, twins=2)
        say(f"{replicas} replicas, 2 shards and their twins work, {burn} busy processes beside")
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            run.require_running()
            time.sleep(LOOK_S)
        watched_s = time.monotonic() - began
        events = run.events()
        load = os.getloadavg()[0]
        run.stop()
    return Quiet(
        seconds=watched_s,
        load=load,
        examples=max((e["examples_applied"] for e in events if e["kind"] == "progress"), default=0),
        alarms=[event for event in events if event["kind"] in ALARMS],
    )


@contextmanager
def _busy(n: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
