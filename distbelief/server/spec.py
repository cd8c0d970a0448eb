"""What a shard must know to start."""

from __future__ import annotations

from dataclasses import dataclass

from distbelief.config import AveragingConfig, OptimizerConfig
from distbelief.faults.points import Fault
from distbelief.layout import Segment
from distbelief.server.restore import Restore
from distbelief.storage import Storage


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """All that a shard must know to start; plain values, no parameters.

    Attributes:
        index: Which shard, from 0.
        n_shards: Shards of the run.
        begin: First element of the flat vector.
        end: End of its elements.
        segments: What differs by range, counted from ``begin``.
        layout: Fingerprint of the layout.
        incarnation: How many times this shard has been started, from 1.
        examples_per_item: Examples of a whole item, the unit of the average's decay.
        total_examples: Examples of the whole run, for averages over its tail.
        n_ports: Pushes, whole or in parts, that may come at once; the queue has room for each
            and for a fetch beside it.
        parts_wait_s: Seconds that a part of a push waits for the others.
        optimizer: The update rule.
        averaging: The Polyak average.
        storage: The run's folder: the push log goes there, and snapshots.
        restore: Where the state comes from; without it the shard waits for initial values.
        faults: Faults to be injected, for tests.
        twin: It follows another shard of the same range, and serves nobody until it is promoted.
    """

    index: int
    n_shards: int
    begin: int
    end: int
    segments: tuple[Segment, ...]
    layout: str
    incarnation: int
    examples_per_item: int
    total_examples: int
    n_ports: int
    optimizer: OptimizerConfig
    averaging: AveragingConfig
    storage: Storage
    parts_wait_s: float = 30.0
    restore: Restore | None = None
    faults: tuple[Fault, ...] = ()
    twin: bool = False

    @property
    def size(self) -> int:
        """Elements of the shard."""
        return self.end - self.begin
