"""Histograms, small enough to be sent: of whole numbers, and of a network's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

N_BINS = 30
MOST_PARAMETERS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts of values in bins that touch each other; plain values.

    Attributes:
        limits: Upper limits of the bins, ascending.
        counts: Of each bin.
        least: The smallest value; ``most`` is the largest.
        total: Sum of the values; ``squares`` is that of their squares.
    """

    limits: tuple[float, ...]
    counts: tuple[float, ...]
    least: float
    most: float
    total: float
    squares: float

    @classmethod
    def of_counts(cls, counts: Mapping[int, int]) -> Histogram:
        """Of whole numbers by how often they occur, each in the middle of its bin."""
        least, most = min(counts), max(counts)
        return cls(
            limits=tuple(value + 0.5 for value in range(least, most + 1)),
            counts=tuple(float(counts.get(value, 0)) for value in range(least, most + 1)),
            least=float(least),
            most=float(most),
            total=float(sum(value * n for value, n in counts.items())),
            squares=float(sum(value * value * n for value, n in counts.items())),
        )

    @classmethod
    def of_values(cls, values: torch.Tensor) -> Histogram | None:
        """Of a tensor's values, in ``N_BINS`` bins of equal width; None unless all are finite."""
        flat = values.detach().float().flatten()
        if not flat.numel() or not bool(torch.isfinite(flat).all()):
            return None
        least, most = float(flat.min()), float(flat.max())
        # Where all values are the same the bins lie about it.
        low, high = (least, most) if most > least else (least - 0.5, least + 0.5)
        counts = torch.histc(flat, N_BINS, low, high)
        width = (high - low) / N_BINS
        return cls(
            limits=tuple(low + width * (i + 1) for i in range(N_BINS)),
            counts=tuple(counts.tolist()),
            least=least,
            most=most,
            total=float(flat.sum(dtype=torch.float64)),
            squares=float(flat.double().square().sum()),
        )


def weight_histograms(model: torch.nn.Module) -> dict[str, Histogram]:
    """Histograms of a network's first ``MOST_PARAMETERS`` parameters, by name."""
    named = list(model.named_parameters())[:MOST_PARAMETERS]
    found = {name: Histogram.of_values(parameter) for name, parameter in named}
    return {name: histogram for name, histogram in found.items() if histogram is not None}
