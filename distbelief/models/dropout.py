"""Dropout whose masks depend on what an item covers, not on who computes it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


class SeededDropout(nn.Module):
    """``nn.Dropout`` with a generator of its own.

    Torch's dropout draws from the process's one generator, so that replicas which are threads of
    one process would draw from each other's. This one is seeded before each step by
    :func:`seed_dropout`; until then it follows its generator's default seed.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p
        self._generator: torch.Generator | None = None
        self._seed = 0

    def seed(self, seed: int) -> None:
        """The next masks follow from ``seed``."""
        self._seed = seed
        if self._generator is not None:
            self._generator.manual_seed(seed)

    def forward(self, input: Tensor) -> Tensor:
        """In training, zeroes each element with probability p and scales the others by 1/(1-p)."""
        if not self.training or self.p == 0.0:
            return input
        if self._generator is None or self._generator.device != input.device:
            self._generator = torch.Generator(input.device).manual_seed(self._seed)
        if self.p == 1.0:
            return input * 0.0
        keep = torch.empty_like(input).bernoulli_(1.0 - self.p, generator=self._generator)
        return input * keep.div_(1.0 - self.p)

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
