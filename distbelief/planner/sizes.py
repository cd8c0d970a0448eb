"""What each block of a network weighs, without computing anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from distbelief.models.blocks import Blocks
from distbelief.models.stages import HOST, autocast, foreseen
from distbelief.planner.costs import BlockSize
from distbelief.planner.example import Example


def sizes(blocks: Blocks, example: Example) -> tuple[BlockSize, ...]:
    """What each block weighs, of one micro-batch.

    Tensors without values pass through the network once, which is left as it was.

    Args:
        blocks: The network's blocks, in training mode, on the host.
        example: A micro-batch, and the arithmetic.
    """
    parameters = dict(blocks.model.named_parameters())
    found: list[BlockSize] = []
    kept = _Kept()
    with foreseen(blocks.model) as mode:
        for own in (*blocks.model.parameters(), *blocks.model.buffers()):
            kept.ignore(mode.from_tensor(own))
        values: Sequence[Tensor] = [mode.from_tensor(example.batch(HOST, without_values=True))]
        for index, name in enumerate(blocks.names):
            kept.begin(values[0])
            with (
                torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor),
                autocast(HOST, example.precision),
            ):
                outputs = blocks.stage(index, index + 1)(*values)
            values = [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor)]
            owned = [parameters[name] for name in blocks.parameters(index, index + 1)]
            last = index == len(blocks) - 1
            found.append(
                BlockSize(
                    name=name,
                    n_parameters=sum(p.numel() for p in owned if p.requires_grad),
                    handed_on=0 if last else sum(_nbytes(x) for x in values),
                    kept=kept.nbytes,
                    kept_if_first=kept.nbytes_if_first,
                )
            )
    return tuple(found)


@dataclass
class _Kept:
    """What the graph keeps: storages, each by its bytes, of the first block that keeps it.

    Tensors that have values do not count: they are parameters and buffers.
    """

    nbytes: int = 0
    nbytes_if_first: int = 0
    _input: int = 0
    # The storages themselves are held, so that none is taken for another that is gone.
    _known: dict[int, Any] = field(default_factory=dict)

    def ignore(self, tensor: Tensor) -> None:
        """Its storage does not count."""
        self._known[_identity(tensor)] = tensor.untyped_storage()

    def begin(self, taken: Tensor) -> None:
        """The next block takes this activation."""
        self.nbytes = 0
        self.nbytes_if_first = 0
        self._input = _identity(taken)

    def keep(self, tensor: Tensor) -> Tensor:
        """A hook for saved tensors."""
        if isinstance(tensor, FakeTensor):
            key = _identity(tensor)
            storage = tensor.untyped_storage()
            if key not in self._known:
                self._known[key] = storage
                self.nbytes += storage.nbytes()
            elif key == self._input and not self.nbytes_if_first:
                self.nbytes_if_first = storage.nbytes()
        return tensor


def _identity(tensor: Tensor) -> int:
    identity: int = tensor.untyped_storage()._cdata
    return identity


def _nbytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize
