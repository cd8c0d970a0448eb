"""What a coordinator's process must know to start."""

from __future__ import annotations

from dataclasses import dataclass

from distbelief.config import TrainConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.coordinator.snapshots import Manifest
from distbelief.faults.points import Fault
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.task import Task
from distbelief.storage import Storage


@dataclass(frozen=True, kw_only=True)
class HostSpec:
    """What a coordinator's process must know; plain values.

    Attributes:
        config: The run.
        task: What it trains.
        schedule: The learning rate of each item.
        layout: Fingerprint of the layout.
        storage: The run's folder.
        started_at: Start of the run, in seconds since the epoch.
        incarnation: Of the run's start.
        resumed: The snapshot that it goes on from, or None.
        abandoned: Snapshots of a history that did not survive.
        epochs_told: Epochs whose end is in the events already.
        start: How many times the coordinator has been started in this start of the run, from 1.
        replicas: Those that are at work when it starts, and hold items.
        lost: Those that are not to be heard any more.
        faults: Faults to be injected, for tests.
    """

    config: TrainConfig
    task: Task
    schedule: Schedule
    layout: str
    storage: Storage
    started_at: float
    incarnation: int = 1
    resumed: Manifest | None = None
    abandoned: frozenset[int] = frozenset()
    epochs_told: int = 0
    start: int = 1
    replicas: frozenset[int] = frozenset()
    lost: frozenset[int] = frozenset()
    faults: tuple[Fault, ...] = ()

    def names_of(self, item: int) -> list[str]:
        """The names of an item's examples; opens the data.

        Raises:
            UsageError: the data cannot be read here.
        """
        train = self.task.open_data(self.config).train
        which = self.schedule.plan.item(item)
        order = train.epoch_order(self.config.seed, which.epoch)
        return [train.name(int(index)) for index in order[which.begin : which.end]]

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        *,
        start: int = 1,
        replicas: frozenset[int] = frozenset(),
        lost: frozenset[int] = frozenset(),
    ) -> HostSpec:
        """What a coordinator of the run must know: the first one, or one that follows it."""
        return cls(
            config=prepared.config,
            task=prepared.task,
            schedule=prepared.schedule,
            layout=prepared.layout.fingerprint,
            storage=prepared.storage,
            started_at=prepared.started_at,
            incarnation=prepared.incarnation,
            resumed=prepared.resumed,
            abandoned=frozenset(prepared.abandoned),
            epochs_told=0 if prepared.before is None else prepared.before.epochs_told,
            faults=prepared.faults,
            start=start,
            replicas=replicas,
            lost=lost,
        )
