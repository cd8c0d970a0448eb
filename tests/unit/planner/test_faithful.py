"""A network whose graph computes something else is not divided."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distbelief.errors import ConfigError
from distbelief.models.dropout import SeededDropout
from distbelief.planner.example import Example
from distbelief.planner.faithful import require_faithful

EXAMPLE = Example(shape=(2, 4))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.steps = 0


class WithoutGradient(Two):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            x = self.first(x)
        return self.second(x)


class Drawing(Two):
    def forward(self, x: Tensor) -> Any:
        return self.second(self.first(x) + torch.randn(4))


class Deciding(Two):
    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        return self.second(x) if random.random() < 0.5 else self.second(x + 1.0)


class Counting(Two):
    def forward(self, x: Tensor) -> Any:
        self.steps += 1
        return self.second(self.first(x))


class Lowering(Two):
    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.second(self.first(x))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (
            WithoutGradient,
            r"in WithoutGradient other parameters learn \(first.bias, first.weight\)",
        ),
        (Drawing, "Drawing computes something else"),
        (Deciding, "Deciding computes something else"),
        (Lowering, "Lowering computes something else"),
        (Counting, "Counting keeps count of its passes in steps"),
    ],
)
def test_what_the_graph_does_not_have_is_refused(kind: type[nn.Module], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        require_faithful(kind(), EXAMPLE)
    assert caught.value.field == "stages"


def test_a_network_with_what_layers_draw_is_let_through_and_left_as_it_was() -> None:
    model = nn.Sequential(
        nn.Linear(4, 8),
        nn.BatchNorm1d(8),
        SeededDropout(0.5),
        nn.AlphaDropout(0.5),
        nn.Linear(8, 3),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    require_faithful(model, EXAMPLE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_an_error_of_the_network_is_its_own() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        require_faithful(nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3)), EXAMPLE)
