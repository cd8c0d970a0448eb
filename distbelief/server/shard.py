"""The parameter shard: one range of the flat vector, changed by one thread alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from distbelief.config import AveragingConfig, OptimizerConfig
from distbelief.errors import ShardRefusedError
from distbelief.layout import Segment
from distbelief.server.admission import (
    AdmissionRules,
    Verdict,
    check_content,
    check_version,
    staleness,
)
from distbelief.server.applied import ItemSet
from distbelief.server.averaging import PolyakAverage
from distbelief.server.pushlog import LogEntry, LogHeader, PushLog
from distbelief.server.rules import make_rule
from distbelief.server.writer import Writer
from distbelief.types import Push, PushReply, PushStatus, Refusal, ShardState, Version, Weights

STALENESS_SMOOTHING = 0.02
"""Weight of each push in the staleness that the next ones are expected to have."""


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
        n_replicas: The queue has room for a push and a fetch of each.
        optimizer: The update rule.
        averaging: The Polyak average.
        log_folder: Where the push log goes.
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
    n_replicas: int
    optimizer: OptimizerConfig
    averaging: AveragingConfig
    log_folder: Path

    @property
    def size(self) -> int:
        """Elements of the shard."""
        return self.end - self.begin


class Shard:
    """A parameter shard; satisfies :class:`~distbelief.types.ShardService`.

    Every call is a task of the one :class:`Writer`, whose thread alone touches the state. A fetch
    is such a task: it copies the vector into the caller's buffer between two updates, so that it is
    of one clock, sees every push before it, and costs one copy. A call for which the queue has no
    room raises TransportError, to be tried again; one to a shard that has failed or ended,
    ProcessLostError. Use it as a context manager; all methods are thread-safe.
    """

    def __init__(self, spec: ShardSpec, *, busy_after_s: float = 30.0) -> None:
        self.spec = spec
        self._writer = Writer(spec.index, 2 * spec.n_replicas + 8, busy_after_s)
        self._admission = AdmissionRules(
            layout=spec.layout,
            incarnation=spec.incarnation,
            begin=spec.begin,
            end=spec.end,
            max_norm=spec.optimizer.max_norm,
            max_staleness=spec.optimizer.max_staleness,
        )
        self._parameters = torch.zeros(spec.size)
        self._rule = make_rule(spec.optimizer, spec.size, spec.segments)
        self._average = PolyakAverage(
            spec.averaging,
            spec.size,
            examples_per_item=spec.examples_per_item,
            total_examples=spec.total_examples,
        )
        self._loaded = False
        self._clock = 0
        self._examples = 0
        self._skipped = 0
        self._rate = 0.0
        self._expected_staleness = 0.0
        self._applied = ItemSet()
        self._set_aside: dict[int, str] = {}
        self._repeated = 0
        self._refused: Counter[str] = Counter()
        self._staleness: Counter[int] = Counter()
        self._open = False

    def __enter__(self) -> Shard:
        spec = self.spec
        self._log = PushLog(  # only now, since it makes a file
            spec.log_folder,
            LogHeader(
                shard=spec.index,
                n_shards=spec.n_shards,
                begin=spec.begin,
                end=spec.end,
                incarnation=spec.incarnation,
            ),
        )
        self._writer.start()
        self._open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finishes the tasks at hand and closes the log; later calls raise ProcessLostError."""
        if not self._open:
            return
        self._open = False
        self._writer.close()
        try:
            self._log.close()
        except OSError:
            if self._writer.failure is None:  # else this is what the shard was lost for
                raise

    @property
    def failure(self) -> str | None:
        """Why the shard was lost, if it was."""
        return self._writer.failure

    @property
    def version(self) -> Version:
        """The present version; a moment later it may be another."""
        return Version(self.spec.incarnation, self._clock)

    def load(self, values: torch.Tensor) -> None:
        """See :class:`~distbelief.types.ShardService`."""
        self._writer.ask(lambda: self._load(values))

    def fetch(
        self,
        out: torch.Tensor,
        *,
        begin: int,
        weights: Weights = Weights.LATEST,
        unless: Version | None = None,
    ) -> Version:
        """See :class:`~distbelief.types.ParameterService`."""
        return self._writer.ask(lambda: self._fetch(out, begin, weights, unless))

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        """See :class:`~distbelief.types.ParameterService`."""
        verdict = check_content(push, self._admission)
        return self._writer.ask(lambda: self._push(push, fetch_into, verdict))

    def set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """See :class:`~distbelief.types.ShardService`."""

        def mark() -> None:
            for item in items:
                if item not in self._applied and item not in self._set_aside:
                    self._set_aside[item] = reason
                    self._log.set_aside(item, reason)

        self._writer.ask(mark)

    def state(self) -> ShardState:
        """See :class:`~distbelief.types.ShardService`; also hands the push log to the system."""
        return self._writer.ask(self._state)

    def _require_loaded(self) -> None:
        if not self._loaded:
            raise ShardRefusedError(
                self.spec.index, Refusal.NOT_LOADED, "it has no initial values yet"
            )

    def _load(self, values: torch.Tensor) -> None:
        if values.numel() != self.spec.size:
            raise ShardRefusedError(
                self.spec.index,
                Refusal.SIZE,
                f"{values.numel()} values for {self.spec.size} parameters",
            )
        if self._clock:
            raise ShardRefusedError(
                self.spec.index, "too_late", f"it has applied {self._clock} pushes already"
            )
        self._parameters.copy_(values)
        self._loaded = True

    def _fetch(
        self, out: torch.Tensor, begin: int, weights: Weights, unless: Version | None
    ) -> Version:
        self._require_loaded()
        end = begin + out.numel()
        if begin < self.spec.begin or end > self.spec.end:
            raise ShardRefusedError(
                self.spec.index,
                Refusal.SIZE,
                f"[{begin}, {end}) of a shard that has [{self.spec.begin}, {self.spec.end})",
            )
        if unless != self.version:
            averaged = weights is Weights.AVERAGED
            source = self._average.read(self._parameters) if averaged else self._parameters
            first = begin - self.spec.begin
            out.copy_(source[first : end - self.spec.begin])
            if weights is Weights.PREDICTED:
                self._rule.predict(out, first, self._rate, self._expected_staleness)
        return self.version

    def _push(
        self, push: Push, fetch_into: torch.Tensor | None, verdict: Verdict | None
    ) -> PushReply:
        self._require_loaded()
        if push.item in self._applied:
            self._repeated += 1
            status, stale = PushStatus.ALREADY_APPLIED, None
        elif push.item in self._set_aside:
            status, stale = PushStatus.SET_ASIDE, None
        else:
            verdict = verdict or check_version(push.base, self.version, self._admission)
            if verdict is not None:
                self._refused[verdict.reason] += 1
                return PushReply(
                    status=PushStatus.REFUSED,
                    version=self.version,
                    refusal=verdict.reason,
                    detail=verdict.detail,
                )
            status, stale = PushStatus.APPLIED, staleness(push.base, self.version)
            self._apply(push, stale)
        fetched = None
        if fetch_into is not None:
            predicted = self.spec.optimizer.predict_weights
            weights = Weights.PREDICTED if predicted else Weights.LATEST
            fetched = self._fetch(fetch_into, push.begin, weights, None)
        return PushReply(status=status, version=self.version, staleness=stale, fetched=fetched)

    def _apply(self, push: Push, stale: int | None) -> None:
        self._rule.apply(self._parameters, push.gradient, push.rate)
        self._clock += 1
        self._examples += push.examples
        self._skipped += len(push.skipped)
        self._applied.add(push.item)
        self._rate = push.rate
        if stale is not None:
            self._staleness[stale] += 1
            self._expected_staleness += STALENESS_SMOOTHING * (stale - self._expected_staleness)
        self._average.update(self._parameters, self._examples)
        self._log.append(
            LogEntry(
                item=push.item,
                clock=self._clock,
                base=(push.base.incarnation, push.base.clock),
                rate=push.rate,
                replica=push.replica,
                examples=push.examples,
                skipped=push.skipped,
            )
        )

    def _state(self) -> ShardState:
        self._log.flush()
        return ShardState(
            shard=self.spec.index,
            incarnation=self.spec.incarnation,
            begin=self.spec.begin,
            end=self.spec.end,
            loaded=self._loaded,
            clock=self._clock,
            examples=self._examples,
            skipped=self._skipped,
            applied=self._applied.intervals,
            set_aside=dict(self._set_aside),
            repeated=self._repeated,
            refused=dict(self._refused),
            staleness=dict(self._staleness),
        )
