"""A replica of several stages on one machine, without Ray: a process for each stage."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import torch

from distbelief.data.processes import LightContext, LightProcess, follow_parent
from distbelief.errors import DistBeliefError, ProcessLostError, as_distbelief_error
from distbelief.replica.group import Meeting, keep_store
from distbelief.runtime.endpoints import Access, connect
from distbelief.runtime.seat import Seat
from distbelief.runtime.worker import ModelSpec, run_replica
from distbelief.runtime.world import first_cause
from distbelief.services import CoordinatorService
from distbelief.types import Orders, ReplicaReport

HERE = "127.0.0.1"

OTHERS_S = 3.0
"""How long the other stages may take to say what they know of the first that failed."""
END_S = 5.0


@dataclass(frozen=True, kw_only=True)
class StageTask:
    """What a stage's process is to do; pickled into it."""

    spec: ModelSpec
    seat: Seat
    access: Access
    n_threads: int
    n_loaders: int


class StageProcesses:
    """Runs one replica, and ends its processes in any case. A context manager.

    Args:
        tasks: One for each stage, in order; their meeting is arranged here.
    """

    def __init__(self, tasks: Sequence[StageTask]) -> None:
        self._tasks = tuple(tasks)
        self._processes: list[LightProcess] = []
        self._connections: list[Connection] = []
        self._ending: set[int] = set()
        self._at_work = False

    def __enter__(self) -> StageProcesses:
        self._store, meeting = keep_store(HERE, len(self._tasks))
        context = LightContext()
        try:
            for task in self._tasks:
                self._start(context, task, meeting)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *of_an_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is left of the processes."""
        for stage, process in enumerate(self._processes):
            if stage not in self._ending:
                process.kill()
        for process in self._processes:
            process.join(END_S)
            process.kill()
            process.join()
        for end in self._connections:
            end.close()

    def stop(self) -> None:
        """Ends a replica that is being started; the coordinator ends one that is at work.

        Thread-safe.
        """
        if not self._at_work:
            for process in self._processes:
                process.kill()

    @property
    def pids(self) -> tuple[int, ...]:
        """The stages' processes."""
        return tuple(process.pid or 0 for process in self._processes)

    def run(self, coordinator: CoordinatorService) -> None:
        """Blocks until all stages have ended, answering what the first asks the coordinator.

        Raises:
            DistBeliefError: the first cause of the end, if the replica failed.
        """
        errors: dict[int, DistBeliefError] = {}
        running = dict(enumerate(self._connections))
        give_up_at = float("inf")
        while running and time.monotonic() < give_up_at:
            patience_s = None if give_up_at == float("inf") else give_up_at - time.monotonic()
            for end in connection.wait(list(running.values()), patience_s):
                stage = next(s for s, known in running.items() if known is end)
                answer = self._hear(stage, running[stage], coordinator)
                if answer is not None:
                    del running[stage]
                    self._ending.add(stage)  # by itself, and with it what it has started
                    if isinstance(answer, DistBeliefError):
                        errors[stage] = answer
                        give_up_at = min(give_up_at, time.monotonic() + OTHERS_S)
        if errors:
            raise first_cause(errors)

    def _start(self, context: LightContext, task: StageTask, meeting: Meeting) -> None:
        ours, theirs = context.Pipe()
        task = replace(task, seat=replace(task.seat, meeting=meeting, address=HERE))
        seat = task.seat
        process = context.Process(
            target=stage_main,
            args=(theirs, cloudpickle.dumps(task), tuple(sys.path)),
            name=f"replica-{seat.replica}-stage-{seat.stage}",
        )
        process.start()
        theirs.close()
        self._processes.append(process)
        self._connections.append(ours)

    def _hear(
        self, stage: int, end: Connection, coordinator: CoordinatorService
    ) -> DistBeliefError | bool | None:
        """Whether the stage has ended, or why; None if it goes on."""
        try:
            said = end.recv()
        except (EOFError, OSError):
            self._processes[stage].join(END_S)
            code = self._processes[stage].exitcode
            what = f"stage {stage} of replica {self._tasks[stage].seat.replica}"
            return ProcessLostError(what, f"its process ended with exit code {code}")
        if isinstance(said, ReplicaReport):
            self._at_work = True
            answer: Orders | DistBeliefError
            try:
                answer = coordinator.report(said)
            except DistBeliefError as error:
                answer = error
            try:
                end.send(answer)
            except OSError:
                return None  # it has died meanwhile, which the next look finds
            return None
        return said if isinstance(said, DistBeliefError) else True


class _PipedCoordinator:
    """The coordinator, through the pipe to the process that has it."""

    def __init__(self, end: Connection) -> None:
        self._end = end

    def report(self, report: ReplicaReport) -> Orders:
        """See :class:`~distbelief.services.CoordinatorService`."""
        try:
            self._end.send(report)
            answer: Orders | DistBeliefError = self._end.recv()
        except (EOFError, OSError) as error:
            raise ProcessLostError("the coordinator", str(error)) from error
        if isinstance(answer, DistBeliefError):
            raise answer
        return answer


def stage_main(end: Connection, content: bytes, paths: tuple[str, ...]) -> None:
    """A stage's process."""
    follow_parent()
    # What SIGTERM means is for the parent to decide too, which a batch system sends it to as well.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.path += [path for path in paths if path not in sys.path]
    said: Any = True
    try:
        task: StageTask = cloudpickle.loads(content)
        torch.set_num_threads(task.n_threads)
        run_stage(task, _PipedCoordinator(end))
    except Exception as error:
        said = as_distbelief_error(error)
    try:
        end.send(said)
    except OSError:
        return  # nobody is left to tell


def run_stage(task: StageTask, coordinator: CoordinatorService) -> None:
    """Runs one stage in this process."""
    with ExitStack() as stack:
        sender = f"{task.seat.replica}.{task.seat.stage}"
        ports = connect(task.access, task.spec.config, stack, sender=sender).ports
        run_replica(task.spec, task.seat, ports, coordinator, n_loaders=task.n_loaders)
