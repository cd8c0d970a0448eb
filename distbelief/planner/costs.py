"""What the blocks of a network cost, and what stages made of them do; plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

FLOAT_BYTES = 4
"""Bytes of an element of the flat vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSize:
    """What one block weighs, of one micro-batch.

    Attributes:
        name: The block's name.
        n_parameters: Elements of its trainable parameters.
        handed_on: Bytes that it hands on: its activation, and the network's outputs beside it.
        kept: Bytes that it keeps for the backward pass; what the block before keeps already, and
            parameters, do not count.
        kept_if_first: Bytes that it keeps beyond that where a stage begins with it: its input.
    """

    name: str
    n_parameters: int
    handed_on: int
    kept: int
    kept_if_first: int = 0


@dataclass(frozen=True, slots=True)
class BlockTime:
    """Seconds that one micro-batch takes in a block."""

    forward_s: float
    backward_s: float

    @property
    def total_s(self) -> float:
        """Both passes."""
        return self.forward_s + self.backward_s

    def slowed(self, factor: float) -> BlockTime:
        """On a device that takes ``factor`` times as long."""
        return BlockTime(self.forward_s * factor, self.backward_s * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What one stage runs on.

    Attributes:
        name: The word for it.
        times: Of each block, there; none if nothing was measured.
        memory: Bytes that a stage may take there; None for no limit.
        is_host: Whether it computes in the host's memory, so that all four vectors of a stage and
            its buffers lie there.
    """

    name: str = "cpu"
    times: tuple[BlockTime, ...] = ()
    memory: int | None = None
    is_host: bool = True


@dataclass(frozen=True, slots=True)
class Link:
    """What connects two stages: bytes a second, and seconds before the first of them arrives."""

    bytes_per_s: float = 1e9
    latency_s: float = 5e-4

    def seconds(self, nbytes: int) -> float:
        """How long a message takes."""
        return self.latency_s + nbytes / self.bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """How micro-batches flow through the stages.

    Attributes:
        micro_batches: How many a step has.
        pipeline: In which order they are computed.
        link: Between each two stages.
    """

    micro_batches: int
    pipeline: Literal["1f1b", "gpipe"] = "1f1b"
    link: Link = Link()

    def in_flight(self, stage: int, n_stages: int) -> int:
        """Micro-batches whose activations a stage keeps at once, at most."""
        if self.pipeline == "gpipe":
            return self.micro_batches
        return min(self.micro_batches, n_stages - stage)


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage does with one micro-batch."""

    forward_s: float
    backward_s: float
    bytes_out: int

    @property
    def total_s(self) -> float:
        """Both passes."""
        return self.forward_s + self.backward_s


def in_mb(nbytes: int) -> str:
    """A size as a message has it."""
    mb = nbytes / 1e6
    return f"{mb:,.0f} MB" if mb >= 10 else f"{mb:.2g} MB"


Cuts = tuple[int, ...]
"""The blocks with which the second and later stages begin, by position."""


def spans(cuts: Sequence[int], n_blocks: int) -> list[tuple[int, int]]:
    """The first block of each stage, and the one behind its last."""
    return list(zip((0, *cuts), (*cuts, n_blocks), strict=True))


@dataclass(frozen=True)
class Costs:
    """A network's blocks, the devices of its stages and the flow through them.

    Attributes:
        blocks: What each block weighs.
        devices: One for each stage.
        flow: How micro-batches flow.
        batch: Bytes of a step's batch, which the first stage holds.
    """

    blocks: tuple[BlockSize, ...]
    devices: tuple[Device, ...]
    flow: Flow
    batch: int = 0

    @property
    def n_stages(self) -> int:
        """How many stages there are."""
        return len(self.devices)

    def stage(self, index: int, begin: int, end: int) -> StageCost:
        """Blocks ``begin`` to ``end`` - 1 on the device of stage ``index``."""
        forward, backward = self._sums[index]
        return StageCost(
            forward_s=forward[end] - forward[begin],
            backward_s=backward[end] - backward[begin],
            bytes_out=self.blocks[end - 1].handed_on if end < len(self.blocks) else 0,
        )

    def stages(self, cuts: Sequence[int]) -> list[StageCost]:
        """All stages of a division."""
        return [self.stage(i, *span) for i, span in enumerate(spans(cuts, len(self.blocks)))]

    def n_parameters(self, begin: int, end: int) -> int:
        """Trainable elements of blocks ``begin`` to ``end`` - 1."""
        return self._parameters[end] - self._parameters[begin]

    def memory(self, index: int, begin: int, end: int) -> int:
        """Bytes that stage ``index`` takes on its device, made of blocks ``begin`` to ``end`` - 1.

        Two vectors of its parameters and two of its gradient (one each, if the device is not the
        host); what is kept for the backward passes of the micro-batches in flight; the gradients
        that a backward pass has at once, about as much as a block keeps; and on the host the batch,
        if the stage is the first, and a buffer of each micro-batch for what comes in, forwards and
        backwards.
        """
        in_flight = self.flow.in_flight(index, self.n_stages)
        vectors = (4 if self.devices[index].is_host else 2) * FLOAT_BYTES
        taken = self.blocks[begin - 1].handed_on if begin else 0
        given = self.blocks[end - 1].handed_on if end < len(self.blocks) else 0
        kept = self._kept[end] - self._kept[begin]
        kept += self.blocks[begin].kept_if_first if begin else 0
        passing = max(self._passing[begin:end])
        total = vectors * self.n_parameters(begin, end) + in_flight * (kept + given) + passing
        if self.devices[index].is_host:
            total += self.flow.micro_batches * (taken + given) + (0 if begin else self.batch)
        return total

    def memories(self, cuts: Sequence[int]) -> list[int]:
        """Bytes of all stages of a division."""
        return [self.memory(i, *span) for i, span in enumerate(spans(cuts, len(self.blocks)))]

    def memory_of_one(self, is_host: bool) -> int:
        """Bytes that one process takes on the host, or on another device: a whole batch at once."""
        vectors = (4 if is_host else 2) * FLOAT_BYTES
        activations = self._kept[-1] + max(self._passing)
        return vectors * self._parameters[-1] + self.flow.micro_batches * activations

    @cached_property
    def _sums(self) -> list[tuple[list[float], list[float]]]:
        """Of each device, the seconds of all blocks before one, forwards and backwards."""
        unknown = (BlockTime(0.0, 0.0),) * len(self.blocks)
        sums = []
        for device in self.devices:
            times = device.times or unknown
            forward = [0.0, *accumulate(time.forward_s for time in times)]
            sums.append((forward, [0.0, *accumulate(time.backward_s for time in times)]))
        return sums

    @cached_property
    def _parameters(self) -> list[int]:
        return [0, *accumulate(block.n_parameters for block in self.blocks)]

    @cached_property
    def _kept(self) -> list[int]:
        return [0, *accumulate(block.kept for block in self.blocks)]

    @cached_property
    def _passing(self) -> list[int]:
        """What each block's backward pass has beside what was kept: gradients on their way."""
        taken = [0, *(block.handed_on for block in self.blocks)]
        return [
            max(block.kept, block.handed_on) + before
            for block, before in zip(self.blocks, taken, strict=False)
        ]
