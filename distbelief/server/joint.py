"""One item's gradient for a shard, as far as its parts have come, and the calls that wait."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch

from distbelief.server.admission import Verdict, oldest
from distbelief.types import Push, PushReply, Refusal, Version


class Caller:
    """The call that brought a part, and the place for its answer.

    Attributes:
        push: The part.
        norm: Of its gradient.
        fetch_into: Where the newest values of its range are wanted; the caller's until it is
            answered or let go.
        answer: What became of it.
        copies: Whether its gradient is to be copied to the joint.
        claimed: Whether it is too late to let it go: its answer is being written.
    """

    def __init__(self, push: Push, norm: float, fetch_into: torch.Tensor | None) -> None:
        self.push = push
        self.norm = norm
        self.fetch_into = fetch_into
        self.answer: Future[PushReply] = Future()
        self.copies = False
        self.claimed = False

    @property
    def range(self) -> tuple[int, int]:
        """The part's begin and end in the flat vector."""
        return self.push.begin, self.push.begin + self.push.gradient.numel()

    def wait(self, seconds: float | None = None) -> PushReply:
        """Blocks until there is an answer; raises TimeoutError if there is none in time."""
        return self.answer.result(seconds)


@dataclass(frozen=True, slots=True)
class Part:
    """A part that has come or is being copied; its range is of the flat vector."""

    begin: int
    end: int
    norm: float
    base: Version


class Joint:
    """One item's gradient by one replica under one lease, as far as it has come.

    ``Parts`` changes it, under a lock; ``closed`` changes in the shard's writer alone.

    Attributes:
        flaw: Why it must be refused, if it must.
        closed: Whether it has come to its end: then its callers have been, or are being answered.
        refusal: Why it was refused, if it was: the answer for parts that come later.
        callers: Those who wait.
        vector: ``(shard size,) float32``, once there is a part.
        parts: By range.
        copying: Callers that write to the vector just now.
        sealed: Whether a caller is about to have it concluded.
    """

    def __init__(self, first: Push) -> None:
        # Without its gradient, which is the caller's.
        self._about = replace(first, gradient=torch.empty(0))
        self.flaw: Verdict | None = None
        self.closed = False
        self.refusal: Verdict | None = None
        self.callers: list[Caller] = []
        self.vector: torch.Tensor | None = None
        self.parts: dict[tuple[int, int], Part] = {}
        self.copying = 0
        self.sealed = False

    @property
    def item(self) -> int:
        """The item."""
        return self._about.item

    @property
    def lease(self) -> int:
        """The lease."""
        return self._about.lease

    @property
    def replica(self) -> int:
        """Whose it is."""
        return self._about.replica

    @property
    def bases(self) -> list[Version]:
        """The versions that the parts rest on."""
        return [part.base for part in self.parts.values()]

    @property
    def norm(self) -> float:
        """The norm of all parts together."""
        return math.hypot(*(part.norm for part in self.parts.values()))

    def of(self, push: Push) -> bool:
        """Whether a part belongs here."""
        return (push.item, push.lease) == (self.item, self.lease)

    def whole(self, begin: int, incarnation: int) -> Push:
        """The parts as one push that rests on the oldest of their bases; of a complete joint."""
        vector = self.vector
        if vector is None:
            raise ValueError(f"no part of item {self.item} has come")
        base = oldest(self.bases, incarnation)
        return replace(self._about, begin=begin, base=base, gradient=vector)

    def misfit(self, push: Push) -> Verdict | None:
        """Refuses a part that cannot be of one push with those that are here."""
        begin, end = push.begin, push.begin + push.gradient.numel()
        for part in self.parts.values():
            overlaps = begin < part.end and part.begin < end
            if overlaps and (begin, end) != (part.begin, part.end):
                detail = f"part [{begin}, {end}) overlaps part [{part.begin}, {part.end})"
                return Verdict(Refusal.SIZE, detail)
        about = self._about
        for what, here, there in (
            ("learning rate", about.rate, push.rate),
            ("examples", about.examples, push.examples),
            ("skipped", about.skipped, push.skipped),
        ):
            if here != there:
                return Verdict(Refusal.LEASE, f"its parts disagree: {what} {here} and {there}")
        return None
