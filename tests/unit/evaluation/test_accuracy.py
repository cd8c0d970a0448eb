"""Accuracy against hand-counted batches."""

import math

import pytest
import torch
from torch import Tensor, nn

from distbelief.evaluation import Accuracy, AccuracyMeter, evaluate


def ranked(rank: int, classes: int) -> Tensor:
    """Logits in which class 0 has the given rank, 0 being the best."""
    x = -torch.arange(1.0, classes + 1)
    x[0] = -(rank + 1.5)
    return x


def test_top5_counts_ranks_below_five() -> None:
    meter = AccuracyMeter()
    for part in ((0, 1, 4), (5, 6)):
        logits = torch.stack([ranked(rank, 8) for rank in part])
        meter.update(logits, torch.zeros(len(part), dtype=torch.int64))
    found = meter.result()
    assert (found.top1, found.top5, found.n_examples) == (1 / 5, 3 / 5, 5)


def test_loss_is_the_mean_over_examples_whatever_the_batches() -> None:
    logits, targets = torch.randn(7, 6, requires_grad=True), torch.tensor([0, 1, 2, 3, 4, 5, 0])
    expected = -logits.double().log_softmax(1)[torch.arange(7), targets].mean()
    for sizes in ((7,), (4, 3), (1, 0, 6)):
        meter = AccuracyMeter()
        for x, y in zip(logits.split(sizes), targets.split(sizes), strict=True):
            meter.update(x, y)
        assert meter.result().loss == pytest.approx(expected.item(), rel=1e-6)
        assert meter.result().n_examples == 7


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_with_few_classes_all_are_among_the_best_five(classes: int) -> None:
    meter = AccuracyMeter()
    meter.update(torch.randn(9, classes), torch.arange(9) % classes)
    assert meter.result().top5 == 1.0


@pytest.mark.parametrize(
    ("logits", "targets"),
    [(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)), (torch.zeros(2), torch.zeros(2))],
)
def test_shapes_that_do_not_fit_are_refused(logits: Tensor, targets: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(N, classes\)"):
        AccuracyMeter().update(logits, targets)


class Probe(nn.Module):
    """Returns its images as logits, and keeps how it was called."""

    def __init__(self, output: object = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Dropout(0.5).eval()
        self.dropout = nn.Dropout(0.5)
        self.output = output
        self.calls: list[tuple[bool, bool, bool]] = []

    def forward(self, images: Tensor) -> object:
        self.calls.append((self.training, self.dropout.training, torch.is_inference_mode_enabled()))
        logits = self.dropout(images * self.scale)
        return {"out": logits} if self.output == "dict" else logits


BATCHES = [
    (torch.eye(6)[[0, 1, 2]], torch.tensor([0, 1, 3])),
    (torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)),
    (torch.eye(6)[[5]], torch.tensor([5])),
]


def test_evaluate_covers_every_example_in_evaluation_mode() -> None:
    model = Probe()
    found = evaluate(model, iter(BATCHES))
    right, wrong = math.log(math.e + 5) - 1, math.log(math.e + 5)
    assert found == Accuracy(0.75, 1.0, pytest.approx((3 * right + wrong) / 4), 4)
    assert model.calls == [(False, False, True)] * 2


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_restores_the_mode_of_each_module(training: bool) -> None:
    model = Probe()
    model.training = training

    def failing() -> object:
        yield BATCHES[0]
        raise OSError("disk")

    evaluate(model, BATCHES)
    assert (model.training, model.dropout.training, model.frozen.training) == (
        training,
        True,
        False,
    )
    with pytest.raises(OSError, match="disk"):
        evaluate(model, failing())
    assert (model.training, model.dropout.training, model.frozen.training) == (
        training,
        True,
        False,
    )


def test_without_examples_there_is_no_accuracy() -> None:
    for batches in ([], [BATCHES[1]]):
        found = evaluate(Probe(), batches)
        assert found.n_examples == 0
        assert all(math.isnan(x) for x in (found.top1, found.top5, found.loss))


def test_logits_are_taken_out_of_other_outputs() -> None:
    assert evaluate(Probe("dict"), BATCHES, logits_of=lambda out: out["out"]).top1 == 0.75
    with pytest.raises(TypeError, match="logits_of"):
        evaluate(Probe("dict"), BATCHES)
