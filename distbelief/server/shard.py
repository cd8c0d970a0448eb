"""The parameter shard: one range of the flat vector, changed by one thread alone."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import torch

from distbelief.errors import ProcessLostError, ShardRefusedError
from distbelief.faults.points import Injector
from distbelief.server import saving
from distbelief.server.contents import Contents
from distbelief.server.mirror import Connect, Mirror
from distbelief.server.pause import Capture, Gate, Pause
from distbelief.server.pushes import Pushes
from distbelief.server.pushlog import LogHeader, PushLog
from distbelief.server.spec import ShardSpec
from distbelief.server.twin import Following, Source
from distbelief.server.writer import Writer
from distbelief.types import (
    Intervals,
    Push,
    PushReply,
    ShardFile,
    ShardState,
    Version,
    Weights,
)

T = TypeVar("T")


class Shard:
    """A parameter shard: a :class:`~distbelief.services.ShardService` and a ``TwinService``.

    Every call is a task of the one :class:`Writer`, whose thread alone touches the state. A fetch
    is such a task: it copies the vector into the caller's buffer between two updates, so that it is
    of one clock, sees every push before it, and costs one copy. A call for which the queue has no
    room raises TransportError, to be tried again; one to a shard that has failed or ended,
    ProcessLostError. Use it as a context manager; all methods are thread-safe.

    A twin (``spec.twin``) does what another shard of its range does, and answers whoever else asks
    anything but :meth:`state` with TransportError until :meth:`promote`. Its push log begins with
    the state that it is given. A shard that feeds a twin acknowledges nothing that the twin does
    not have; its writer waits for it, which :meth:`release_twin`, :meth:`close` and :meth:`abandon`
    end at once, the last two with what was under way unacknowledged.

    Args:
        spec: All that it must know.
        busy_after_s: How long a call waits for room in the queue.
        connect: The way to twins; without it the shard can have none.
        injector: Fails where tests want it to; by default as the spec says.
    """

    def __init__(
        self,
        spec: ShardSpec,
        *,
        busy_after_s: float = 30.0,
        connect: Connect | None = None,
        injector: Injector | None = None,
    ) -> None:
        self.spec = spec
        if injector is None:
            injector = Injector(spec.faults, f"shard {spec.index}", spec.incarnation)
        self._injector = injector
        self._contents = Contents(spec)
        self._gate = Gate(self._capture)
        room = 2 * spec.n_ports + 8
        self._writer = Writer(spec.index, room, busy_after_s, on_end=self.abandon)
        self._mirror = Mirror(spec.index, connect)
        self._pushes = Pushes(
            spec, self._contents, self._gate, self._writer, self._mirror, self._injector
        )
        self._following = Following(spec, self._contents, self._pushes, self._begin_log)
        self._open = False

    def __enter__(self) -> Shard:
        spec = self.spec
        if not spec.twin:
            if spec.restore is not None:
                self._contents.restore(spec.restore)
            self._begin_log(() if spec.restore is None else spec.restore.sources)
        self._writer.start()
        self._pushes.start()
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
        self._mirror.end()
        self._writer.close()
        try:
            if self._log is not None:
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
        return self._contents.version

    def load(self, values: torch.Tensor) -> None:
        """See :class:`~distbelief.services.ShardService`."""
        self._ask(lambda: self._contents.load(values))

    def fetch(
        self,
        out: torch.Tensor,
        *,
        begin: int,
        weights: Weights = Weights.LATEST,
        unless: Version | None = None,
    ) -> Version:
        """See :class:`~distbelief.services.ParameterService`."""
        return self._ask(lambda: self._contents.fetch(out, begin, weights, unless))

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        """See :class:`~distbelief.services.ParameterService`."""
        self._require_serving()
        return self._pushes.push(push, fetch_into)

    def set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """See :class:`~distbelief.services.ShardService`."""
        self._ask(lambda: self._pushes.set_aside(items, reason))

    def state(self) -> ShardState:
        """See :class:`~distbelief.services.ShardService`; also hands the push log to the system."""
        return self._writer.ask(self._state)

    def pause(self, seconds: float) -> ShardState:
        """See :class:`~distbelief.services.ShardService`."""

        def begin() -> ShardState:
            self._gate.begin(Pause(seconds))
            return self._state()

        return self._ask(begin)

    def save(self, snapshot: int, items: Intervals, seconds: float) -> ShardFile:
        """See :class:`~distbelief.services.ShardService`."""

        def admit() -> Pause:
            self._contents.require_loaded()
            try:
                pause = Pause(seconds, frozenset(self._contents.account.missing(items)))
            except OverflowError as error:
                raise ShardRefusedError(self.spec.index, "cannot_save", str(error)) from error
            self._gate.begin(pause)
            if not pause.missing:
                self._gate.finish(pause)
            return pause

        def finish() -> tuple[PushLog, Capture]:
            capture = self._gate.finish(pause)
            self._injector.at("before_save")
            return self._pushes.require_log(), capture

        pause = self._ask(admit)
        pause.complete.wait(seconds)
        log, capture = self._writer.ask(finish)
        return saving.write(self.spec, log, snapshot, capture)

    def feed_twin(self, address: str) -> Version:
        """See :class:`~distbelief.services.ShardService`."""

        def begin() -> Version:
            self._contents.require_loaded()
            saving.sync(self.spec, self._pushes.require_log())  # the twin's log rests on it
            source = self._contents.version
            self._mirror.begin(address, self._contents.image, source)
            return source

        return self._ask(begin)

    def release_twin(self) -> None:
        """See :class:`~distbelief.services.ShardService`."""
        self._mirror.release()

    def promote(self) -> ShardState:
        """See :class:`~distbelief.services.ShardService`."""

        def begin() -> ShardState:
            self._following.promote()
            return self._state()

        return self._writer.ask(begin)

    def adopt(self, state: bytes | bytearray, source: Version) -> int:
        """See :class:`~distbelief.services.TwinService`."""
        self._following.check_source(source)
        return self._writer.ask(lambda: self._following.adopt(state, source))

    def mirror(self, push: Push, *, clock: int, staleness: int | None) -> None:
        """See :class:`~distbelief.services.TwinService`."""
        self._writer.ask(lambda: self._following.mirror(push, clock, staleness))

    def mirror_set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """See :class:`~distbelief.services.TwinService`."""
        self._writer.ask(lambda: self._following.mirror_set_aside(items, reason))

    def abandon(self) -> None:
        """It is to end: nobody waits any longer, for a pause's end, another part or a twin."""
        self._mirror.end()
        self._gate.abandon()
        self._pushes.abandon()

    @property
    def _log(self) -> PushLog | None:
        return self._pushes.log

    def _begin_log(self, sources: tuple[Source, ...]) -> None:
        """Begins the push log; that of a state that a twin was given before goes."""
        spec, account = self.spec, self._contents.account
        if self._log is not None:
            self._log.discard()
        header = LogHeader(
            shard=spec.index,
            n_shards=spec.n_shards,
            begin=spec.begin,
            end=spec.end,
            incarnation=spec.incarnation,
            snapshot=None if spec.restore is None else spec.restore.snapshot,
            clock=account.clock,
            sources=sources,
            set_aside=tuple(sorted(account.set_aside)),
        )
        self._pushes.log = PushLog(spec.storage, header)

    def _require_serving(self) -> None:
        if self._following.active:
            self._writer.check()
            self._following.require_serving()

    def _ask(self, work: Callable[[], T]) -> T:
        """Has the writer do what only a shard that serves may do."""
        self._require_serving()
        return self._writer.ask(work)

    def _capture(self) -> Capture:
        return Capture(self._contents.image(), self._state())

    def _state(self) -> ShardState:
        if self._log is not None:
            self._log.flush()
        contents, account = self._contents, self._contents.account
        return ShardState(
            shard=self.spec.index,
            incarnation=self.spec.incarnation,
            begin=self.spec.begin,
            end=self.spec.end,
            loaded=contents.loaded,
            clock=account.clock,
            examples=account.examples,
            skipped=account.skipped,
            applied=account.applied.intervals,
            set_aside=dict(account.set_aside),
            repeated=account.repeated,
            refused=dict(account.refused),
            staleness=dict(account.staleness),
            queued=self._writer.queued,
            nbytes_received=contents.nbytes_received,
            nbytes_sent=contents.nbytes_sent,
            twin=self._mirror.twin,
            follows=self._following.primary,
            trouble="" if self._log is None else self._log.failure,
        )
