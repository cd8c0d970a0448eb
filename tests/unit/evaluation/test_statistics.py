"""Running statistics against their closed form."""

import pytest
import torch
from torch import Tensor, nn

from distbelief.evaluation import has_running_statistics, recompute_running_statistics


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    return [(3 * torch.randn(n, 2, 4, 4) + 1, torch.zeros(n, dtype=torch.int64)) for n in sizes]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.BatchNorm2d(3), True),
        (nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2))), True),
        (nn.BatchNorm2d(3, track_running_stats=False), False),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.LayerNorm(3)), False),
    ],
)
def test_has_running_statistics(model: nn.Module, expected: bool) -> None:
    assert has_running_statistics(model) == expected


def test_statistics_are_the_average_over_the_batches() -> None:
    norm = nn.BatchNorm2d(2, momentum=0.3)
    data = batches(3, 5, 4)
    norm(torch.randn(4, 2, 4, 4))  # what it had before must not matter
    assert recompute_running_statistics(norm, iter(data)) == 12
    pixels = [x.double().transpose(0, 1).flatten(1) for x, _ in data]
    mean = torch.stack([p.mean(1) for p in pixels]).mean(0)
    variance = torch.stack([p.var(1, unbiased=True) for p in pixels]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean.float())
    torch.testing.assert_close(norm.running_var, variance.float())


class Network(nn.Module):
    """Dropout ahead of a normalisation, and a second one that only training reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(2, momentum=0.3)
        self.frozen = nn.BatchNorm2d(2, affine=False).eval()
        self.head = nn.BatchNorm2d(2)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.frozen(self.norm(self.dropout(images)))
        assert not self.training
        return x


def test_dropout_neither_acts_nor_draws() -> None:
    model = Network()
    data = batches(4)
    before = torch.get_rng_state()
    recompute_running_statistics(model, data)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(model.norm.running_mean, data[0][0].mean((0, 2, 3)))


def test_momentum_modes_and_gradients_are_left_alone() -> None:
    model = Network()
    recompute_running_statistics(model, batches(4, 4))
    assert (model.norm.momentum, model.head.momentum) == (0.3, 0.1)
    modes = (model.training, model.dropout.training, model.norm.training, model.frozen.training)
    assert modes == (True, True, True, False)
    assert all(p.grad is None for p in model.parameters())
    assert not model.norm.running_mean.requires_grad


def test_a_layer_that_no_batch_reached_keeps_its_statistics() -> None:
    model = Network()
    model.head.running_mean.fill_(7.0)
    recompute_running_statistics(model, batches(4))
    assert model.head.running_mean.tolist() == [7.0, 7.0]


@pytest.mark.parametrize("sizes", [(), (0,), (1, 1)])
def test_too_few_examples_change_nothing(sizes: tuple[int, ...]) -> None:
    model = Network()
    model.norm.running_mean.fill_(7.0)
    assert recompute_running_statistics(model, batches(*sizes)) == 0
    assert model.norm.running_mean.tolist() == [7.0, 7.0]


def test_a_failure_half_way_puts_the_old_statistics_back() -> None:
    model = Network()
    model.norm.running_mean.fill_(7.0)

    def failing() -> object:
        yield from batches(4)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        recompute_running_statistics(model, failing())
    assert model.norm.running_mean.tolist() == [7.0, 7.0]
    assert model.norm.momentum == 0.3
    assert model.norm.training
