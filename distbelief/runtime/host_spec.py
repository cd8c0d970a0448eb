"""What a coordinator's process must know to start."""

from __future__ import annotations

from dataclasses import dataclass

from distbelief.config import TrainConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.coordinator.snapshots import Manifest
from distbelief.runtime.prepare import Prepared
from distbelief.storage import Storage


@dataclass(frozen=True, kw_only=True)
class HostSpec:
    """What a coordinator's process must know; plain values.

    Attributes:
        config: The run.
        schedule: The learning rate of each item.
        layout: Fingerprint of the layout.
        storage: The run's folder.
        started_at: Start of the run, in seconds since the epoch.
        incarnation: Of the run's start.
        resumed: The snapshot that it goes on from, or None.
        abandoned: Snapshots of a history that did not survive.
        epochs_told: Epochs whose end is in the events already.
    """

    config: TrainConfig
    schedule: Schedule
    layout: str
    storage: Storage
    started_at: float
    incarnation: int = 1
    resumed: Manifest | None = None
    abandoned: frozenset[int] = frozenset()
    epochs_told: int = 0

    @classmethod
    def of(cls, prepared: Prepared) -> HostSpec:
        """What the coordinator of a run must know."""
        return cls(
            config=prepared.config,
            schedule=prepared.schedule,
            layout=prepared.layout.fingerprint,
            storage=prepared.storage,
            started_at=prepared.started_at,
            incarnation=prepared.incarnation,
            resumed=prepared.resumed,
            abandoned=frozenset(prepared.abandoned),
            epochs_told=0 if prepared.before is None else prepared.before.epochs_told,
        )
