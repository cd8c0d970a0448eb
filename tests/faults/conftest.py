"""Runs in the background and their events as they come; runs that are held at chosen steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distbelief.audit import Audit, audit
from distbelief.config import TrainConfig
from distbelief.faults.points import Fault
from distbelief.observe.events import read_events
from distbelief.observe.report import Report
from distbelief.observe.view import Lines
from distbelief.runtime.beginning import begin
from distbelief.runtime.local import LocalWorld
from distbelief.runtime.prepare import prepare
from distbelief.runtime.signals import Stop
from distbelief.runtime.supervisor import Supervisor
from distbelief.runtime.task import Task
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

    def wait_for(self, wanted: Callable[[Event], bool], *, after: int = 0) -> Event:
        """Polls the events, but for so many, until one is as wanted.

        The test's timeout is the limit.
        """
        while True:
            for event in self.events()[after:]:
                if wanted(event):
                    return event
            self.check()
            time.sleep(0.05)

    def check(self) -> None:
        """Raises what the run has failed with, if it has."""
        if self._error is not None:
            raise self._error

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


HANG_S = 60.0  # what a replica waits for must come within so long
N_FEATURES, N_CLASSES = 16, 10


class Vectors:
    """A data set: random vectors, each of a class but the last.

    Args:
        n: How many.
        not_finite: Examples that hold what is not a number.
        of_last_class: Examples that are of the last class.
    """

    classes = tuple(str(label) for label in range(N_CLASSES))

    def __init__(
        self, n: int, *, not_finite: Sequence[int] = (), of_last_class: Sequence[int] = ()
    ) -> None:
        draw = np.random.default_rng(0)
        self._vectors = draw.standard_normal((n, N_FEATURES)).astype(np.float32)
        self._labels = draw.integers(N_CLASSES - 1, size=n)
        self._vectors[list(not_finite)] = np.nan
        self._labels[list(of_last_class)] = N_CLASSES - 1

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, example: int) -> tuple[NDArray[np.float32], int]:
        return self._vectors[example], int(self._labels[example])


def linear(num_classes: int) -> torch.nn.Module:
    """A model that costs nothing."""
    return torch.nn.Linear(N_FEATURES, num_classes)


class Running:
    """A run that is going on, as conditions look at it."""

    def __init__(self, world: LocalWorld, storage: Storage) -> None:
        self.world = world
        self._storage = storage

    @property
    def report(self) -> Report | None:
        """How it stands; None while the coordinator is away."""
        return self.world.report()

    def examples(self) -> int:
        """Examples of which the coordinator has heard from all shards."""
        return report.examples_applied if (report := self.report) else 0

    def clock(self, shard: int) -> int:
        """That of a shard, as the coordinator last heard it."""
        return int(report.shards[shard]["clock"]) if (report := self.report) else 0

    def snapshot(self) -> int:
        """Number of the newest one; the one of the start is 0."""
        newest = report.snapshot if (report := self.report) else None
        return int(newest["number"]) if newest else -1

    def incarnation(self, shard: int) -> int:
        """Of the shard that serves."""
        return self.world.serving.shards[shard].incarnation

    def told(self, kind: str, **fields: object) -> bool:
        """Whether there is an event of that kind and these fields."""
        return any(_is(event, kind, fields) for event in read_events(self._storage))


def _is(event: Event, kind: str, fields: dict[str, Any]) -> bool:
    return event["kind"] == kind and all(event.get(k) == v for k, v in fields.items())


@dataclass
class Hold:
    """Replicas wait in their steps until something has come.

    Attributes:
        until: What they wait for.
        after: So many steps pass before it.
        who: The thread of the replica that waits, and whose steps count; by default all.
    """

    until: Callable[[Running], bool]
    after: int = 0
    who: str = ""
    _steps: int = 0
    _over: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def step(self, running: Running) -> None:
        """Passes a step, or waits in it."""
        if self.who not in ("", threading.current_thread().name):
            return
        with self._lock:
            self._steps += 1
            passes = self._steps <= self.after
        give_up_at = time.monotonic() + HANG_S
        while not (passes or self._over):
            self._over = self.until(running)
            if time.monotonic() > give_up_at:
                raise AssertionError(f"held for {HANG_S:g} s, after {self.after} steps")
            time.sleep(0.01)


@dataclass(frozen=True)
class Ended:
    """A run that has ended.

    Attributes:
        result: Its summary.
        audit: What its audit says.
        storage: Its folder.
        values: The newest parameters.
        incarnations: Of the shards that serve at the end.
    """

    result: dict[str, Any]
    audit: Audit
    storage: Storage
    values: torch.Tensor
    incarnations: tuple[int, ...]

    def told(self, kind: str, **fields: object) -> list[Event]:
        """The events of that kind and these fields."""
        return [event for event in read_events(self.storage) if _is(event, kind, fields)]

    def require_all(self, n_examples: int, *, set_aside: int = 0) -> None:
        """Every example was applied once, but for those that were set aside."""
        assert self.audit.clean, self.audit.counter_example
        assert self.result["status"] == "finished"
        assert self.result["examples_applied"] == n_examples - set_aside
        assert self.result["examples_set_aside"] == set_aside
        assert self.audit.examples == n_examples - set_aside


class Small:
    """Runs of three epochs of 32 items of 4 examples, of a linear model; they take a second."""

    n_items, n_examples = 96, 384

    def __init__(self, tiny: Callable[..., TrainConfig]) -> None:
        self._tiny = tiny

    def config(self, **changes: Any) -> TrainConfig:
        """The configuration; by default the only snapshots are those of the start and the end."""
        values: dict[str, Any] = {"epochs": 3, "batch_size": 4, "snapshot_every": 100_000}
        return self._tiny(**{**values, "evaluate": False, "tensorboard": False, **changes})

    def run(
        self,
        *faults: Fault,
        holds: Sequence[Hold] = (),
        world: type[LocalWorld] = LocalWorld,
        dataset: Any = None,
        spoil: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda loss, labels: loss,
        changes: dict[str, Any] | None = None,
        **options: Any,
    ) -> Ended:
        """A whole run, blocking.

        Args:
            faults: What dies.
            holds: Where replicas wait.
            world: What it runs in.
            dataset: What it is trained on; by default 128 vectors.
            spoil: What becomes of the losses, ``(n,) float32``, of examples of these classes.
            changes: To the configuration.
            options: For the world.
        """
        running: list[Running] = []

        def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            for hold in holds:
                hold.step(running[0])
            found = torch.nn.functional.cross_entropy(outputs, labels, reduction="none")
            return spoil(found, labels).mean()

        data = Vectors(128) if dataset is None else dataset
        task = Task(model=linear, dataset=data, loss=loss)
        prepared = prepare(self.config(**(changes or {})), task=task)
        prepared, storage = replace(prepared, faults=faults), prepared.storage
        begin(prepared)
        with world(prepared, n_loaders=0, **options) as entered:
            running.append(Running(entered, storage))
            result = Supervisor(entered, prepared, Stop(), Lines(lambda line: None)).run()
            values = torch.empty(prepared.layout.size)
            for e in entered.serving.shards:
                with entered.shard_at(e) as shard:
                    shard.fetch(values[e.begin : e.end], begin=e.begin)
            incarnations = tuple(e.incarnation for e in entered.serving.shards)
        found = audit(cast(str, prepared.config.run_dir))
        return Ended(result, found, storage, values, incarnations)


@pytest.fixture
def vectors() -> type[Vectors]:
    """Makes data sets."""
    return Vectors


@pytest.fixture
def small(tiny: Callable[..., TrainConfig]) -> Small:
    """Makes small runs."""
    return Small(tiny)


@pytest.fixture
def hold() -> type[Hold]:
    """Makes holds."""
    return Hold
