"""Dropout whose masks depend on what an item covers, not on who computes it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SeededDropout(nn.Module):
    """``nn.Dropout`` with a generator of its own.

    Torch's dropout draws from the process's one generator, so that replicas which are threads of
    one process would draw from each other's. This one is seeded before each step by
    :func:`seed_dropout`; until then it follows its generator's default seed.

    A batch that is computed in parts has the masks that it would have as a whole: they are drawn
    for all of its rows at once, and :func:`take_rows` says which of them come next.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p
        self._generator: torch.Generator | None = None
        self._seed = 0
        self._rows: tuple[int, int] | None = None
        self._calls = 0
        self._masks: list[Tensor] = []

    def seed(self, seed: int) -> None:
        """The next masks follow from ``seed``."""
        self._seed = seed
        self._rows = None
        self._calls = 0
        self._masks = []
        if self._generator is not None:
            self._generator.manual_seed(seed)

    def take_rows(self, begin: int, total: int) -> None:
        """The next pass is of rows ``begin`` and on, of a batch of ``total``."""
        self._rows = (begin, total)
        self._calls = 0

    def forward(self, input: Tensor) -> Tensor:
        """In training, zeroes each element with probability p and scales the others by 1/(1-p)."""
        if not self.training or self.p == 0.0:
            return input
        if self._generator is None or self._generator.device != input.device:
            self._generator = torch.Generator(input.device).manual_seed(self._seed)
        if self.p == 1.0:
            return input * 0.0
        if self._rows is None or not input.dim():
            return input * self._draw(input, input.shape)
        begin, total = self._rows
        if self._calls == len(self._masks):
            self._masks.append(self._draw(input, (total, *input.shape[1:])))
        mask = self._masks[self._calls][begin : begin + len(input)]
        self._calls += 1
        return input * mask

    def _draw(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        keep = torch.empty(shape, dtype=like.dtype, device=like.device)
        return keep.bernoulli_(1.0 - self.p, generator=self._generator).div_(1.0 - self.p)

    def extra_repr(self) -> str:
        """For printing."""
        return f"p={self.p}"


def use_seeded_dropout(model: nn.Module) -> None:
    """Replaces every ``nn.Dropout`` within ``model``; other kinds of dropout stay as they are."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):  # named_children leaves repeats out
            if type(child) is nn.Dropout:
                setattr(module, name, SeededDropout(child.p).train(child.training))


def seed_dropout(model: nn.Module, seed: int, item: int, step: int) -> None:
    """Makes the masks of the next forward pass those of one step of one item, a layer at a time."""
    for name, module in model.named_modules():
        if isinstance(module, SeededDropout):
            digest = hashlib.blake2b(f"{seed}/{item}/{step}/{name}".encode(), digest_size=8)
            module.seed(int.from_bytes(digest.digest(), "little") >> 1)


def take_rows(model: nn.Module, begin: int, total: int) -> None:
    """Tells every dropout layer that the next pass is of a part of a batch."""
    for module in model.modules():
        if isinstance(module, SeededDropout):
            module.take_rows(begin, total)
