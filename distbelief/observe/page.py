"""The report of one run, or of several compared: one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from distbelief.observe.axes import Unit
from distbelief.observe.events import RECOVERIES
from distbelief.observe.plots import (
    Chart,
    Line,
    bars_figure,
    chart_figure,
    timeline_figure,
)
from distbelief.observe.record import Record, staleness_of
from distbelief.observe.report import duration
from distbelief.observe.series import (
    Axis,
    Done,
    Life,
    evaluation_points,
    incidents,
    items_done,
    lives,
    loss_points,
    shard_points,
    smoothed,
    staleness_points,
    throughput_points,
    waiting_points,
)
from distbelief.observe.tables import differences, flattened, names_of, summary_rows, table

MOST_INCIDENTS = 200
N_COLOURS = 8
AXES: dict[Axis, str] = {"examples": "images applied", "seconds": "time since the start"}


def page(records: Sequence[Record], written_at: float) -> str:
    """The page, as text.

    Args:
        records: The runs, in the order in which they are shown.
        written_at: Now, in seconds since the epoch.
    """
    names = names_of(records)
    title = names[0] if len(records) == 1 else f"{len(records)} runs compared"
    style = files("distbelief.observe").joinpath("assets/page.css").read_text(encoding="utf-8")
    script = files("distbelief.observe").joinpath("assets/page.js").read_text(encoding="utf-8")
    colours = "".join(f".run-{run}{{--c:var(--c{run % N_COLOURS})}}" for run in range(len(records)))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Nothing is fetched, and no script but our own runs, whatever a run's names contain.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    done = [items_done(record) for record in records]
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(written_at))
    body = [
        f"<h1>{escape(title)}</h1><p>distbelief, {when}</p>",
        _legend(names) if len(records) > 1 else "",
        "<h2>Summary</h2>",
        table(names, [summary_rows(record) for record in records]),
        differences(names, records) if len(records) > 1 else "",
        "<h2>Learning</h2>",
        _plots(_learning(records, done)),
        "<h2>Speed</h2>",
        _plots(_speed(records, done)),
        "<h2>Staleness</h2>",
        _plots(_staleness(records)),
        "<h2>Replicas, shards and what happened</h2>",
        *(_story(run, names[run], record) for run, record in enumerate(records)),
        "<h2>Configuration</h2><details><summary>Every option</summary>",
        table(names, [flattened(record.config["config"]) for record in records]),
        "</details>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}{colours}</style></head>\n"
        f'<body data-runs="{escape(json.dumps(names))}">\n'
        + "\n".join(body)
        + f"\n<script>{script}</script></body></html>\n"
    )


def _legend(names: Sequence[str]) -> str:
    buttons = [
        f'<button type="button" data-run="{run}" aria-pressed="true">'
        f'<span class="key run-{run}"></span>{escape(name)}</button>'
        for run, name in enumerate(names)
    ]
    return f'<div class="legend" role="group" aria-label="Runs shown">{"".join(buttons)}</div>'


def _plots(figures: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(figures)}</div>'


def _learning(records: Sequence[Record], done: Sequence[list[Done]]) -> list[str]:
    figures = []
    for axis, label in AXES.items():
        lines = []
        for run, items in enumerate(done):
            points = loss_points(items, axis)
            smooth = smoothed(points)
            if smooth is not points:
                lines.append(Line(run=run, name="loss", points=points, look="faint"))
            lines.append(Line(run=run, name="loss", points=smooth))
        figures.append(_chart(f"Loss over {_over(axis)}", axis, label, lines))
    for axis, label in AXES.items():
        lines = []
        for run, record in enumerate(records):
            top1 = evaluation_points(record, "top1", axis)
            top5 = evaluation_points(record, "top5", axis)
            lines.append(Line(run=run, name="top-1", points=top1, dots=True))
            lines.append(Line(run=run, name="top-5", points=top5, look="dashed"))
        title = f"Averaged weights over {_over(axis)}: top-1, dashed top-5"
        figures.append(
            chart_figure(
                Chart(
                    title=title,
                    x_label=label,
                    x="count" if axis == "examples" else "seconds",
                    y="share",
                    lines=lines,
                    y_most=1.0,
                )
            )
        )
    return figures


def _chart(title: str, axis: Axis, label: str, lines: Sequence[Line], y: Unit = "number") -> str:
    x: Unit = "count" if axis == "examples" else "seconds"
    return chart_figure(Chart(title=title, x_label=label, x=x, y=y, lines=lines))


def _over(axis: Axis) -> str:
    return "images" if axis == "examples" else "time"


def _speed(records: Sequence[Record], done: Sequence[list[Done]]) -> list[str]:
    lines = [
        Line(run=run, name="images/s", points=throughput_points(items))
        for run, items in enumerate(done)
    ]
    marks = [
        (run, i.t, i.text)
        for run, record in enumerate(records)
        for i in incidents(record)
        if i.kind.endswith("_lost") or i.kind == "resumed"
    ]
    figures = [
        chart_figure(
            Chart(
                title="Throughput, images a second",
                x_label=AXES["seconds"],
                x="seconds",
                y="number",
                lines=lines,
                marks=marks,
            )
        )
    ]
    for figure, title in (
        ("mb_per_second", "Traffic of each shard, MB a second"),
        ("queued", "Tasks that wait in each shard's queue"),
    ):
        lines = [
            Line(run=run, name=name, points=points)
            for run, record in enumerate(records)
            for name, points in shard_points(record, figure).items()
        ]
        figures.append(_chart(title, "seconds", AXES["seconds"], lines))
    lines = [
        Line(run=run, name="waiting", points=waiting_points(record))
        for run, record in enumerate(records)
    ]
    title = "Waiting for data, of the replicas' time so far"
    return [*figures, _chart(title, "seconds", AXES["seconds"], lines, y="share")]


def _staleness(records: Sequence[Record]) -> list[str]:
    counts = {run: staleness_of(record) for run, record in enumerate(records)}
    lines = [
        Line(run=run, name="mean", points=staleness_points(record))
        for run, record in enumerate(records)
    ]
    return [
        bars_figure("Share of the pushes by staleness", "staleness, in updates", counts),
        _chart("Mean staleness over time", "seconds", AXES["seconds"], lines),
    ]


def _story(run: int, name: str, record: Record) -> str:
    told = incidents(record)
    moments = {
        "evaluations": [
            (e["t"], f"top-1 {e['top1']:.2%} after epoch {e['epoch']}")
            for e in record.of("evaluation")
            if "top1" in e
        ],
        "snapshots": [
            (e["t"], f"snapshot {e.get('number', '?')} at {e.get('examples_applied', '?')} images")
            for e in record.of("snapshot")
        ],
        "replaced": [(i.t, i.text) for i in told if i.kind in RECOVERIES],
        "resumed": [(i.t, i.text) for i in told if i.kind == "resumed"],
    }
    figure = timeline_figure(name, run, sorted(lives(record), key=_row), moments, record.last_s)
    rows = "".join(
        f'<tr{_bad(i.kind)}><td class="when">{duration(i.t)}</td><td>{escape(i.text)}</td></tr>'
        for i in told[:MOST_INCIDENTS]
    )
    if len(told) > MOST_INCIDENTS:
        rows += f"<tr><td></td><td>and {len(told) - MOST_INCIDENTS} more in events.jsonl</td></tr>"
    listed = f'<div class="scroll"><table class="run run-{run}"><tbody>{rows}</tbody></table></div>'
    return _plots([figure]) + (listed if rows else "")


def _row(life: Life) -> tuple[str, int]:
    """Shards below replicas, each by number."""
    kind, _, number = life.name.rpartition(" ")
    return kind, int(number)


def _bad(kind: str) -> str:
    return ' class="failed"' if kind == "failure" or kind.endswith("_lost") else ""
