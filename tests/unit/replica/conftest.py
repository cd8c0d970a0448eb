"""The stages of a replica as processes, kept for all tests of this folder, and as threads."""

from __future__ import annotations

import gc
import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distbelief.data.processes import LightContext, LightProcess, follow_parent
from distbelief.replica.group import Meeting, Stages, Word, keep_store

HERE = "127.0.0.1"
REPLICA = 7
LONGEST_S = 100.0


class Crew:
    """Processes of one thread each, of which the first few become the stages of a group.

    They are started when they are needed, and again when they have died.
    """

    def __init__(self) -> None:
        self._context = LightContext()
        self._hands: list[tuple[LightProcess, Connection]] = []

    def run(self, n_stages: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What ``function(group, *args)`` returns in each stage."""
        outcomes = self.outcomes(n_stages, function, *args)
        for outcome in outcomes:
            if _failed(outcome):
                raise outcome
        return outcomes

    def outcomes(
        self, n_stages: int, function: Callable[..., Any], *args: Any, timeout_s: float = LONGEST_S
    ) -> list[Any]:
        """The same, with the error of a stage in its place, and EOFError if its process died."""
        cloudpickle.register_pickle_by_value(sys.modules[function.__module__])
        self._hands = [hand for hand in self._hands if hand[0].is_alive()]
        while len(self._hands) < n_stages:
            self._hands.append(self._start())
        hands = self._hands[:n_stages]
        _store, meeting = keep_store(HERE, n_stages)
        for stage, (_, end) in enumerate(hands):
            end.send_bytes(cloudpickle.dumps((function, meeting, stage, n_stages, timeout_s, args)))
        outcomes = [self._outcome(process, end) for process, end in hands]
        if any("did not meet" in str(outcome) for outcome in outcomes if _failed(outcome)):
            self.close()  # torch does not forget in such a process that it was about to
        return outcomes

    def close(self) -> None:
        """Ends the processes."""
        for process, _ in self._hands:
            process.kill()
        for process, end in self._hands:
            process.join()
            end.close()
        self._hands = []

    def _start(self) -> tuple[LightProcess, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_ByValue(_serve), args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def _outcome(self, process: LightProcess, end: Connection) -> Any:
        if not end.poll(LONGEST_S):
            self.close()
            raise TimeoutError("a stage does not answer")
        try:
            return cloudpickle.loads(end.recv_bytes())
        except EOFError as error:
            process.join()
            return error


def _failed(outcome: Any) -> bool:
    return isinstance(outcome, BaseException)


class _ByValue:
    """A function that a process can be started with, although it cannot import the tests."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __reduce__(self) -> tuple[Any, ...]:
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        return cloudpickle.loads, (cloudpickle.dumps(self._function),)


def _serve(end: Connection) -> None:
    follow_parent()
    torch.set_num_threads(1)
    while True:
        content = end.recv_bytes()
        try:
            said = cloudpickle.dumps(_called(*cloudpickle.loads(content)))
        except Exception as error:
            said = cloudpickle.dumps(error)
        gc.collect()  # of what refers to the group, whose connections would be kept open by it
        end.send_bytes(said)


def _called(
    function: Callable[..., Any],
    meeting: Meeting,
    stage: int,
    n_stages: int,
    timeout_s: float,
    args: tuple[Any, ...],
) -> Any:
    with Stages(
        meeting,
        replica=REPLICA,
        stage=stage,
        n_stages=n_stages,
        address=HERE,
        timeout_s=timeout_s,
    ) as group:
        return function(group, *args)


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    """Stages in processes of their own; see :class:`Crew`."""
    found = Crew()
    yield found
    found.close()


class GoneError(Exception):
    """Another stage has ended."""


class ThreadGroup:
    """One stage's view of a group of threads that tell each other things through queues.

    Attributes:
        log: What each stage has said, in its order, as all have heard it.
    """

    def __init__(self, stage: int, n_stages: int, meeting: threading.Barrier) -> None:
        self.stage = stage
        self.n_stages = n_stages
        self.others: list[ThreadGroup] = []
        self.log: list[Any] = []
        self._meeting = meeting
        self._heard: queue.Queue[str | tuple[Word, list[NDArray[Any]]]] = queue.Queue()
        self._said: Word = {}

    def tell(self, word: Word, arrays: Sequence[NDArray[Any]] = ()) -> None:
        assert self.stage == 0
        self.log.append(word)
        for other in self.others:
            told = json.loads(json.dumps(word)), [np.array(a) for a in arrays]
            other._heard.put(told)

    def hear(self) -> tuple[Word, list[NDArray[Any]]]:
        assert self.stage > 0
        found = self._heard.get(timeout=LONGEST_S)
        if isinstance(found, str):
            raise GoneError(found)
        self.log.append(found[0])
        return found

    def gather(self, word: Word) -> list[Word]:
        self._said = json.loads(json.dumps(word))
        try:
            self._meeting.wait(LONGEST_S)
            said = [one._said for one in sorted([self, *self.others], key=lambda g: g.stage)]
            self._meeting.wait(LONGEST_S)
        except threading.BrokenBarrierError as error:
            raise GoneError("a stage has ended") from error
        self.log.append(said)
        return said

    def leave(self) -> None:
        """As a stage whose process ends: the others find out when they turn to it."""
        self._meeting.abort()
        for other in self.others:
            other._heard.put("a stage has ended")


@pytest.fixture
def thread_groups() -> Callable[[int], list[ThreadGroup]]:
    """Makes the views of all stages of a group."""

    def make(n_stages: int) -> list[ThreadGroup]:
        meeting = threading.Barrier(n_stages)
        found = [ThreadGroup(stage, n_stages, meeting) for stage in range(n_stages)]
        for group in found:
            group.others = [other for other in found if other is not group]
        return found

    return make
