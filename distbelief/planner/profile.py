"""What each block of a network takes, measured."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from distbelief.models.blocks import Blocks
from distbelief.models.stages import autocast
from distbelief.planner.costs import BlockTime
from distbelief.planner.example import Example

ROUNDS = 3
"""Times that blocks and the whole network are measured in turn, so that what else the host does
touches both."""
PASSES = 3
"""Passes through the blocks in a round; of all of them medians are taken."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds that a network takes on one device.

    Attributes:
        blocks: Of each block, of one micro-batch.
        whole: Of the network as one process computes it, a whole batch at once, if it was measured.
    """

    blocks: tuple[BlockTime, ...]
    whole: BlockTime | None = None


@contextmanager
def apart(model: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """A copy of a network on a device, in training mode, to compute with.

    The network itself is left as it was in every respect, and so are the generators of random
    numbers of the host and of the device.
    """
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield copy.deepcopy(model).to(device).train()


def profile(
    model: nn.Module,
    example: Example,
    device: torch.device,
    *,
    whole: Example | None = None,
    rounds: int = ROUNDS,
    passes: int = PASSES,
    clock: Clock = time.perf_counter,
) -> Profile:
    """Measures a network's blocks; blocks the caller.

    The blocks compute one after another, each from a leaf of its own, and then backwards, adding to
    gradients that are there, as in a step. The threads are those that torch has.

    Args:
        model: The network, which is left as it was.
        example: A micro-batch.
        device: Where it computes.
        whole: A batch for the whole network at once, if that is to be measured too.
        rounds: How often the two take turns.
        passes: Passes through the blocks in each round.
        clock: Seconds, for the difference of two calls.

    Raises:
        ConfigError: the network cannot be divided.
    """
    with apart(model, device) as own:
        for parameter in own.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        blocks = Blocks(own)
        parts = [blocks.stage(index, index + 1) for index in range(len(blocks))]
        run = _Run(example, device, clock)
        batch = example.batch(device)
        run(parts, batch)
        found: list[list[BlockTime]] = []
        found_whole: list[BlockTime] = []
        for _ in range(rounds):
            found += [run(parts, batch) for _ in range(passes)]
            if whole is not None:
                found_whole += run([own], whole.batch(device))
    return Profile(
        blocks=tuple(_median(times) for times in zip(*found, strict=True)),
        whole=_median(found_whole) if found_whole else None,
    )


@dataclass(frozen=True, slots=True)
class _Passed:
    """A part that has computed forwards: leaves of what it took, and what it handed on."""

    leaves: list[Tensor]
    outputs: list[Tensor]


@dataclass(frozen=True, slots=True)
class _Run:
    """Passes through a network's parts, forwards and backwards, each timed."""

    example: Example
    device: torch.device
    clock: Clock

    def __call__(self, parts: Sequence[nn.Module], batch: Tensor) -> list[BlockTime]:
        """What each part took."""
        passed: list[_Passed] = []
        forward_s: list[float] = []
        values = [batch]
        for part in parts:
            leaves = [_leaf(x) if passed else x for x in values]
            # A layer in place must not overwrite a leaf; the copy is of no part's time.
            taken = [x.clone(memory_format=torch.preserve_format) for x in leaves]
            began = self._now()
            with autocast(self.device, self.example.precision):
                returned = part(*taken)
            forward_s.append(self._now() - began)
            values = [x for x in pytree.tree_leaves(returned) if isinstance(x, Tensor)]
            passed.append(_Passed(leaves, values))
        backward_s: list[float] = []
        gradients: list[Tensor | None] = [torch.ones_like(x) for x in values]
        while passed:
            part_passed = passed.pop()
            pairs = zip(part_passed.outputs, gradients, strict=True)
            wanted = [(x, g) for x, g in pairs if x.requires_grad and g is not None]
            began = self._now()
            torch.autograd.backward([x for x, _ in wanted], [g for _, g in wanted])
            backward_s.append(self._now() - began)
            gradients = [x.grad for x in part_passed.leaves]
        return [BlockTime(f, b) for f, b in zip(forward_s, reversed(backward_s), strict=True)]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.is_floating_point())


def _median(pairs: Sequence[BlockTime]) -> BlockTime:
    return BlockTime(
        statistics.median(pair.forward_s for pair in pairs),
        statistics.median(pair.backward_s for pair in pairs),
    )
