"""Initial values: bounds, moments and reproducibility."""

import math

import pytest
import torch
from torch import nn

from distbelief.models.googlenet import GoogLeNet
from distbelief.models.init import Initialisation, initialise

CLASSIFIERS = {"aux1.fc", "aux2.fc", "classifier.fc"}


def layers(kind: Initialisation) -> dict[str, nn.Conv2d | nn.Linear]:
    model = GoogLeNet(width=0.5, classes=100, init=kind)
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def fan_in(layer: nn.Conv2d | nn.Linear) -> int:
    if isinstance(layer, nn.Linear):
        return layer.in_features
    return layer.in_channels * math.prod(layer.kernel_size)


def test_caffe_is_uniform_within_the_xavier_bound() -> None:
    for name, layer in layers("caffe").items():
        bound = math.sqrt(3 / fan_in(layer))
        weight = layer.weight.detach()
        n = weight.numel()
        largest = float(weight.abs().max())
        # The largest of n uniform magnitudes is below bound * (1 - 20 / n) once in e^20 draws.
        assert bound * (1 - 20 / n) <= largest <= bound * (1 + 1e-6), name
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=4 / n**0.5)
        bias = torch.full_like(layer.bias, 0.0 if name in CLASSIFIERS else 0.2)
        torch.testing.assert_close(layer.bias, bias, rtol=0, atol=0)


def test_he_has_the_deviation_that_keeps_rectified_variance() -> None:
    for name, layer in layers("he").items():
        weight = layer.weight.detach()
        n = weight.numel()
        expected = 0.01 if name in CLASSIFIERS else math.sqrt(2 / fan_in(layer))
        assert float(weight.std()) == pytest.approx(expected, rel=4 / n**0.5), name
        assert float(weight.mean()) == pytest.approx(0, abs=5 * expected / n**0.5), name
        assert not layer.bias.any(), name


@pytest.mark.parametrize("kind", ["caffe", "he"])
def test_values_depend_on_the_generator_alone(kind: Initialisation) -> None:
    model = GoogLeNet(width=0.05, classes=3, image_size=16)

    def drawn(seed: int) -> torch.Tensor:
        torch.rand(3)  # moves the global generator, which must not matter
        initialise(model, kind, torch.Generator().manual_seed(seed))
        return torch.cat([p.detach().flatten().clone() for p in model.parameters()])

    assert torch.equal(drawn(7), drawn(7))
    assert not torch.equal(drawn(7), drawn(8))


def test_the_global_generator_is_not_touched() -> None:
    model = GoogLeNet(width=0.05, classes=3, image_size=16)
    before = torch.get_rng_state()
    initialise(model, "caffe", torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_without_bias_are_initialised() -> None:
    layer = nn.Conv2d(3, 4, 1, bias=False)
    nn.init.constant_(layer.weight, 9.0)
    initialise(nn.Sequential(layer), "caffe", torch.Generator().manual_seed(1))
    assert float(layer.weight.detach().abs().max()) <= 1.0
