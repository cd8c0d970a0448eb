"""Polyak averaging (Polyak and Juditsky 1992) by a shard's own count of examples.

    uniform       a <- a + (p - a) w / W       w: examples since the last update, W: of the tail
    exponential   a <- a + (p - a) (1 - d**k)  k: examples since the last update, in whole items

The exponential average's decay d is the smaller of the configured one and (1 + n) / (10 + n)
after n items, so that a short run is not held to its initial values.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from distbelief.config import AveragingConfig


class PolyakAverage:
    """The running average of one shard's parameters. One writer; not thread-safe."""

    def __init__(
        self, config: AveragingConfig, n: int, *, examples_per_item: int, total_examples: int
    ) -> None:
        self._kind = config.average
        self._decay = config.average_decay
        self._every = config.average_every
        self._examples_per_item = examples_per_item
        self._tail_begin = round((1.0 - config.average_tail) * total_examples)
        self._pending_pushes = 0
        self._examples_at_update = 0
        self._weight = 0
        self._values = torch.zeros(n if config.average != "none" else 0)

    @property
    def started(self) -> bool:
        """Whether there is an average yet; until then the parameters stand for it."""
        return self._weight > 0

    def update(self, parameters: torch.Tensor, examples: int) -> None:
        """Takes note of one applied push; every so many of them the average moves.

        Args:
            parameters: ``(n,) float32`` after the push.
            examples: Examples that the shard has applied in all.
        """
        if self._kind == "none":
            return
        self._pending_pushes += 1
        if self._pending_pushes < self._every:
            return
        if self._kind == "exponential":
            n_items = examples / self._examples_per_item
            since = (examples - self._examples_at_update) / self._examples_per_item
            decay = min(self._decay, (1 + n_items) / (10 + n_items))
            self._move(parameters, 1.0 - decay**since)
            self._weight += 1
        elif examples > self._tail_begin:
            weight = examples - max(self._examples_at_update, self._tail_begin)
            self._weight += weight
            self._move(parameters, weight / self._weight)
        self._examples_at_update = examples
        self._pending_pushes = 0

    def to_dict(self) -> dict[str, int]:
        """The counts, for a snapshot; the average itself is what :meth:`read` returns."""
        return {
            "pending_pushes": self._pending_pushes,
            "examples_at_update": self._examples_at_update,
            "weight": self._weight,
        }

    def restore(self, counts: Mapping[str, int], values: torch.Tensor | None) -> None:
        """Goes on from a snapshot; ``values``, ``(n,) float32``, is None without an average."""
        self._pending_pushes = int(counts["pending_pushes"])
        self._examples_at_update = int(counts["examples_at_update"])
        self._weight = 0
        if values is not None and self._kind != "none":
            self._weight = max(1, int(counts["weight"]))
            self._values.copy_(values)

    def read(self, parameters: torch.Tensor) -> torch.Tensor:
        """The average, or ``parameters`` where there is none; not to be written to."""
        return self._values if self.started else parameters

    def _move(self, parameters: torch.Tensor, share: float) -> None:
        if self.started:
            self._values.lerp_(parameters, share)
        else:
            self._values.copy_(parameters)
