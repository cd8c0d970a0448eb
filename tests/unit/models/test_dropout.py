"""Dropout whose masks follow from seed, item, step and layer alone."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from distbelief.config import ModelConfig
from distbelief.models import build
from distbelief.models.dropout import (
    SeededDropout,
    seed_dropout,
    take_rows,
    use_seeded_dropout,
)

HERE = __name__
N = 1000


class TwoLayers(nn.Module):
    """Both layers see the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SeededDropout(0.5)
        self.second = SeededDropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.first(x), self.second(x)])


class Foreign(nn.Module):
    """A network with torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.blocks = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Dropout(0.25)))
        self.head = nn.Dropout(0.75)
        self.planes = nn.Dropout2d(0.5)


def masks(model: nn.Module, *numbers: int) -> torch.Tensor:
    seed_dropout(model, *numbers)
    out: torch.Tensor = model(torch.ones(N)) != 0
    return out


def test_the_same_step_of_the_same_item_has_the_same_masks() -> None:
    model = TwoLayers()
    first = masks(model, 1, 2, 3)
    masks(model, 1, 2, 4)
    assert torch.equal(masks(model, 1, 2, 3), first)
    assert torch.equal(masks(TwoLayers(), 1, 2, 3), first)  # whichever replica computes it


@pytest.mark.parametrize("numbers", [(0, 2, 3), (1, 3, 3), (1, 2, 2), (12, 3, 3), (1, 23, 3)])
def test_another_seed_item_or_step_has_other_masks(numbers: tuple[int, ...]) -> None:
    model = TwoLayers()
    equal = masks(model, *numbers) == masks(model, 1, 2, 3)
    assert 0.4 < equal.float().mean() < 0.6  # deviation 0.011


def test_layers_have_masks_of_their_own() -> None:
    first, second = masks(TwoLayers(), 1, 2, 3)
    assert 0.4 < (first == second).float().mean() < 0.6


def test_passes_of_one_step_differ() -> None:
    """Two calls of one layer within a step, as of a layer that a network uses twice."""
    layer = SeededDropout(0.5)
    layer.seed(5)
    first, second = layer(torch.ones(N)), layer(torch.ones(N))
    layer.seed(5)
    assert torch.equal(layer(torch.ones(N)), first)
    assert torch.equal(layer(torch.ones(N)), second)
    assert not torch.equal(first, second)


def test_the_process_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    masks(TwoLayers(), 1, 2, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_do_not_disturb_each_other(in_threads: Callable[..., list[Any]]) -> None:
    n_threads, n_steps = 4, 20
    expected = [[masks(TwoLayers(), 0, t, s) for s in range(n_steps)] for t in range(n_threads)]
    together = threading.Barrier(n_threads)

    def replica(number: int) -> list[torch.Tensor]:
        model, found = TwoLayers(), []
        for step in range(n_steps):
            together.wait(60)
            seed_dropout(model, 0, number, step)
            together.wait(60)  # all have seeded before any draws
            found.append(model(torch.ones(N)) != 0)
        return found

    results = in_threads([lambda t=t: replica(t) for t in range(n_threads)])
    for found, wanted in zip(results, expected, strict=True):
        assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
def test_rate_and_scale(p: float) -> None:
    layer = SeededDropout(p)
    layer.seed(0)
    out = layer(torch.full((100, 1000), 3.0))
    assert set(out.unique().tolist()) == {0.0, 3.0 / (1 - p)}
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=0.01)  # six deviations


def test_the_gradient_has_the_mask_of_the_forward_pass() -> None:
    layer = SeededDropout(0.5)
    x = torch.ones(N, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero() -> None:
    x = torch.randn(5)
    assert SeededDropout(0.5).eval()(x) is x
    assert SeededDropout(0.0)(x) is x


def test_evaluation_does_not_move_the_masks() -> None:
    layer = SeededDropout(0.5)
    layer.seed(7)
    first = layer(torch.ones(N))
    layer.seed(7)
    layer.eval()(torch.ones(N))
    assert torch.equal(layer.train()(torch.ones(N)), first)


def test_memory_format_and_type_are_the_inputs() -> None:
    x = torch.ones(2, 3, 4, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    out = SeededDropout(0.5)(x)
    assert out.dtype is torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_dropout_layers_are_replaced_by_build_and_others_are_not() -> None:
    model = build(ModelConfig(model=f"{HERE}:Foreign"), classes=3, image_size=16, seed=0)
    found = {n: m.p for n, m in model.named_modules() if isinstance(m, SeededDropout)}
    assert found == {"blocks.1.0": 0.25, "head": 0.75}
    assert type(model.planes) is nn.Dropout2d
    assert not any(type(m) is nn.Dropout for m in model.modules())


def test_googlenet_has_seeded_layers_alone() -> None:
    model = build(ModelConfig(width=0.05), classes=3, image_size=32, seed=0)
    dropping = [m for m in model.modules() if "dropout" in type(m).__name__.lower()]
    assert len(dropping) == 3  # before the classifier, and one in each head
    assert {type(m) for m in dropping} == {SeededDropout}


def test_a_frozen_layer_stays_frozen() -> None:
    model = Foreign()
    model.head.eval()
    use_seeded_dropout(model)
    assert (model.head.training, model.blocks[1][0].training) == (False, True)


def test_printing() -> None:
    assert repr(SeededDropout(0.4)) == "SeededDropout(p=0.4)"


# A batch in parts


def in_parts(layer: SeededDropout, x: torch.Tensor, size: int) -> torch.Tensor:
    parts = []
    for begin in range(0, len(x), size):
        layer.take_rows(begin, len(x))
        parts.append(layer(x[begin : begin + size]))
    return torch.cat(parts)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(6,), (6, 50), (6, 4, 3, 2)])
def test_the_masks_of_a_batch_in_parts_are_those_of_the_whole(
    shape: tuple[int, ...], size: int
) -> None:
    layer, x = SeededDropout(0.5), torch.ones(shape)
    layer.seed(3)
    whole = layer(x)
    layer.seed(3)
    assert torch.equal(in_parts(layer, x, size), whole)


def test_parts_may_be_computed_in_any_order_and_again() -> None:
    """As a pipeline does, or a recomputation."""
    layer, x = SeededDropout(0.5), torch.ones(6, 50)
    layer.seed(3)
    whole = layer(x)
    layer.seed(3)
    for begin in (4, 0, 2, 0, 4):
        layer.take_rows(begin, 6)
        assert torch.equal(layer(x[begin : begin + 2]), whole[begin : begin + 2])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_layer_that_is_called_twice_has_two_masks_for_every_part(size: int) -> None:
    layer, x = SeededDropout(0.5), torch.ones(4, 50)
    layer.seed(3)
    first, second = layer(x), layer(x[:, :20])
    layer.seed(3)
    for begin in range(0, 4, size):
        layer.take_rows(begin, 4)
        rows = slice(begin, begin + size)
        assert torch.equal(layer(x[rows]), first[rows])
        assert torch.equal(layer(x[rows, :20]), second[rows])


def test_a_seed_begins_a_batch_anew_and_as_a_whole() -> None:
    layer, x = SeededDropout(0.5), torch.ones(4, 50)
    layer.seed(4)
    other = layer(x)
    layer.seed(3)
    in_parts(layer, x, 2)
    layer.seed(4)
    assert torch.equal(in_parts(layer, x, 2), other)
    layer.seed(4)
    assert torch.equal(layer(x), other)


def test_parts_of_layers_that_drop_all_or_nothing() -> None:
    x = torch.ones(4, 3)
    for p, expected in ((0.0, x), (1.0, torch.zeros(4, 3))):
        assert torch.equal(in_parts(SeededDropout(p), x, 2), expected)
    layer = SeededDropout(0.5).eval()
    assert torch.equal(in_parts(layer, x, 2), x)


def test_all_layers_of_a_network_take_the_same_rows() -> None:
    model, x = TwoLayers(), torch.ones(4, 50)
    seed_dropout(model, 1, 2, 3)
    whole = model(x)
    seed_dropout(model, 1, 2, 3)
    for begin in (0, 2):
        take_rows(model, begin, 4)
        assert torch.equal(model(x[begin : begin + 2]), whole[:, begin : begin + 2])
