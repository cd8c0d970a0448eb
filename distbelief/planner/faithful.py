"""Whether the graph that was traced of a network computes what the network computes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from distbelief.errors import ConfigError
from distbelief.models.blocks import Blocks
from distbelief.models.dropout import SeededDropout, seed_dropout
from distbelief.models.stages import HOST
from distbelief.planner.example import Example
from distbelief.planner.profile import apart

SEEDS = (1, 2)
"""Of the random numbers that the network may draw: one that decides by them does so otherwise."""

REMEDY = (
    "random draws, torch.no_grad(), autocast and counters that stand in a forward() of parts are "
    "not in the graph by which a network is divided: leave them out, or train it undivided"
)


def require_faithful(model: nn.Module, example: Example) -> None:
    """Passes some examples through the network and through its graph, and compares.

    Args:
        model: The network, on the host; it is left as it was.
        example: What it takes.

    Raises:
        ConfigError: outputs differ, or which parameters learn, or the network counts its passes.
        Exception: whatever the network's own code raises.
    """
    name = type(model).__name__
    with apart(model, HOST) as own, _python_randomness_kept():
        whole = Blocks(own)
        graph = whole.stage(0, len(whole))
        batch = example.batch(HOST)
        _passed(own, own, batch, SEEDS[0])
        before = _counters(own)  # what is set once, in the first pass, is no counter
        for seed in SEEDS:
            expected, learned = _passed(own, own, batch, seed)
            found, learned_by_graph = _passed(graph, own, batch, seed)
            if learned != learned_by_graph:
                others = ", ".join(sorted(learned ^ learned_by_graph)[:3])
                raise ConfigError(
                    "stages", f"in {name} other parameters learn ({others}); {REMEDY}"
                )
            if not _alike(expected, found):
                raise ConfigError("stages", f"{name} computes something else; {REMEDY}")
        changed = [at for at, value in _counters(own).items() if before.get(at) != value]
    if changed:
        raise ConfigError("stages", f"{name} keeps count of its passes in {changed[0]}; {REMEDY}")


def _passed(
    compute: Callable[[Tensor], Any], model: nn.Module, batch: Tensor, seed: int
) -> tuple[list[Tensor], set[str]]:
    """The outputs of one pass, and which parameters have a gradient after it."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    seed_dropout(model, seed, 0, 0)
    outputs = [x for x in pytree.tree_leaves(compute(batch)) if isinstance(x, Tensor)]
    total = [x.float().square().mean() for x in outputs if x.requires_grad]
    if total:
        torch.stack(total).sum().backward()  # type: ignore[no-untyped-call]
    learned = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return [x.detach() for x in outputs], learned


def _alike(expected: list[Tensor], found: list[Tensor]) -> bool:
    return len(expected) == len(found) and all(
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)
        for a, b in zip(expected, found, strict=True)
    )


def _counters(model: nn.Module) -> dict[str, object]:
    """Plain values that modules keep as attributes."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, module in model.named_modules()
        if not isinstance(module, SeededDropout)
        for key, value in vars(module).items()
        if isinstance(value, bool | int | float | str)
    }


@contextmanager
def _python_randomness_kept() -> Iterator[None]:
    """Python's and numpy's generators are afterwards as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
