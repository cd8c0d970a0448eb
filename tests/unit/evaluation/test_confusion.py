from __future__ import annotations

import pytest
import torch

from distbelief.evaluation.confusion import ClassAccuracy, ConfusionMeter


def one_hot(*classes: int, n: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), n).float()


def test_rows_are_the_truth() -> None:
    meter = ConfusionMeter(3, 3)
    meter.update(one_hot(0, 1, 1, n=3), torch.tensor([0, 1, 0]))
    meter.update(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    meter.update(one_hot(1, n=3), torch.tensor([0]))
    assert meter.matrix() == ((1, 2, 0), (0, 1, 0), (0, 0, 0))
    assert meter.by_class() == (
        ClassAccuracy(3, 1 / 3, 1.0),
        ClassAccuracy(1, 1.0, 1.0),
        ClassAccuracy(0, None, None),
    )


def test_top5_of_each_class() -> None:
    meter = ConfusionMeter(7, 7)
    logits = torch.arange(7.0, 0.0, -1.0).expand(7, 7)  # class 0 first, class 6 last
    meter.update(logits, torch.arange(7))
    assert [found.top5 for found in meter.by_class()] == [1.0] * 5 + [0.0] * 2
    assert [found.top1 for found in meter.by_class()] == [1.0] + [0.0] * 6


def test_outputs_that_are_no_class_share_a_column() -> None:
    meter = ConfusionMeter(2, 5)
    meter.update(one_hot(0, 2, 4, 1, n=5), torch.tensor([0, 0, 1, 1]))
    assert meter.matrix() == ((1, 0, 1), (0, 1, 1))


@pytest.mark.parametrize(("n_classes", "n_outputs"), [(0, 3), (4, 3)])
def test_impossible_numbers(n_classes: int, n_outputs: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        ConfusionMeter(n_classes, n_outputs)
