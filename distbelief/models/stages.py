"""The stages of a network: its blocks, divided, with what travels from one to the next."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree

from distbelief.errors import ConfigError
from distbelief.models.blocks import NEEDED, Blocks

HOST = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """How one replica's layers are divided; plain values, the same in all of its stages.

    Attributes:
        boundaries: The blocks with which the second and later stages begin.
        batch_size: Examples of a step.
        micro_batches: Parts of a step that flow through the stages.
        pipeline: The order in which they do.
        input_shape: Of one example, as the network takes it.
        input_dtype: Its type, a name of torch.
        precision: Arithmetic of all stages.
        channels_last: Whether activations of four dimensions lie so in memory.
    """

    boundaries: tuple[str, ...]
    batch_size: int
    micro_batches: int
    pipeline: Literal["1f1b", "gpipe"]
    input_shape: tuple[int, ...]
    input_dtype: str = "float32"
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True

    @property
    def n_stages(self) -> int:
        """Stages of the replica."""
        return len(self.boundaries) + 1

    @property
    def micro_batch_size(self) -> int:
        """Examples of a micro-batch, the largest."""
        return math.ceil(self.batch_size / self.micro_batches)

    def parts_of(self, n: int) -> list[int]:
        """Examples of each micro-batch of a batch of ``n``; see :func:`even_parts`."""
        return even_parts(n, self.micro_batch_size)

    def in_turn(self, n_micro_batches: int) -> bool:
        """Whether so many go forward and back in turn (1F1B): fewer than stages cannot."""
        return self.pipeline == "1f1b" and n_micro_batches >= self.n_stages

    def check(self, blocks: Blocks) -> None:
        """Refuses a division with a stage that has nothing to train.

        Raises:
            ConfigError: so it is, or the boundaries are not the network's.
        """
        learned = {name for name, p in blocks.model.named_parameters() if p.requires_grad}
        for index, (begin, end) in enumerate(self.cuts(blocks)):
            if learned.isdisjoint(blocks.parameters(begin, end)):
                here = f"{blocks.names[begin]} to {blocks.names[end - 1]}"
                raise ConfigError(
                    "boundaries", f"stage {index} ({here}) has nothing to train; move a boundary"
                )

    def cuts(self, blocks: Blocks) -> list[tuple[int, int]]:
        """First block of each stage, and the one behind its last.

        Raises:
            ConfigError: there is no such block, or the stages would not be in order.
        """
        begins = [0, *(blocks.index(name) for name in self.boundaries), len(blocks)]
        if any(begin >= end for begin, end in itertools.pairwise(begins)):
            raise ConfigError(
                "boundaries",
                f"{','.join(self.boundaries)}: each must come behind the one before, and none is "
                f"the first block; their order is {', '.join(blocks.names)}",
            )
        return list(itertools.pairwise(begins))


def even_parts(n: int, longest: int) -> list[int]:
    """The sizes of the parts into which a batch of ``n`` is divided: they differ by one at most.

    Rows that filled a part up would be seen by batch normalisation, and so there are none.

    Example:
        >>> even_parts(32, 8), even_parts(7, 3), even_parts(2, 4)
        ([8, 8, 8, 8], [3, 2, 2], [2])
    """
    n_parts = math.ceil(n / longest)
    return [n // n_parts + (part < n % n_parts) for part in range(n_parts)]


class Stage(nn.Module):
    """One stage, that takes and returns what travels: contiguous tensors on the host.

    Activations of four dimensions travel channels-last, if they lie so in memory: no copy is needed
    then. The first stage takes the network's input. The last one returns the tensors of what the
    network returns, wherever they are, and keeps the whole as :attr:`returned`.

    Attributes:
        graph: The blocks of the stage; parameters have their names in the network.
        owned: The network's parameters that belong to this stage, by name.
    """

    def __init__(
        self,
        blocks: Blocks,
        plan: StagePlan,
        index: int,
        device: torch.device = HOST,
        hands_on: Sequence[torch.dtype] = (),
    ) -> None:
        """Takes its blocks; ``hands_on`` has the types of what it hands on, if they are settled."""
        super().__init__()
        begin, end = plan.cuts(blocks)[index]
        self.graph: fx.GraphModule = blocks.stage(begin, end)
        named = dict(blocks.model.named_parameters())
        self.owned = {name: named[name] for name in blocks.parameters(begin, end)}
        self.is_first, self.is_last = index == 0, index == plan.n_stages - 1
        self.returned: Any = None
        self._plan = plan
        self._device = device
        self._hands_on = tuple(hands_on)

    def forward(self, *travelled: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        inputs = [x.to(self._device) for x in travelled]
        if not self.is_first:
            inputs = [_as_computed(x, self._plan.channels_last) for x in inputs]
            if self._device == HOST:
                # What arrived is a leaf of the graph, which a layer in place must not overwrite.
                inputs[0] = inputs[0].clone(memory_format=torch.preserve_format)
        with autocast(self._device, self._plan.precision):
            outputs = self.graph(*inputs)
        if self.is_last:
            self.returned = outputs
            return tuple(x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor))
        if self._hands_on:
            outputs = [x.to(kind) for x, kind in zip(outputs, self._hands_on, strict=True)]
        return tuple(_as_travels(x, self._plan.channels_last) for x in outputs)


@dataclass(frozen=True, slots=True)
class Traveller:
    """A tensor that passes from one stage to the next, of one micro-batch."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize

    def zeros(self) -> Tensor:
        """A tensor like it."""
        return torch.zeros(self.shape, dtype=self.dtype)


