"""Evaluation by a loss of one's own, in closed form."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distbelief.evaluation.accuracy import evaluate
from distbelief.evaluation.custom import evaluate_loss


class Doubles(nn.Module):
    """Returns twice its input; knows in which mode it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        return x * self.scale


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().mean()


def test_the_mean_is_over_examples_whatever_the_batches() -> None:
    x, y = torch.arange(7.0).unsqueeze(1), torch.ones(7, 1)
    expected = sum(abs(2 * i - 1) for i in range(7)) / 7
    for cuts in ([7], [1, 6], [3, 0, 4], 7 * [1]):
        batches = list(zip(x.split(cuts), y.split(cuts), strict=True))
        found = evaluate_loss(Doubles(), batches, absolute)
        assert found.keys() == {"loss", "n_examples"}
        assert (found["loss"], found["n_examples"]) == (pytest.approx(expected, rel=1e-6), 7)


def test_of_a_mapping_the_loss_is_taken() -> None:
    def parts(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"other": torch.tensor(99.0), "loss": absolute(outputs, targets)}

    found = evaluate_loss(Doubles(), [(torch.ones(2, 1), torch.zeros(2, 1))], parts)
    assert found == {"loss": 2.0, "n_examples": 2}


def test_where_there_are_classes_the_accuracy_is_beside_it() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0], [5.0, 4.0, 3.0]])
    targets = torch.tensor([0, 1, 2])
    batches = [(logits[:2], targets[:2]), (logits[2:], targets[2:])]
    found = evaluate_loss(Doubles(), batches, lambda o, t: functional.cross_entropy(o, t))
    plain = evaluate(Doubles(), batches)
    assert (found["top1"], found["top5"], found["n_examples"]) == (1 / 3, 1.0, 3)
    assert (found["top1"], found["top5"]) == (plain.top1, plain.top5)
    assert found["loss"] == pytest.approx(plain.loss)


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (torch.ones(2, 3), torch.ones(2)),  # a regression
        (torch.ones(2, 3), torch.ones(2, 3)),
        (torch.ones(2, 3, 4), torch.ones(2, dtype=torch.int64)),
        (torch.ones(2), torch.ones(2, dtype=torch.int64)),
        (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64)),
        (torch.ones(2, 1), torch.zeros(2, dtype=torch.int64)),  # one output is no class of several
        (torch.ones(2, 3), torch.tensor([0, 3])),
        (torch.ones(2, 3), torch.tensor([-1, 0])),
    ],
)
def test_where_there_are_none_there_is_no_accuracy(inputs: Tensor, targets: Tensor) -> None:
    found = evaluate_loss(Doubles(), [(inputs, targets)], lambda o, t: o.sum() * 0 + 1)
    assert found == {"loss": 1.0, "n_examples": 2}


def test_batches_of_both_kinds_have_no_accuracy() -> None:
    batches = [
        (torch.ones(2, 3), torch.ones(2, dtype=torch.int64)),
        (torch.ones(2, 3), torch.ones(2)),
        (torch.ones(2, 3), torch.ones(2, dtype=torch.int64)),
    ]
    found = evaluate_loss(Doubles(), batches, lambda o, t: o.mean())
    assert found == {"loss": 2.0, "n_examples": 6}


def test_outputs_of_any_kind_are_the_losses_affair() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": x, "b": -x}

    def loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        return (outputs["a"] - outputs["b"]).mean()

    batches = [(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))]
    assert evaluate_loss(Pair(), batches, loss) == {"loss": 2.0, "n_examples": 3}


@pytest.mark.parametrize("batches", [[], [(torch.ones(0, 3), torch.ones(0, dtype=torch.int64))]])
def test_without_examples_there_is_no_mean(batches: list[Any]) -> None:
    found = evaluate_loss(Doubles(), batches, absolute)
    assert found.keys() == {"loss", "n_examples"}
    assert math.isnan(found["loss"])
    assert found["n_examples"] == 0


@pytest.mark.parametrize("training", [True, False])
def test_it_is_in_evaluation_mode_without_gradients_and_as_it_was_afterwards(
    training: bool,
) -> None:
    model = Doubles().train(training)
    seen: list[bool] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs.requires_grad)
        return outputs.mean()

    evaluate_loss(model, [(torch.ones(2, 3), torch.zeros(2))], loss)
    assert (model.modes, model.training, seen) == ([False], training, [False])
    assert model.scale.grad is None


def test_it_is_as_it_was_after_an_error_too() -> None:
    model = Doubles()

    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate_loss(model, [(torch.ones(2, 3), torch.zeros(2))], broken)
    assert model.training


def test_whole_numbers_that_are_no_classes_do_not_break_it() -> None:
    batches = [(torch.ones(2, 1), torch.tensor([3, 40]))]
    found = evaluate_loss(Doubles(), batches, lambda o, t: (o[:, 0] - t).abs().mean())
    assert found["loss"] == (1 + 38) / 2
