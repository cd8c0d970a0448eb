"""The parameter shard: one range of the flat vector, changed by one thread alone."""

from __future__ import annotations

from types import TracebackType

import torch

from distbelief.errors import ProcessLostError, ShardRefusedError
from distbelief.server.account import Account
from distbelief.server.admission import (
    AdmissionRules,
    Verdict,
    check_content,
    check_version,
    staleness,
)
from distbelief.server.averaging import PolyakAverage
from distbelief.server.pause import Capture, Gate, Pause
from distbelief.server.pushlog import LogEntry, LogHeader, PushLog
from distbelief.server.restore import Restore, restore
from distbelief.server.rules import make_rule
from distbelief.server.spec import ShardSpec
from distbelief.server.statefile import digest, file_name, image, snapshot_folder
from distbelief.server.writer import Writer
from distbelief.types import (
    Intervals,
    Push,
    PushReply,
    PushStatus,
    Refusal,
    ShardFile,
    ShardState,
    Version,
    Weights,
)


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
        self._account = Account()
        self._gate = Gate(self._capture)
        # Whoever waits for a pause's end must not wait for a writer that has ended.
        room = 2 * spec.n_replicas + 8
        self._writer = Writer(spec.index, room, busy_after_s, on_end=self._gate.abandon)
        self._nbytes_received = 0
        self._nbytes_sent = 0
        self._open = False

    def __enter__(self) -> Shard:
        spec = self.spec
        if spec.restore is not None:
            self._restore(spec.restore)
        self._log = PushLog(  # only now, since it makes a file
            spec.storage,
            LogHeader(
                shard=spec.index,
                n_shards=spec.n_shards,
                begin=spec.begin,
                end=spec.end,
                incarnation=spec.incarnation,
                snapshot=None if spec.restore is None else spec.restore.snapshot,
                clock=self._account.clock,
                sources=() if spec.restore is None else spec.restore.sources,
                set_aside=tuple(sorted(self._account.set_aside)),
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
        except OSError as error:
            if self._writer.failure is None:  # else this is what the shard was lost for
                cause = f"its push log cannot be written: {error.strerror or error}"
                raise ProcessLostError(f"shard {self.spec.index}", cause) from error

    @property
    def failure(self) -> str | None:
        """Why the shard was lost, if it was."""
        return self._writer.failure

    @property
    def version(self) -> Version:
        """The present version; a moment later it may be another."""
        return Version(self.spec.incarnation, self._account.clock)

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
        while True:
            outcome = self._writer.ask(lambda: self._push(push, fetch_into, verdict))
            if isinstance(outcome, PushReply):
                return outcome
            outcome.wait()

    def set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """See :class:`~distbelief.types.ShardService`."""

        def mark() -> None:
            for item in items:
                if item not in self._account:
                    self._account.set_aside[item] = reason
                    self._log.set_aside(item, reason)
                    self._gate.note(item)
            self._log.flush()

        self._writer.ask(mark)

    def state(self) -> ShardState:
        """See :class:`~distbelief.types.ShardService`; also hands the push log to the system."""
        return self._writer.ask(self._state)

    def pause(self, seconds: float) -> ShardState:
        """See :class:`~distbelief.types.ShardService`."""

        def begin() -> ShardState:
            self._gate.begin(Pause(seconds))
            return self._state()

        return self._writer.ask(begin)

    def save(self, snapshot: int, items: Intervals, seconds: float) -> ShardFile:
        """See :class:`~distbelief.types.ShardService`."""

        def admit() -> Pause:
            self._require_loaded()
            pause = Pause(seconds, frozenset(self._account.missing(items)))
            self._gate.begin(pause)
            if not pause.missing:
                self._gate.finish(pause)
            return pause

        pause = self._writer.ask(admit)
        pause.complete.wait(seconds)
        return self._write(snapshot, self._writer.ask(lambda: self._gate.finish(pause)))

    def _write(self, snapshot: int, capture: Capture) -> ShardFile:
        spec = self.spec
        name = file_name(spec.index, spec.n_shards)
        try:
            self._log.sync()
            spec.storage.write(f"{snapshot_folder(snapshot)}/{name}", capture.content)
        except OSError as error:
            detail = f"cannot write to {spec.storage.url}: {error.strerror or error}"
            raise ShardRefusedError(spec.index, "cannot_save", detail) from error
        return ShardFile(
            name=name,
            nbytes=len(capture.content),
            sha256=digest(capture.content),
            n_shards=spec.n_shards,
            state=capture.state,
            paused_s=capture.paused_s,
        )

    def _capture(self) -> Capture:
        tensors = {"parameters": self._parameters, **self._rule.slots}
        if self._average.started:
            tensors["average"] = self._average.read(self._parameters)
        about = {"account": self._account.to_dict(), "average": self._average.to_dict()}
        return Capture(image(tensors, about), self._state())

    def _restore(self, wanted: Restore) -> None:
        spec = self.spec
        found = restore(spec.storage, wanted, spec.begin, spec.end)
        self._parameters.copy_(found.tensors["parameters"])
        for name, slot in self._rule.slots.items():
            slot.copy_(found.tensors[name])
        self._average.restore(found.average, found.tensors.get("average"))
        self._account = found.account
        self._loaded = True

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
        if self._account.clock:
            raise ShardRefusedError(
                self.spec.index, "too_late", f"it has applied {self._account.clock} pushes already"
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
                account = self._account
                self._rule.predict(out, first, account.rate, account.expected_staleness)
            self._nbytes_sent += 4 * out.numel()
        return self.version

    def _push(
        self, push: Push, fetch_into: torch.Tensor | None, verdict: Verdict | None
    ) -> PushReply | Pause:
        self._require_loaded()
        account = self._account
        if push.item in account.applied:
            account.repeated += 1
            status, stale = PushStatus.ALREADY_APPLIED, None
        elif push.item in account.set_aside:
            status, stale = PushStatus.SET_ASIDE, None
        elif (pause := self._gate.held(push.item)) is not None:
            return pause
        else:
            verdict = verdict or check_version(push.base, self.version, self._admission)
            if verdict is not None:
                account.refused[verdict.reason] += 1
                self._gate.refused(push.item)
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
        self._account.add(push, stale)
        self._nbytes_received += 4 * push.gradient.numel()
        self._average.update(self._parameters, self._account.examples)
        self._log.append(
            LogEntry(
                item=push.item,
                clock=self._account.clock,
                base=(push.base.incarnation, push.base.clock),
                rate=push.rate,
                replica=push.replica,
                examples=push.examples,
                skipped=push.skipped,
            )
        )
        self._gate.note(push.item)

    def _state(self) -> ShardState:
        self._log.flush()
        account = self._account
        return ShardState(
            shard=self.spec.index,
            incarnation=self.spec.incarnation,
            begin=self.spec.begin,
            end=self.spec.end,
            loaded=self._loaded,
            clock=account.clock,
            examples=account.examples,
            skipped=account.skipped,
            applied=account.applied.intervals,
            set_aside=dict(account.set_aside),
            repeated=account.repeated,
            refused=dict(account.refused),
            staleness=dict(account.staleness),
            queued=self._writer.queued,
            nbytes_received=self._nbytes_received,
            nbytes_sent=self._nbytes_sent,
        )
