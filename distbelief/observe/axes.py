"""Scales, ticks at round numbers, and how values are written beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from distbelief.observe.report import duration

Unit = Literal["count", "seconds", "share", "number"]

SPANS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200)
DAY_S = 86_400


def formatted(value: float, unit: Unit) -> str:
    """A value for an axis.

    Example:
        >>> formatted(12500, "count"), formatted(90, "seconds"), formatted(0.5, "share")
        ('12.5k', '1m30s', '50%')
    """
    if unit == "seconds":
        return duration(value)
    if unit == "share":
        return f"{value * 100:.4g}%"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps ``[low, high]`` to pixels ``[begin, end]``, with ticks at round numbers."""

    low: float
    high: float
    begin: float
    end: float
    unit: Unit
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, low: float, high: float, unit: Unit, begin: float, end: float) -> Scale:
        """A scale of some length, with a tick about every 80 pixels, or 40 if it stands upright."""
        if high <= low:
            high = low + 1.0
        n = max(2.0, abs(end - begin) / (80 if end > begin else 40))
        step = _step((high - low) / n, unit)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        ticks = tuple(i * step for i in range(first, last + 1))
        return cls(low, high, begin, end, unit, ticks)

    def __call__(self, value: float) -> float:
        """Where a value lies, in pixels."""
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)


def _step(least: float, unit: Unit) -> float:
    """The next round number."""
    if unit == "seconds" and least > 0.5:
        for span in SPANS_S:
            if span >= least:
                return float(span)
        return DAY_S * _step(least / DAY_S, "number")
    power = 10.0 ** math.floor(math.log10(least))
    return next((f * power for f in (1, 2, 5) if f * power >= least * (1 - 1e-9)), 10 * power)
