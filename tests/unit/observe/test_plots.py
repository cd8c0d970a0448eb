"""Plots as SVG."""

from __future__ import annotations

import html
import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from distbelief.observe.plots import (
    Chart,
    Line,
    bars_figure,
    chart_figure,
    timeline_figure,
)
from distbelief.observe.series import Life

BAD = '<script>alert("x")</script>&\''


def parsed(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(figure)


def data(figure: str) -> dict[str, Any]:
    found = re.search(r'data-plot="([^"]*)"', figure)
    assert found is not None
    loaded: dict[str, Any] = json.loads(html.unescape(found[1]))
    return loaded


def chart(lines: list[Line], **changes: Any) -> str:
    fields: dict[str, Any] = {"title": "t", "x_label": "x", "x": "count", "y": "number"}
    return chart_figure(Chart(**{**fields, "lines": lines, **changes}))


def texts(figure: str, kind: str) -> list[str]:
    return [e.text or "" for e in parsed(figure).iter("text") if e.get("class") == kind]


def test_a_chart_has_its_lines_axes_and_data() -> None:
    figure = chart(
        [
            Line(run=1, name="loss", points=[(10.0, 2.0), (30.0, 1.0)]),
            Line(run=0, name="raw", points=[(10.0, 9.0), (30.0, 1.0)], look="faint"),
        ],
        x_label="images applied",
    )
    lines = {e.get("class"): e.get("points") for e in parsed(figure).iter("polyline")}
    assert set(lines) == {"line run run-1", "faint run run-0"}
    # From 0 to 30 along, and up to 8% above the largest value of what is no background.
    first, last = (p.split(",") for p in (lines["line run run-1"] or "").split())
    assert float(first[0]) == pytest.approx(54 + 492 / 3, abs=0.1)
    assert (float(last[0]), float(last[1])) == (546.0, pytest.approx(210 - 200 / 2.16, abs=0.1))
    # The background's outlier is cut off at the top.
    assert (lines["faint run run-0"] or "").split()[0].endswith(",10.0")
    assert texts(figure, "label") == ["images applied"]
    found = data(figure)
    assert found["x"] == [0.0, 30.0, 54, 546]
    assert found["lines"] == [{"run": 1, "name": "loss", "points": [[10.0, 2.0], [30.0, 1.0]]}]


@pytest.mark.parametrize("points", [[], [(1.0, float("nan"))]])
def test_a_chart_of_nothing_says_so(points: list[tuple[float, float]]) -> None:
    figure = chart([Line(run=0, name="loss", points=points)])
    assert texts(figure, "label") == ["nothing yet"]
    assert "data-plot" not in figure


def test_a_single_point_is_a_dot() -> None:
    figure = chart([Line(run=0, name="loss", points=[(0.0, 0.0)])])
    assert len(list(parsed(figure).iter("circle"))) == 1


def test_a_chart_marks_moments_within_it() -> None:
    figure = chart(
        [Line(run=0, name="n", points=[(0.0, 1.0), (10.0, 1.0)])],
        marks=[(0, 5.0, "died"), (0, 50.0, "later")],
    )
    assert [e.text for e in parsed(figure).iter("title")] == ["died"]


def test_bars_are_shares_of_each_run() -> None:
    figure = bars_figure("t", "staleness", {0: {0: 1, 2: 3}, 1: {}, 2: {0: 10}})
    rects = [(e.get("class"), e.find("title")) for e in parsed(figure).iter("rect")]
    told = [(kind, title.text) for kind, title in rects if title is not None]
    assert told == [
        ("bar run run-0", "staleness 0: 1 pushes, 25.0%"),
        ("bar run run-0", "staleness 2: 3 pushes, 75.0%"),
        ("bar run run-2", "staleness 0: 10 pushes, 100.0%"),
    ]
    heights = [float(e.get("height") or 0) for e in parsed(figure).iter("rect")]
    assert heights[1] == pytest.approx(3 * heights[0], abs=0.2)
    assert texts(bars_figure("t", "x", {0: {}}), "label") == ["nothing yet"]


def test_a_timeline_has_a_row_for_each_name_and_a_cross_for_each_death() -> None:
    lives = [
        Life("replica 0", "h", 0.0, 5.0, "lost", "killed"),
        Life("replica 1", "h", 1.0, 10.0, "running"),
        Life("replica 0", "h", 6.0, 10.0, "ended"),
    ]
    figure = timeline_figure("run", 3, lives, {"snapshots": [(2.0, "one")], "resumed": []}, 10.0)
    names = [t for t in texts(figure, "tick") if not t[0].isdigit()]
    assert names == ["replica 0", "replica 1", "snapshots"]
    assert len(list(parsed(figure).iter("rect"))) == 3
    (cross,) = (e for e in parsed(figure).iter("path") if e.get("class") == "cross")
    title = cross.find("title")
    assert title is not None
    assert title.text == "replica 0 lost: killed"
    assert texts(timeline_figure("run", 0, [], {}, 0.0), "label") == ["nothing yet"]


def test_everything_is_escaped() -> None:
    line = Line(run=0, name=BAD, points=[(0.0, 1.0), (1.0, 2.0)])
    figures = [
        chart([line], title=BAD, x_label=BAD, marks=[(0, 0.5, BAD)]),
        bars_figure(BAD, BAD, {0: {0: 1}}),
        timeline_figure(BAD, 0, [Life(BAD, BAD, 0.0, 1.0, "lost", BAD)], {BAD: [(0.5, BAD)]}, 1.0),
    ]
    for figure in figures:
        assert "<script" not in figure
        caption = parsed(figure).find("figcaption")
        assert caption is not None
        assert caption.text == BAD
    assert data(figures[0])["lines"][0]["name"] == BAD
