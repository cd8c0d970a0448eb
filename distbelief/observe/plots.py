"""Plots as SVG text: lines, bars, timelines. Colours come from the page's style."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from distbelief.observe.axes import Scale, Unit, formatted
from distbelief.observe.report import duration
from distbelief.observe.series import Life, Points

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 10, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series of a chart.

    Attributes:
        run: Number of the run, which chooses the colour.
        name: What it is, for whoever points at it.
        points: In the order of x.
        look: A line; a faint one, of which nothing is told; a dashed one. ``dots`` marks points.
        dots: Whether each point is marked.
    """

    run: int
    name: str
    points: Points
    look: Literal["line", "faint", "dashed"] = "line"
    dots: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Lines over one axis.

    Attributes:
        title: What is shown.
        x_label: Names the axis, with its unit.
        x: Unit of the axis; ``y`` likewise, from 0 on.
        lines: The series.
        marks: Moments to mark by an upright line, each of a run, with its text.
        y_most: End of the upright axis; by default the largest value's.
    """

    title: str
    x_label: str
    x: Unit
    y: Unit
    lines: Sequence[Line]
    marks: Sequence[tuple[int, float, str]] = ()
    y_most: float | None = None


def chart_figure(chart: Chart) -> str:
    """A figure with the chart, its title, and what a pointer shows as data of the figure."""
    drawn = [line for line in chart.lines if line.points]
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points if math.isfinite(y)]
    if not xs or not ys:
        return _figure(chart.title, _svg(chart.title, HEIGHT, _nothing()))
    if len(set(xs)) == 1 or chart.x in ("seconds", "count"):
        xs.append(0.0)
    # Faint lines may be cut off at the top: what matters is drawn over them.
    firm = [y for line in drawn if line.look != "faint" for _, y in line.points]
    x = Scale.of(min(xs), max(xs), chart.x, LEFT, WIDTH - RIGHT)
    top = chart.y_most or 1.08 * max((y for y in firm if math.isfinite(y)), default=max(ys))
    y = Scale.of(0.0, top or 1.0, chart.y, HEIGHT - BOTTOM, TOP)
    body = [_axes(x, y, chart.x_label)]
    for run, at, text in chart.marks:
        if x.low <= at <= x.high:
            body.append(
                f'<line class="mark {_run(run)}" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{TOP}" '
                f'y2="{HEIGHT - BOTTOM}"><title>{escape(text)}</title></line>'
            )
    body += [_line(line, x, y) for line in drawn]
    body.append(f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="-9" x2="-9"/>')
    data = {
        "x": [x.low, x.high, x.begin, x.end],
        "xUnit": chart.x,
        "yUnit": chart.y,
        "lines": [
            {
                "run": line.run,
                "name": line.name,
                "points": [[_short(px), _short(py)] for px, py in line.points],
            }
            for line in drawn
            if line.look != "faint"
        ],
    }
    return _figure(chart.title, _svg(chart.title, HEIGHT, "".join(body)), data)


def bars_figure(title: str, x_label: str, counts: Mapping[int, Mapping[int, int]]) -> str:
    """Histograms over whole numbers, a bar for each run beside the others'.

    Args:
        title: What is counted.
        x_label: What it is counted by.
        counts: By run, then by value.
    """
    totals = {run: sum(of_run.values()) for run, of_run in counts.items()}
    shown = {run: of_run for run, of_run in counts.items() if totals[run]}
    if not shown:
        return _figure(title, _svg(title, HEIGHT, _nothing()))
    most = max(max(of_run) for of_run in shown.values())
    share = {
        (run, value): n / totals[run]
        for run, of_run in shown.items()
        for value, n in of_run.items()
    }
    y = Scale.of(0.0, 1.08 * max(share.values()), "share", HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / (most + 1)
    width = min(36.0, 0.8 * step / len(shown))
    body = [_upright(y)]
    every = max(1, math.ceil((most + 1) / 12))
    for value in range(0, most + 1, every):
        middle = LEFT + (value + 0.5) * step
        body.append(_tick_text(middle, HEIGHT - BOTTOM + 16, str(value), "middle"))
    body.append(_label(x_label))
    for place, (run, of_run) in enumerate(shown.items()):
        offset = (place - len(shown) / 2) * width
        for value, n in sorted(of_run.items()):
            left = LEFT + (value + 0.5) * step + offset
            height = y.begin - y(n / totals[run])
            body.append(
                f'<rect class="bar {_run(run)}" x="{left:.1f}" width="{max(0.5, width - 1):.1f}" '
                f'y="{y.begin - height:.1f}" height="{height:.1f}"><title>'
                f"{escape(x_label)} {value}: {n:,} pushes, {n / totals[run]:.1%}</title></rect>"
            )
    return _figure(title, _svg(title, HEIGHT, "".join(body)))


def timeline_figure(
    title: str,
    run: int,
    lives: Sequence[Life],
    moments: Mapping[str, Sequence[tuple[float, str]]],
    end: float,
) -> str:
    """A bar for each life, a row for each kind of moment.

    Args:
        title: Of the figure.
        run: Number of the run, which chooses the colour.
        lives: A row for each name, in this order.
        moments: By the name of their row: when, and what.
        end: The last second.
    """
    names = list(dict.fromkeys(life.name for life in lives))
    rows = {name: i for i, name in enumerate([*names, *(n for n, some in moments.items() if some)])}
    if not rows:
        return _figure(title, _svg(title, HEIGHT, _nothing()))
    pitch = 20 if len(rows) <= 40 else 12
    height = TOP + pitch * len(rows) + BOTTOM
    left = 92
    x = Scale.of(0.0, max(end, 1e-3), "seconds", left, 2 * WIDTH - RIGHT)
    body = [_along(x, height, "time since the start")]
    for name, row in rows.items():
        body.append(_tick_text(left - 8, TOP + pitch * (row + 0.5) + 4, name, "end"))
    for life in lives:
        middle = TOP + pitch * (rows[life.name] + 0.5)
        x0, x1 = x(life.began), x(max(life.began, life.ended))
        tail = {"lost": f"lost: {life.cause}", "ended": "to the end", "running": "running"}
        text = f"{life.name} {life.where}: {duration(life.began)} to {duration(life.ended)}, "
        body.append(
            f'<rect class="life {_run(run)} {life.end}" x="{x0:.1f}" y="{middle - 5:.1f}" rx="2" '
            f'width="{max(2.0, x1 - x0):.1f}" height="10"><title>'
            f"{escape(text + tail[life.end])}</title></rect>"
        )
        if life.end == "lost":
            body.append(_cross(x1, middle, f"{life.name} {tail['lost']}"))
    for name, some in moments.items():
        for at, text in some:
            middle = TOP + pitch * (rows[name] + 0.5)
            body.append(
                f'<circle class="moment {_run(run)}" cx="{x(at):.1f}" cy="{middle:.1f}" r="4">'
                f"<title>{escape(f'{duration(at)}: {text}')}</title></circle>"
            )
    return _figure(title, _svg(title, height, "".join(body), 2 * WIDTH), wide=True)


def _axes(x: Scale, y: Scale, label: str) -> str:
    return _upright(y) + _along(x, HEIGHT, label)


def _upright(y: Scale) -> str:
    parts = []
    for tick in y.ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/>'
        )
        parts.append(_tick_text(LEFT - 7, y(tick) + 4, formatted(tick, y.unit), "end"))
    return "".join(parts)


def _along(x: Scale, height: int, label: str) -> str:
    floor = height - BOTTOM
    parts = [f'<line class="axis" x1="{x.begin}" x2="{x.end}" y1="{floor}" y2="{floor}"/>']
    for tick in x.ticks:
        at = x(tick)
        parts.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{floor}" y2="{floor + 4}"/>'
        )
        parts.append(_tick_text(at, floor + 16, formatted(tick, x.unit), "middle"))
    middle = (x.begin + x.end) / 2
    parts.append(f'<text class="label" x="{middle:.0f}" y="{height - 6}">{escape(label)}</text>')
    return "".join(parts)


def _label(text: str) -> str:
    middle = (LEFT + WIDTH - RIGHT) / 2
    return f'<text class="label" x="{middle:.0f}" y="{HEIGHT - 6}">{escape(text)}</text>'


def _tick_text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _line(line: Line, x: Scale, y: Scale) -> str:
    places = [(x(px), y(min(py, y.high))) for px, py in line.points if math.isfinite(py)]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
    drawn = f'<polyline class="{line.look} {_run(line.run)}" points="{path}"/>'
    if line.dots or len(places) == 1:
        drawn += "".join(
            f'<circle class="dot {_run(line.run)}" cx="{px:.1f}" cy="{py:.1f}" r="3"/>'
            for px, py in places
        )
    return drawn


def _cross(x: float, y: float, text: str) -> str:
    d = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
    return f'<path class="cross" d="{d}"><title>{escape(text)}</title></path>'


def _run(run: int) -> str:
    return f"run run-{run}"


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _nothing() -> str:
    return f'<text class="label" x="{WIDTH / 2:.0f}" y="{HEIGHT / 2:.0f}">nothing yet</text>'


def _svg(title: str, height: int, body: str, width: int = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'
    )


def _figure(
    title: str, svg: str, data: Mapping[str, object] | None = None, *, wide: bool = False
) -> str:
    attributes = f' data-plot="{escape(json.dumps(data))}"' if data else ""
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}{attributes}><figcaption>{escape(title)}</figcaption>{svg}</figure>"
