"""The Downpour loop (Dean et al. 2012, section 4.1 and algorithm 1.1), one replica's whole life."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from distbelief.faults.points import NONE, Injector
from distbelief.layout import Layout
from distbelief.models.dropout import seed_dropout
from distbelief.replica.buffers import FlatModel
from distbelief.replica.exchange import Exchange, Exchanged, Gradient, Pending
from distbelief.replica.feed import Work
from distbelief.replica.group import Alone, Group, Word
from distbelief.replica.reporter import Progress, Reporter
from distbelief.replica.stagefeed import Source
from distbelief.replica.step import StepOf
from distbelief.replication import ReplicaConfig
from distbelief.server.rules import step_along
from distbelief.types import ItemOutcome, Refusal, Version

MOST_CULPRITS = 32
"""So many examples of an item whose gradient is not finite are named."""


class Downpour:
    """One replica's loop.

    At a step's edge, in this order: parameters that have come in take the place of the old ones; a
    plain SGD step is taken along the gradient just computed, at the item's rate; and if the item is
    complete its gradient is handed to the exchange, while the next step computes. One exchange is
    in flight at most: a replica whose shard is away computes one item more and then waits.

    Without overlap each exchange is waited for, so that the next step rests on its result.

    A replica of several stages runs one loop in each, on that stage's part of the vectors. They go
    in step: the first tells the others of each item and batch, and at an item's edge all tell each
    other how long their part of the gradient is and what became of the push before, so that all
    decide alike.
    """

    def __init__(
        self,
        *,
        replica: int,
        flat: FlatModel,
        layout: Layout,
        step: StepOf,
        exchange: Exchange,
        feed: Source,
        progress: Progress,
        config: ReplicaConfig,
        seed: int,
        max_norm: float | None,
        clip_norm: float | None = None,
        name_of: Callable[[int], str] = str,
        group: Group | None = None,
        injector: Injector = NONE,
    ) -> None:
        self._injector = injector
        self._replica = replica
        self._flat = flat
        self._segments = layout.segments(0, layout.size)
        self._step = step
        self._exchange = exchange
        self._feed = feed
        self._progress = progress
        self._config = config
        self._seed = seed
        self._max_norm = max_norm
        self._clip_norm = clip_norm
        self._name_of = name_of
        self._group: Group = group or Alone()
        self._versions: tuple[Version, ...] = ()
        self._pending: Pending | None = None
        self._outcome: ItemOutcome | None = None
        self._refused = ""
        self._since_fetch = 0
        # With n_push = 1 the step's gradient is the push; else pushes add up beside it.
        self._accrued = torch.zeros_like(flat.gradient) if config.n_push > 1 else None

    def run(self, reporter: Reporter | None) -> None:
        """Computes and pushes items until there are no more; raises what ended it otherwise.

        ``reporter`` is the first stage's.
        """
        self._start(None, None, fetch=True)
        self._collect()
        began = time.monotonic()
        while (work := self._next()) is not None:
            self._do(work)
            now = time.monotonic()
            self._progress.note_pace(now - began)
            began = now
            if reporter is not None:
                reporter.item_done()
        self._settle()
        if reporter is not None:
            reporter.check()

    def _next(self) -> Work | None:
        if self._feed.ready:
            return self._feed.next()
        # Nothing to compute behind which the last push could be hidden; its outcome may matter.
        self._settle()
        work = self._feed.next()
        if work is not None:
            # The others may have gone far meanwhile.
            self._start(None, None, fetch=True)
            self._collect()
        return work

    def _do(self, work: Work) -> None:
        self._injector.at("before_compute")
        base = self._versions
        examples = 0
        skipped: list[int] = []
        losses: list[Mapping[str, torch.Tensor]] = []
        indices: list[NDArray[np.int64]] = []
        for number, future in enumerate(work.batches):
            began = time.monotonic()
            batch = future.result()
            self._progress.note_wait(time.monotonic() - began)
            examples += len(batch.labels)
            skipped += batch.skipped
            indices.append(batch.indices)
            seed_dropout(self._step.model, self._seed, work.item.number, number)
            losses.append(self._step(batch.images, batch.labels))
            self._since_fetch += 1
            if number < len(work.batches) - 1:
                self._edge_within(work)
        self._edge_after(work, base, examples, tuple(skipped), losses, indices)

    @property
    def _fetch_due(self) -> bool:
        return self._since_fetch >= self._config.n_fetch

    def _edge_within(self, work: Work) -> None:
        """The edge of a step that does not complete its item."""
        # Whether a fetch is begun must not depend on how fast this stage's shards are.
        self._collect(wait=self._fetch_due and self._group.n_stages > 1)
        self._accrue_and_step(work)
        if self._fetch_due and self._pending is None:
            self._start(None, None, fetch=True)
            if not self._config.overlap:
                self._collect()

    def _edge_after(
        self,
        work: Work,
        base: tuple[Version, ...],
        examples: int,
        skipped: tuple[int, ...],
        losses: list[Mapping[str, torch.Tensor]],
        indices: list[NDArray[np.int64]],
    ) -> None:
        """The edge of the step that completes an item."""
        self._collect()
        norm, means = self._agree(losses)
        refusal = self._refusal(norm)
        outcome = ItemOutcome(
            item=work.item.number,
            examples=examples,
            losses=means,
            refusal=refusal,
            pushed=not refusal,
            unreadable=tuple(self._name_of(index) for index in skipped),
        )
        if refusal:
            self._flat.take_gradient()
            if self._accrued is not None:
                self._accrued.zero_()
            # The local parameters may have taken steps along what was refused.
            self._start(None, None, fetch=True)
            self._collect()
            self._note(replace(outcome, culprits=self._culprits(refusal, indices)))
            return
        if self._clip_norm is not None and norm > self._clip_norm:
            self._scale_push(self._clip_norm / norm)
        replaced_at_once = self._fetch_due and not self._config.overlap
        self._accrue_and_step(work, step=not replaced_at_once)
        self._injector.at("before_push")
        gradient = Gradient(work.item, self._take_push(), base, examples, skipped)
        self._start(gradient, outcome, fetch=self._fetch_due)
        if not self._config.overlap:
            self._settle()

    def _culprits(self, refusal: str, indices: list[NDArray[np.int64]]) -> tuple[str, ...]:
        """Names of an item's examples, if it is they that made the gradient not finite."""
        if refusal != Refusal.NOT_FINITE:
            return ()
        # Parameters that are not finite remain so: if the newest are, the item's were.
        finite = bool(torch.isfinite(self._flat.parameters).all())
        if not all(word["finite"] for word in self._group.gather({"finite": finite})):
            return ()
        examples = [int(index) for of_step in indices for index in of_step]
        return tuple(self._name_of(index) for index in examples[:MOST_CULPRITS])

    def _agree(self, losses: list[Mapping[str, torch.Tensor]]) -> tuple[float, dict[str, float]]:
        """The norm of the whole push, and the item's losses, which the last stage knows."""
        word = {"norm": self._push_norm(), "refused": self._refused, "losses": _mean(losses)}
        words = self._group.gather(word)
        self._note_last(words)
        means = {name: mean for word in words for name, mean in word["losses"].items()}
        return math.hypot(*(word["norm"] for word in words)), means

    def _settle(self) -> None:
        """Waits for the exchange in flight, and lets all stages know what became of it."""
        self._collect()
        if self._outcome is not None:
            self._note_last(self._group.gather({"refused": self._refused}))

    def _note_last(self, words: Sequence[Word]) -> None:
        """Takes note of what became of the last push, on whichever shard of whichever stage."""
        refusal = next((word["refused"] for word in words if word["refused"]), "")
        if refusal:
            self._since_fetch = self._config.n_fetch  # too old, perhaps: newer ones are due
        if self._outcome is not None:
            self._injector.at("after_push")
            self._note(replace(self._outcome, refusal=refusal))
        self._outcome, self._refused = None, ""

    def _note(self, outcome: ItemOutcome) -> None:
        if self._group.stage == 0:  # whose reporter takes it away again
            self._progress.add(outcome)

    def _push_norm(self) -> float:
        gradient = self._flat.gradient
        if self._accrued is not None:
            gradient = gradient + self._accrued
        return float(torch.linalg.vector_norm(gradient))

    def _scale_push(self, factor: float) -> None:
        self._flat.gradient.mul_(factor)
        if self._accrued is not None:
            self._accrued.mul_(factor)

    def _refusal(self, norm: float) -> str:
        """Refuses a gradient before its first byte leaves, so that no shard applies a part."""
        if not norm < float("inf"):
            return Refusal.NOT_FINITE
        return Refusal.NORM if self._max_norm is not None and norm > self._max_norm else ""

    def _accrue_and_step(self, work: Work, *, step: bool = True) -> None:
        if step:
            rate = work.item.rate
            step_along(self._flat.parameters, self._flat.gradient, self._segments, rate)
        if self._accrued is not None:
            self._accrued.add_(self._flat.gradient)
            self._flat.gradient.zero_()

    def _take_push(self) -> torch.Tensor:
        if self._accrued is not None:
            self._flat.gradient.copy_(self._accrued)
            self._accrued.zero_()
        return self._flat.take_gradient()

    def _start(
        self, gradient: Gradient | None, outcome: ItemOutcome | None, *, fetch: bool
    ) -> None:
        into = self._flat.incoming if fetch else None
        self._pending = self._exchange.start(gradient, into)
        if outcome is not None:
            self._outcome = outcome
        if fetch:
            self._since_fetch = 0

    def _collect(self, *, wait: bool = True) -> Exchanged | None:
        """Takes the result of the exchange in flight, if there is one and it may be waited for."""
        if self._pending is None or not (wait or self._pending.done()):
            return None
        pending, self._pending = self._pending, None
        result = pending.result()
        self._refused = self._refused or result.refusal
        if result.versions is not None:
            self._versions = result.versions
            self._flat.swap_in()
            self._progress.note_fetch()
        return result


def _mean(losses: list[Mapping[str, torch.Tensor]]) -> dict[str, float]:
    """The mean of each loss over the steps that have any."""
    names = dict.fromkeys(name for step in losses for name in step)
    return {
        name: float(torch.stack([step[name] for step in losses if name in step]).mean())
        for name in names
    }
