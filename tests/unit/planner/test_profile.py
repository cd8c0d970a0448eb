"""What blocks are measured to take."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from distbelief.models.blocks import Blocks
from distbelief.models.dropout import SeededDropout
from distbelief.planner.costs import BlockTime
from distbelief.planner.example import Example
from distbelief.planner.profile import _Run, apart, profile

CPU = torch.device("cpu")


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        SeededDropout(0.5),
        nn.Dropout(0.5),
        nn.Linear(4 * 8 * 8, 5),
    )


EXAMPLE = Example(shape=(2, 3, 8, 8))


def test_every_block_has_times() -> None:
    found = profile(network(), EXAMPLE, CPU, whole=Example(shape=(4, 3, 8, 8)))
    assert len(found.blocks) == 7
    assert all(t.forward_s > 0 and t.backward_s > 0 for t in found.blocks)
    assert found.whole is not None
    assert found.whole.forward_s > 0
    assert found.whole.backward_s > 0


def test_the_network_is_left_as_it_was() -> None:
    model = network().eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    profile(model, EXAMPLE, CPU, whole=EXAMPLE, rounds=1, passes=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "0.weight")
    assert not any(module.training for module in model.modules())
    assert model[4]._generator is None


def test_medians_are_taken_of_all_rounds_after_the_first_pass() -> None:
    # Each pass of one block reads the clock four times; a pass takes longer than the one before.
    readings = itertools.accumulate(
        itertools.chain.from_iterable((0.0, n, 0.0, 10.0 * n) for n in itertools.count(1.0))
    )
    model = nn.Sequential(nn.Linear(2, 2))
    found = profile(
        model, Example(shape=(1, 2)), CPU, rounds=1, passes=3, clock=lambda: next(readings)
    )
    assert found.blocks == (BlockTime(3.0, 30.0),)
    assert found.whole is None


def test_blocks_compute_what_the_network_computes() -> None:
    """Gradients that the passes leave in the copy are those of the whole."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    batch = torch.randn(5, 3)
    model(batch).sum().backward()
    wanted = [p.grad for p in model.parameters()]
    model.zero_grad()
    blocks = Blocks(model)
    parts = [blocks.stage(i, i + 1) for i in range(len(blocks))]
    _Run(Example(shape=(5, 3)), CPU, lambda: 0.0)(parts, batch)
    for found, want in zip((p.grad for p in model.parameters()), wanted, strict=True):
        torch.testing.assert_close(found, want)


def test_logits_of_heads_are_handed_on() -> None:
    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head, self.b = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.a(x)
            aux = self.head(x)
            return self.b(x), aux

    found = profile(Headed(), Example(shape=(4, 3)), CPU, rounds=1, passes=1)
    assert len(found.blocks) == 3
    assert all(t.backward_s > 0 for t in found.blocks)


@pytest.mark.parametrize(
    ("example", "dtype", "stride"),
    [
        (Example(shape=(2, 3, 4, 4)), torch.float32, (48, 1, 12, 3)),
        (Example(shape=(2, 3, 4, 4), channels_last=False), torch.float32, (48, 16, 4, 1)),
        (Example(shape=(2, 7), dtype="int64"), torch.int64, (7, 1)),
        (Example(shape=(2, 7), dtype="float16"), torch.float16, (7, 1)),
    ],
)
def test_batches(example: Example, dtype: torch.dtype, stride: tuple[int, ...]) -> None:
    batch = example.batch(CPU)
    assert (batch.dtype, batch.shape, batch.stride()) == (dtype, example.shape, stride)
    assert bool(batch.any()) is dtype.is_floating_point


def test_words_are_measured_too() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
    found = profile(model, Example(shape=(2, 3), dtype="int64"), CPU, rounds=1, passes=1)
    assert len(found.blocks) == 3


def test_a_copy_is_in_training_mode() -> None:
    model = network().eval()
    with apart(model, CPU) as own:
        assert own is not model
        assert all(module.training for module in own.modules())