def autocast(
    device: torch.device, precision: Literal["fp32", "bf16"]
) -> contextlib.AbstractContextManager[object]:
    """The arithmetic of a network's forward pass."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def travellers(
    blocks: Blocks, plan: StagePlan, n_rows: int | None = None
) -> list[tuple[Traveller, ...]]:
    """What each stage takes, and at the end what the last one returns; nothing is computed.

    Args:
        blocks: The network's blocks, on the host.
        plan: Their division.
        n_rows: Examples of a micro-batch; by default the plan's.
    """
    shape, kind = (
        (n_rows or plan.micro_batch_size, *plan.input_shape),
        getattr(torch, plan.input_dtype),
    )
    found: list[tuple[Traveller, ...]] = [(Traveller(shape, kind),)]
    example = torch.empty(shape, dtype=kind)
    if plan.channels_last and example.dim() == 4:
        example = example.to(memory_format=torch.channels_last)
    with foreseen(blocks.model) as mode:
        values: Sequence[Tensor] = [mode.from_tensor(example)]
        for index in range(plan.n_stages):
            values = Stage(blocks, plan, index)(*values)
            found.append(tuple(Traveller(tuple(x.shape), x.dtype) for x in values))
    return found


@dataclass(frozen=True)
class Travels:
    """What one stage takes and hands on, of micro-batches of any size.

    It is settled on the host, before the stages are on their devices: these might choose other
    types for what they hand on.
    """

    taken: tuple[tuple[Traveller, Traveller], ...]
    handed_on: tuple[tuple[Traveller, Traveller], ...]

    @classmethod
    def of(cls, blocks: Blocks, plan: StagePlan, stage: int) -> Travels:
        """Those of one stage, from two passes that compute nothing, of two and of three rows."""
        passes = [travellers(blocks, plan, n_rows) for n_rows in (2, 3)]
        taken, handed_on = (
            tuple(zip(*(found[at] for found in passes), strict=True)) for at in (stage, stage + 1)
        )
        return cls(taken, handed_on)

    def of_rows(self, n_rows: int) -> tuple[list[Traveller], list[Traveller]]:
        """Of micro-batches of that size."""
        taken = [_of_rows(two, three, n_rows) for two, three in self.taken]
        return taken, [_of_rows(two, three, n_rows) for two, three in self.handed_on]


def _of_rows(two: Traveller, three: Traveller, n_rows: int) -> Traveller:
    """Sizes that grow with the rows, wherever they stand, are in proportion to them."""
    pairs = zip(two.shape, three.shape, strict=True)
    return Traveller(tuple(a + (n_rows - 2) * (b - a) for a, b in pairs), two.dtype)


@contextmanager
def foreseen(model: nn.Module) -> Iterator[FakeTensorMode]:
    """Passes through the network within the block have tensors without values, and compute nothing.

    Raises:
        ConfigError: what the network computes cannot be told without values.
    """
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ConfigError(
            "stages",
            f"what {type(model).__name__} computes depends on values ({error}), so that what "
            f"travels between its stages cannot be told beforehand; {NEEDED}",
        ) from error
    finally:  # batch normalisation counts its passes even where nothing is computed
        for buffer, before in kept:
            buffer.copy_(before)


def _as_travels(x: Tensor, channels_last: bool) -> Tensor:
    if channels_last and x.dim() == 4:
        x = x.permute(0, 2, 3, 1)
    return x.contiguous().to(HOST)


def _as_computed(x: Tensor, channels_last: bool) -> Tensor:
    return x.permute(0, 3, 1, 2) if channels_last and x.dim() == 4 else x
