"""The parameter shard: one range of the flat vector, changed by one thread alone."""

from __future__ import annotations

from types import TracebackType

import torch

from distbelief.errors import ProcessLostError
from distbelief.server import saving
from distbelief.server.contents import Contents
from distbelief.server.pause import Capture, Gate, Pause
from distbelief.server.pushes import Pushes
from distbelief.server.pushlog import LogHeader, PushLog
from distbelief.server.spec import ShardSpec
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


class Shard:
    """A parameter shard; satisfies :class:`~distbelief.types.ShardService`.

    Every call is a task of the one :class:`Writer`, whose thread alone touches the state. A fetch
    is such a task: it copies the vector into the caller's buffer between two updates, so that it is
    of one clock, sees every push before it, and costs one copy. A call for which the queue has no
    room raises TransportError, to be tried again; one to a shard that has failed or ended,
    ProcessLostError. Use it as a context manager; all methods are thread-safe.

    Args:
        spec: All that it must know.
        busy_after_s: How long a call waits for room in the queue.
    """

    def __init__(self, spec: ShardSpec, *, busy_after_s: float = 30.0) -> None:
        self.spec = spec
        self._contents = Contents(spec)
        self._gate = Gate(self._capture)
        room = 2 * spec.n_ports + 8
        self._writer = Writer(spec.index, room, busy_after_s, on_end=self.abandon)
        self._pushes = Pushes(spec, self._contents, self._gate, self._writer)
        self._open = False

    def __enter__(self) -> Shard:
        spec = self.spec
        if spec.restore is not None:
            self._contents.restore(spec.restore)
        self._log = PushLog(  # only now, since it makes a file
            spec.storage,
            LogHeader(
                shard=spec.index,
                n_shards=spec.n_shards,
                begin=spec.begin,
                end=spec.end,
                incarnation=spec.incarnation,
                snapshot=None if spec.restore is None else spec.restore.snapshot,
                clock=self._contents.account.clock,
                sources=() if spec.restore is None else spec.restore.sources,
                set_aside=tuple(sorted(self._contents.account.set_aside)),
            ),
        )
        self._writer.start()
        self._pushes.start(self._log)
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
        return self._contents.version

    def load(self, values: torch.Tensor) -> None:
        """See :class:`~distbelief.types.ShardService`."""
        self._writer.ask(lambda: self._contents.load(values))

    def fetch(
        self,
        out: torch.Tensor,
        *,
        begin: int,
        weights: Weights = Weights.LATEST,
        unless: Version | None = None,
    ) -> Version:
        """See :class:`~distbelief.types.ParameterService`."""
        return self._writer.ask(lambda: self._contents.fetch(out, begin, weights, unless))

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        """See :class:`~distbelief.types.ParameterService`."""
        return self._pushes.push(push, fetch_into)

    def set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """See :class:`~distbelief.types.ShardService`."""
        self._writer.ask(lambda: self._pushes.set_aside(items, reason))

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
            self._contents.require_loaded()
            pause = Pause(seconds, frozenset(self._contents.account.missing(items)))
            self._gate.begin(pause)
            if not pause.missing:
                self._gate.finish(pause)
            return pause

        pause = self._writer.ask(admit)
        pause.complete.wait(seconds)
        capture = self._writer.ask(lambda: self._gate.finish(pause))
        return saving.write(self.spec, self._log, snapshot, capture)

    def abandon(self) -> None:
        """Nobody waits any longer, for a pause's end or for another part: the shard is to end."""
        self._gate.abandon()
        self._pushes.abandon()

    def _capture(self) -> Capture:
        return Capture(self._contents.image(), self._state())

    def _state(self) -> ShardState:
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
        )
