"""Ids, and the records that travel between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Intervals = tuple[tuple[int, int], ...]
"""Sorted, disjoint, non-adjacent half-open ranges of item numbers."""


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """Which parameters: the shard's incarnation, and the items it had applied."""

    incarnation: int
    clock: int


class Weights(StrEnum):
    """Which of a shard's vectors a fetch asks for."""

    LATEST = "latest"
    PREDICTED = "predicted"
    AVERAGED = "averaged"


class PushStatus(StrEnum):
    """What became of a push on one shard."""

    APPLIED = "applied"
    ALREADY_APPLIED = "already_applied"
    SET_ASIDE = "set_aside"
    REFUSED = "refused"


class Refusal(StrEnum):
    """Why a shard refused a push; its state is as it was before."""

    NOT_FINITE = "not_finite"
    NORM = "norm"
    LAYOUT = "layout"
    SIZE = "size"
    RATE = "rate"
    STALE = "stale"
    INCARNATION = "incarnation"
    NOT_LOADED = "not_loaded"
    LEASE = "lease"


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """One item's gradient for one shard, or a part of it.

    A part covers some of the shard's range; parts of the same item, lease and replica that cover
    all of it without overlapping are one push, in whatever order they come.

    Attributes:
        item: The item's number, the identity of the push.
        lease: The lease under which the replica holds the item; later leases have higher numbers.
        replica: The replica that pushes.
        begin: First element of the flat vector that ``gradient`` covers.
        incarnation: The shard's incarnation that the push is meant for.
        base: The shard's version at the oldest fetch that the gradient rests on.
        rate: The learning rate of the item.
        examples: Examples that went into the gradient.
        skipped: Indices of the item's examples that could not be read.
        layout: Fingerprint of the layout that both sides must share.
        gradient: ``(n,) float32``, contiguous, on the CPU. Once the call returns its contents are
            undefined; if it raises TransportError they are as they were. Either way the buffer
            belongs to the caller again.
    """

    item: int
    lease: int
    replica: int
    begin: int
    incarnation: int
    base: Version
    rate: float
    examples: int
    skipped: tuple[int, ...]
    layout: str
    gradient: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PushReply:
    """What became of a push.

    ``staleness`` is known for an applied push whose base is of the shard's own incarnation.
    ``fetched`` is the version of the parameters that were written to the caller's buffer, if any.
    """

    status: PushStatus
    version: Version
    refusal: Refusal | None = None
    detail: str = ""
    staleness: int | None = None
    fetched: Version | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """A shard's account of itself: plain values, safe to keep and to send.

    ``examples`` counts those that went into the applied gradients, ``skipped`` those of the same
    items that could not be read. ``set_aside`` has the reason of each item; ``staleness`` counts
    applied pushes by their staleness, ``refused`` refusals by their reason. ``queued`` tasks wait
    for the writer; ``nbytes_received`` of gradients have come and ``nbytes_sent`` of parameters
    gone since the shard was started; ``traffic`` has the bytes of both by who called, for callers
    that gave a name. ``twin`` is the incarnation of the twin that it feeds, ``follows`` that of the
    shard whose twin it is itself, as long as it serves nobody; 0 without one. ``trouble`` is why
    its push log cannot be written just now, or empty.
    """

    shard: int
    incarnation: int
    begin: int
    end: int
    loaded: bool
    clock: int
    examples: int
    skipped: int
    applied: Intervals
    set_aside: dict[int, str]
    repeated: int
    refused: dict[str, int] = field(default_factory=dict)
    staleness: dict[int, int] = field(default_factory=dict)
    queued: int = 0
    nbytes_received: int = 0
    nbytes_sent: int = 0
    traffic: dict[str, int] = field(default_factory=dict)
    twin: int = 0
    follows: int = 0
    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """A shard's part of a snapshot, as it lies in the run's folder.

    Attributes:
        name: The file's name within the snapshot's folder.
        nbytes: Its size.
        sha256: Its digest, in hexadecimal.
        n_shards: Shards of the run that wrote it.
        state: The shard's account of itself at the moment of the snapshot.
        paused_s: Seconds for which it held pushes back.
    """

    name: str
    nbytes: int
    sha256: str
    n_shards: int
    state: ShardState
    paused_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LeasedItem:
    """An item in a replica's hands, with all that it needs to compute and push it."""

    number: int
    lease: int
    epoch: int
    begin: int
    end: int
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemOutcome:
    """What a replica did with one item.

    ``losses`` has the mean of each loss over the item's steps, by name; ``loss`` is what was
    minimised. ``refusal`` tells why the item was not applied, or is empty; ``pushed`` is false if
    the replica itself refused the gradient, so that no shard saw it. ``unreadable`` has the names
    of its examples that could not be read, ``culprits`` those of its examples if they made a
    gradient that is not finite from parameters that are; of either not all, perhaps.
    """

    item: int
    examples: int
    losses: dict[str, float]
    refusal: str = ""
    pushed: bool = True
    unreadable: tuple[str, ...] = ()
    culprits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """A replica's periodic word to the coordinator.

    Attributes:
        replica: Which replica; a replacement has a number of its own.
        host: Name of its host.
        pid: Its process.
        held: Items it holds and has not finished, each with its lease; the one at work first.
        outcomes: What it finished since its last report.
        seconds_per_item: Its own pace, or None before the first item.
        waiting_s: Seconds that its compute waited for batches since the last report.
        parameters_age_s: Seconds since it fetched the parameters that it computes with, or None.
        leaving: It takes no more items and gives back those it holds.
        stages: Processes that it consists of.
    """

    replica: int
    host: str
    pid: int
    held: tuple[tuple[int, int], ...] = ()
    outcomes: tuple[ItemOutcome, ...] = ()
    seconds_per_item: float | None = None
    waiting_s: float = 0.0
    parameters_age_s: float | None = None
    leaving: bool = False
    stages: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """The coordinator's answer: more items, and whether to end.

    ``dismissal`` is why the replica is to fail, so that another takes its place; or empty.
    """

    items: tuple[LeasedItem, ...] = ()
    stop: bool = False
    dismissal: str = ""
