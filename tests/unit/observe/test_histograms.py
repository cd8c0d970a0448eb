"""Histograms of whole numbers and of weights."""

from __future__ import annotations

import torch

from distbelief.observe.histograms import MOST_PARAMETERS, N_BINS, Histogram, weight_histograms


def test_of_counts() -> None:
    assert Histogram.of_counts({3: 1, 1: 4}) == Histogram(
        limits=(1.5, 2.5, 3.5),
        counts=(4.0, 0.0, 1.0),
        least=1.0,
        most=3.0,
        total=7.0,
        squares=13.0,
    )


def test_of_values() -> None:
    values = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    found = Histogram.of_values(values)
    assert found is not None
    assert (found.least, found.most) == (0.0, 59.0)
    assert found.counts == N_BINS * (2.0,)
    assert len(found.limits) == N_BINS
    assert abs(found.limits[-1] - 59.0) < 1e-9
    assert (found.total, found.squares) == (59 * 60 / 2, 59 * 60 * 119 / 6)


def test_of_values_that_are_all_the_same() -> None:
    found = Histogram.of_values(torch.full((5,), 2.0))
    assert found is not None
    assert (found.least, found.most, sum(found.counts)) == (2.0, 2.0, 5.0)
    assert found.limits[0] < 2.0 < found.limits[-1]


def test_of_values_that_are_not_finite_or_none() -> None:
    assert Histogram.of_values(torch.tensor([1.0, float("nan")])) is None
    assert Histogram.of_values(torch.tensor([float("inf")])) is None
    assert Histogram.of_values(torch.empty(0)) is None


def test_of_a_network() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    assert list(weight_histograms(model)) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    deep = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(MOST_PARAMETERS)))
    assert len(weight_histograms(deep)) == MOST_PARAMETERS
