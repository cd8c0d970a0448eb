"""The seams: what a replica, the coordinator, a shard and its twin ask of one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from distbelief.types import (
    Intervals,
    Orders,
    Push,
    PushReply,
    ReplicaReport,
    ShardFile,
    ShardState,
    Version,
    Weights,
)

if TYPE_CHECKING:
    import torch


class ParameterService(Protocol):
    """The seam between a replica and a shard.

    The shard itself satisfies it, and so do the gRPC client and whatever a test puts between.
    All calls block, may come from any thread, and may be repeated without harm.
    """

    def fetch(
        self,
        out: torch.Tensor,
        *,
        begin: int,
        weights: Weights = Weights.LATEST,
        unless: Version | None = None,
    ) -> Version:
        """Writes the shard's newest values into ``out``, all of one clock, and returns its version.

        Args:
            out: ``(n,) float32``, contiguous, on the CPU; the caller's. It is untouched when the
                shard's version is still ``unless``; if the call raises, its contents are undefined.
            begin: First element of the flat vector that is wanted; the shard must hold all n.
            weights: The parameters themselves, as they are expected to be when a gradient computed
                on them will be applied, or their Polyak average.
            unless: The version that the caller has.

        Raises:
            TransportError: no answer in time.
            ShardRefusedError: the shard has no values yet, or does not hold that range.
        """
        ...

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        """Applies an item's gradient unless the shard has it already; returns what became of it.

        Returns when the gradient has been applied, so that a fetch afterwards sees it; a part's
        call waits until the other parts have come, too. With ``fetch_into``, of the gradient's
        size, the newest parameters of its range, the push included, are written there whatever the
        status, except for a refusal; they are predicted ones if that is what the run's replicas
        compute with. Calls for the parts of one push get the same answer, of one version.

        Raises:
            TransportError: no answer in time, or the other parts did not come; the push may or may
                not have been applied, and the same call again takes the place of this one.
        """
        ...


class ShardService(ParameterService, Protocol):
    """A shard as the coordinator sees it."""

    def load(self, values: torch.Tensor) -> None:
        """Sets the initial parameters, ``(end - begin,) float32``; only before the first push."""
        ...

    def set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """Marks items as never to be applied; those already applied stay applied."""
        ...

    def state(self) -> ShardState:
        """The shard's account of itself."""
        ...

    def pause(self, seconds: float) -> ShardState:
        """Holds pushes of new items back, for so many seconds at most; returns the account.

        Their callers wait; repeats are answered and fetches served as ever. :meth:`save` ends it.
        """
        ...

    def save(self, snapshot: int, items: Intervals, seconds: float) -> ShardFile:
        """Writes the shard's state into the folder of that snapshot.

        Admits those of ``items`` that are missing, waits until they are there, for ``seconds`` at
        most, takes a copy of its state, ends the pause, and returns when the copy has been written
        durably, and the push log that it rests on before it.

        Raises:
            TransportError: no answer in time.
            ShardRefusedError: there is nothing to save yet, or it cannot be written.
        """
        ...

    def feed_twin(self, address: str) -> Version:
        """Makes the shard at ``address`` its twin: hands it its whole state, and feeds it from now.

        From the returned version on every push is at the twin before it is acknowledged here. While
        the twin does not answer nothing is acknowledged, until :meth:`release_twin`. A twin that
        can follow no more is dropped, as :meth:`state` then says. It takes the place of the twin
        before, if there is one.

        Raises:
            TransportError: this shard or the twin did not answer; there is no twin then.
            ShardRefusedError: there is nothing to hand over yet, or the other cannot take it.
            ProcessLostError: the other serves by itself: this shard has been given up, and ends.
        """
        ...

    def release_twin(self) -> None:
        """The shard has no twin any more, and waits for none; it may have had none. Never waits."""
        ...

    def promote(self) -> ShardState:
        """A twin serves from now on, as it stands; its primary is refused. May be repeated.

        Raises:
            ShardRefusedError: it has not been given any state yet.
        """
        ...


class TwinService(Protocol):
    """A shard that follows another one, as that one sees it.

    Until it is promoted it does what its primary does, in the same order, and serves nobody else.
    """

    def adopt(self, state: bytes | bytearray, source: Version) -> int:
        """Takes over the state of its primary, as a snapshot's file has it, at that version.

        Returns its incarnation. A later state takes the place of an earlier one.

        Raises:
            TransportError: no answer in time.
            ShardRefusedError: it has been promoted or was never a twin (``promoted``), it has a
                newer state (``follows_no_more``), or this is no state of its range.
        """
        ...

    def mirror(self, push: Push, *, clock: int, staleness: int | None) -> None:
        """Applies what its primary is about to apply; returns when it has.

        The gradient covers the whole range; its contents are as they were when the call returns.
        A repeat changes nothing.

        Args:
            push: As the primary has it; ``push.incarnation`` is the primary's.
            clock: The primary's clock once it will have applied the push.
            staleness: Of the push, by the primary's clock.

        Raises:
            TransportError: no answer in time; the twin may or may not have it.
            ShardRefusedError: it has been promoted (``promoted``), or the push is not the next one
                after its state (``follows_no_more``).
        """
        ...

    def mirror_set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """Marks items as never to be applied, as its primary does; raises as :meth:`mirror`."""
        ...


class CoordinatorService(Protocol):
    """The coordinator as a replica sees it."""

    def report(self, report: ReplicaReport) -> Orders:
        """Takes a replica's report and leases it what it needs next; does not block for work."""
        ...
