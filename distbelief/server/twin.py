"""A twin's side of replication: it does what its primary does, until it takes its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from distbelief.errors import ShardRefusedError, TransportError
from distbelief.server.contents import Contents
from distbelief.server.mirror import FOLLOWS_NO_MORE, PROMOTED
from distbelief.server.pushes import Pushes
from distbelief.server.spec import ShardSpec
from distbelief.types import Push, Version

Source = tuple[int, int, int, int]
"""Shard, number of shards, incarnation and clock of a state that a log begins with."""


class Following:
    """What a shard does as another one's twin. For its writer alone, unless it says more.

    Args:
        spec: The shard.
        contents: What it holds.
        pushes: Applies them.
        begin_log: Begins the push log, in the place of one that there may be.
    """

    def __init__(
        self,
        spec: ShardSpec,
        contents: Contents,
        pushes: Pushes,
        begin_log: Callable[[tuple[Source, ...]], None],
    ) -> None:
        self._spec = spec
        self._contents = contents
        self._pushes = pushes
        self._begin_log = begin_log
        self._active = spec.twin
        self._primary = 0
        self._gradient: torch.Tensor | None = None

    @property
    def active(self) -> bool:
        """Whether it serves nobody yet; once it does, it always will. For any thread."""
        return self._active

    @property
    def primary(self) -> int:
        """Incarnation of the shard that it follows; 0 if it does not."""
        return self._primary

    def require_serving(self) -> None:
        """Raises TransportError while it is a twin, which may serve later. For any thread."""
        if self._active:
            raise TransportError(
                self._spec.index, "TWIN", "it follows another shard and does not serve yet"
            )

    def check_source(self, source: Version) -> None:
        """Refuses a shard's own state, for which its writer would wait for ever; for any thread."""
        if source.incarnation == self._spec.incarnation:
            raise self._refused(FOLLOWS_NO_MORE, "it cannot follow itself")

    def adopt(self, state: bytes | bytearray, source: Version) -> int:
        """See :class:`~distbelief.services.TwinService`."""
        spec, account = self._spec, self._contents.account
        self._require_following()
        if source < Version(self._primary, account.clock):
            have = f"({self._primary}, {account.clock})"
            raise self._refused(
                FOLLOWS_NO_MORE,
                f"it has the state of version {have}, newer than ({source.incarnation}, "
                f"{source.clock})",
            )
        self._contents.adopt(state, source.clock)
        self._primary = source.incarnation
        self._begin_log(((spec.index, spec.n_shards, source.incarnation, source.clock),))
        return spec.incarnation

    def mirror(self, push: Push, clock: int, staleness: int | None) -> None:
        """See :class:`~distbelief.services.TwinService`; works on a copy of the gradient."""
        self._require_following()
        spec, account = self._spec, self._contents.account
        if push.incarnation != self._primary:
            detail = f"a push of incarnation {push.incarnation}, it follows {self._primary}"
            raise self._refused(FOLLOWS_NO_MORE, detail)
        if push.item in account.applied and clock <= account.clock:
            return
        if clock != account.clock + 1 or push.item in account:
            detail = f"item {push.item} at clock {clock} does not follow clock {account.clock}"
            raise self._refused(FOLLOWS_NO_MORE, detail)
        if (push.begin, push.gradient.numel()) != (spec.begin, spec.size):
            detail = f"{push.gradient.numel()} elements from {push.begin} on are not its range"
            raise self._refused(FOLLOWS_NO_MORE, detail)
        if push.layout != spec.layout:
            detail = f"layout {push.layout}, this shard has {spec.layout}"
            raise self._refused(FOLLOWS_NO_MORE, detail)
        if self._gradient is None:
            self._gradient = torch.empty(spec.size)
        self._gradient.copy_(push.gradient)
        self._pushes.follow(replace(push, gradient=self._gradient), staleness)

    def mirror_set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """See :class:`~distbelief.services.TwinService`."""
        self._require_following()
        if not self._primary:
            raise self._refused(FOLLOWS_NO_MORE, "it has been given no state yet")
        self._pushes.set_aside(items, reason)

    def promote(self) -> None:
        """It serves from now on."""
        self._contents.require_loaded()
        self._active, self._primary, self._gradient = False, 0, None

    def _require_following(self) -> None:
        if not self._active:
            raise self._refused(PROMOTED, f"it serves as incarnation {self._spec.incarnation}")

    def _refused(self, reason: str, detail: str) -> ShardRefusedError:
        return ShardRefusedError(self._spec.index, reason, detail)
