"""Times stages as they will run, beside one process of the same network; no shard takes part."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import torch

from distbelief.config import TrainConfig
from distbelief.data.loader import Batch
from distbelief.data.processes import LightContext, LightProcess, follow_parent
from distbelief.errors import DistBeliefError, ProcessLostError, as_distbelief_error
from distbelief.layout import Layout
from distbelief.models.dropout import seed_dropout
from distbelief.models.stages import StagePlan
from distbelief.planner import Measured
from distbelief.replica.group import keep_store
from distbelief.runtime.seat import Seat, take_seat
from distbelief.runtime.task import Task
from distbelief.runtime.world import first_cause

HERE = "127.0.0.1"
STATUS = "/proc/self/status"
PAIRS = 5
ANSWER_S = 600.0


@dataclass(frozen=True, kw_only=True)
class _Assignment:
    config: TrainConfig
    task: Task
    n_outputs: int
    plan: StagePlan | None
    seat: Seat
    batch: Batch
    n_threads: int


def measure(
    config: TrainConfig,
    task: Task,
    plan: StagePlan,
    batch: Batch,
    *,
    n_outputs: int,
    slot: int = 0,
    n_threads: int = 1,
    pairs: int = PAIRS,
) -> Measured:
    """Runs forward and backward passes of one batch in K processes and in one, alternately.

    Each runs once before anything is timed; times are medians. Memory is a process's peak on the
    host, above one that has only imported torch.

    Args:
        config: The run; the replica of ``slot`` is measured.
        task: A user's own objects.
        plan: How that replica is divided.
        batch: What is computed, again and again.
        n_outputs: Outputs of the network.
        slot: Which replica.
        n_threads: Threads of each process.
        pairs: How often each is timed.

    Raises:
        DistBeliefError: a process failed.
    """
    store, meeting = keep_store(HERE, plan.n_stages)
    whole = replace(
        config.replica,
        stages=1,
        boundaries=None,
        micro_batches=None,
        device=config.slots[slot].device_of(0),
    )
    alone = config.changed(replica_group=()) if config.cluster.replica_group else config
    one = _Assignment(
        config=replace(alone, replica=whole),
        task=task,
        n_outputs=n_outputs,
        plan=None,
        seat=Seat(0, 0),
        batch=batch,
        n_threads=n_threads,
    )
    staged = [
        replace(one, config=config, plan=plan, seat=Seat(0, slot, stage, meeting, HERE))
        for stage in range(plan.n_stages)
    ]
    baseline = _peak_of_torch_alone()
    with _Workers([one]) as single, _Workers(staged) as stages:
        single.step()
        stages.step()
        times = [(single.step(), stages.step()) for _ in range(pairs)]
        one_peak, *_ = single.peaks()
        stage_peaks = stages.peaks()
    del store
    return Measured(
        step_seconds=statistics.median(b for _, b in times),
        one_process_seconds=statistics.median(a for a, _ in times),
        memory_bytes=tuple(peak - baseline for peak in stage_peaks),
        one_process_memory_bytes=one_peak - baseline,
    )


@dataclass
class _Workers:
    """Processes that step together when they are told to."""

    assignments: Sequence[_Assignment]
    _processes: list[LightProcess] = field(default_factory=list)
    _ends: list[Connection] = field(default_factory=list)

    def __enter__(self) -> _Workers:
        context = LightContext()
        for assignment in self.assignments:
            ours, theirs = context.Pipe()
            content = cloudpickle.dumps(assignment)
            process = context.Process(
                target=_main, args=(theirs, content, tuple(sys.path)), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._ends.append(ours)
        return self

    def __exit__(self, *of_an_error: object) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.kill()
            process.join()

    def step(self) -> float:
        """Seconds of one step, from the order until all have done it."""
        began = time.perf_counter()
        self._ask("step")
        return time.perf_counter() - began

    def peaks(self) -> list[int]:
        """Each process's peak memory, bytes."""
        return [int(peak) for peak in self._ask("peak")]

    def _ask(self, what: str) -> list[Any]:
        for end in self._ends:
            end.send(what)
        answers: list[Any] = []
        errors: dict[int, DistBeliefError] = {}
        for number, end in enumerate(self._ends):
            try:
                said = end.recv() if end.poll(ANSWER_S) else None
            except EOFError:
                said = None
            if said is None:
                what = f"process {number} of a measurement"
                errors[number] = ProcessLostError(what, "it did not answer")
            elif isinstance(said, DistBeliefError):
                errors[number] = said
            answers.append(said)
        if errors:
            raise first_cause(errors)
        return answers


def _main(end: Connection, content: bytes, paths: tuple[str, ...]) -> None:
    follow_parent()
    sys.path += [path for path in paths if path not in sys.path]
    try:
        _work(end, cloudpickle.loads(content))
    except EOFError:
        return
    except Exception as error:
        end.send(as_distbelief_error(error))


def _work(end: Connection, given: _Assignment) -> None:
    torch.set_num_threads(given.n_threads)
    with ExitStack() as stack:
        model = given.task.build_model(given.config, given.n_outputs)
        layout = Layout.of(model.named_parameters())
        part = take_seat(
            given.config, given.task.loss, given.plan, given.seat, model, layout, stack
        )
        del model
        while True:
            if end.recv() == "peak":
                end.send(_peak(Path(STATUS).read_text(encoding="ascii")))
                continue
            seed_dropout(part.step.model, 0, 0, 0)
            part.step(given.batch.images, given.batch.labels)
            part.flat.gradient.zero_()
            end.send(True)


def _peak(status: str) -> int:
    """The largest resident size that a process has had, bytes, by its status in /proc."""
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _peak_of_torch_alone() -> int:
    program = f"import torch; print(open({STATUS!r}).read())"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return _peak(run.stdout)
