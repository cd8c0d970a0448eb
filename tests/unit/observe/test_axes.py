"""Scales and their ticks."""

from __future__ import annotations

import pytest

from distbelief.observe.axes import Scale, Unit, formatted


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "count", "0"),
        (999, "count", "999"),
        (12_500, "count", "12.5k"),
        (3_000_000, "count", "3M"),
        (0.25, "number", "0.25"),
        (90, "seconds", "1m30s"),
        (0.125, "share", "12.5%"),
    ],
)
def test_formatted(value: float, unit: Unit, text: str) -> None:
    assert formatted(value, unit) == text


@pytest.mark.parametrize(
    ("high", "unit", "ticks"),
    [
        (10, "number", (0, 2, 4, 6, 8, 10)),
        (1.0, "share", (0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (300, "seconds", (0, 60, 120, 180, 240, 300)),
        (86_400, "seconds", (0, 21_600, 43_200, 64_800, 86_400)),
        (0, "number", (0, 0.2, 0.4, 0.6, 0.8, 1.0)),  # an axis needs a length
    ],
)
def test_ticks_are_round_numbers(high: float, unit: Unit, ticks: tuple[float, ...]) -> None:
    scale = Scale.of(0, high, unit, 0, 400)
    assert scale.ticks == pytest.approx(ticks)
    assert (scale(scale.low), scale(scale.high)) == (0, 400)
