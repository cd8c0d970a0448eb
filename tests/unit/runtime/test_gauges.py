"""Rates over the last seconds."""

import pytest

from distbelief.runtime.gauges import RATE_WINDOW_S, Throughput


@pytest.mark.parametrize(
    ("points", "now", "mean"),
    [
        ([], 0.0, 0.0),
        ([(0, 0)], 0.0, 0.0),
        ([(1, 100)], 0.0, 0.0),
        ([(0, 0), (1, 0), (2, 0)], 0.0, 0.0),
        # What passes before the first example counts in neither.
        ([(0, 0), (10, 100), (20, 300)], 20.0, 20.0),
        ([(0, 0), (90, 0), (100, 100), (104, 300)], 50.0, 50.0),
        # Time in which nothing came lowers the present, and not the mean.
        ([(10, 100), (14, 300), (20, 300)], 20.0, 50.0),
        ([(10, 100), (20, 300), (40, 300)], 0.0, 20.0),
        # The present is that of the last 20 seconds.
        ([(0, 0), (10, 100), (20, 200), (30, 300), (40, 900)], 35.0, 80 / 3),
        # Of two points that are far apart both are kept.
        ([(10, 100), (100, 1000)], 10.0, 10.0),
        # No time has passed.
        ([(10, 100), (10, 200)], 0.0, 0.0),
        # Some was lost: the present begins again, and the mean is of what has been kept.
        ([(10, 100), (14, 500), (15, 300)], 0.0, 40.0),
        ([(10, 100), (14, 500), (15, 300), (19, 500)], 50.0, 400 / 9),
        ([(10, 300), (15, 100)], 0.0, 0.0),
        ([(10, 300), (14, 700), (15, 0), (16, 0), (17, 100), (18, 200)], 100.0, 0.0),
    ],
)
def test_throughput(points: list[tuple[float, int]], now: float, mean: float) -> None:
    throughput = Throughput()
    for seconds, examples in points:
        throughput.note(seconds, examples)
    assert throughput.now() == pytest.approx(now)
    assert throughput.mean() == pytest.approx(mean)


def test_throughput_keeps_no_more_than_its_window() -> None:
    throughput = Throughput()
    for second in range(1000):
        throughput.note(second, 7 * second)
    assert len(throughput._recent) == RATE_WINDOW_S + 1
    assert throughput.now() == throughput.mean() == 7.0
