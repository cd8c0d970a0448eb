"""Losses of every shape of output, against closed forms."""

import math
from collections import namedtuple

import pytest
import torch
from torch import Tensor

from distbelief.errors import ConfigError
from distbelief.models import Logits, losses, main_logits

TARGETS = torch.tensor([0, 2])
GoogLeNetOutputs = namedtuple("GoogLeNetOutputs", ["logits", "aux_logits2", "aux_logits1"])
InceptionOutputs = namedtuple("InceptionOutputs", ["logits", "aux_logits"])
Other = namedtuple("Other", ["scores", "extra"])


def logits(odds: float) -> Tensor:
    """Logits whose cross entropy with TARGETS is log(odds + 2) - log(odds) for each example."""
    x = torch.zeros(2, 3)
    x[0, 0] = x[1, 2] = math.log(odds)
    return x.requires_grad_()


def entropy(odds: float) -> float:
    return math.log(odds + 2) - math.log(odds)


MAIN, AUX1, AUX2 = logits(6.0), logits(2.0), logits(1.0)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (MAIN, {}),
        (Logits(MAIN, AUX1, AUX2), {"main": 6.0, "aux1": 2.0, "aux2": 1.0}),
        (GoogLeNetOutputs(MAIN, AUX2, AUX1), {"main": 6.0, "aux1": 2.0, "aux2": 1.0}),
        (GoogLeNetOutputs(MAIN, AUX2, None), {"main": 6.0, "aux2": 1.0}),
        (GoogLeNetOutputs(MAIN, None, None), {"main": 6.0}),
        (InceptionOutputs(MAIN, AUX1), {"main": 6.0, "aux1": 2.0}),
        (InceptionOutputs(MAIN, None), {"main": 6.0}),
        (Other(MAIN, AUX1), {"main": 6.0, "aux1": 2.0}),
        ((MAIN, AUX1, AUX2), {"main": 6.0, "aux1": 2.0, "aux2": 1.0}),
        ((MAIN, None, AUX2), {"main": 6.0, "aux2": 1.0}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_losses_by_name(outputs: object, expected: dict[str, float]) -> None:
    found = losses(outputs, TARGETS, 0.3)
    aux = sum(entropy(odds) for name, odds in expected.items() if name != "main")
    values = {"loss": entropy(6.0) + 0.3 * aux} | {k: entropy(v) for k, v in expected.items()}
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(values)
    assert list(found) == list(values)
    assert main_logits(outputs) is MAIN


def test_each_head_gets_its_weighted_gradient() -> None:
    x = [logits(1.0) for _ in range(3)]
    losses(Logits(*x), TARGETS, 0.3)["loss"].backward()
    # d(mean cross entropy)/d(logits) = (softmax - one_hot) / N
    expected = (torch.full((2, 3), 1 / 3) - torch.eye(3)[TARGETS]) / 2
    for tensor, weight in zip(x, (1.0, 0.3, 0.3), strict=True):
        torch.testing.assert_close(tensor.grad, weight * expected)


@pytest.mark.parametrize("autocast", [True, False])
def test_losses_are_float32_for_bfloat16_logits(autocast: bool) -> None:
    half = torch.randn(8, 5).bfloat16()
    targets = torch.arange(8) % 5
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = losses(Logits(half, half, half), targets, 0.3)
    expected = -half.double().log_softmax(1)[torch.arange(8), targets].mean()
    for name, scale in (("main", 1.0), ("aux1", 1.0), ("loss", 1.6)):
        assert found[name].dtype == torch.float32
        assert found[name].item() == pytest.approx(scale * float(expected), rel=1e-6)


@pytest.mark.parametrize("outputs", [{"out": MAIN}, (), (None, MAIN), None])
def test_outputs_that_are_no_logits_are_refused(outputs: object) -> None:
    with pytest.raises(ConfigError, match="--model: must return"):
        losses(outputs, TARGETS, 0.3)
