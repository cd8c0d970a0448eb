"""The tables of a report: how runs went, and how they were configured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from typing import Any

from distbelief.observe.record import Record, report_of
from distbelief.observe.report import duration, staleness_summary


def names_of(records: Sequence[Record]) -> list[str]:
    """Folders' own names, or their whole paths where two are alike."""
    short = [record.name for record in records]
    return short if len(set(short)) == len(short) else [record.url for record in records]


def table(names: Sequence[str], columns: Sequence[dict[str, str]]) -> str:
    """A column for each run, a row for each key that any of them has."""
    rows = dict.fromkeys(row for column in columns for row in column)
    head = "".join(
        f'<th scope="col"><span class="key run-{run}"></span>{escape(name)}</th>'
        for run, name in enumerate(names)
    )
    lines = [
        f'<tr><th scope="row">{escape(row)}</th>'
        + "".join(f"<td>{escape(column.get(row, ''))}</td>" for column in columns)
        + "</tr>"
        for row in rows
    ]
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def summary_rows(record: Record) -> dict[str, str]:
    """How a run went, by what a reader asks for first."""
    r, s = report_of(record), record.summary or {}
    word, cause = record.end
    stale = staleness_summary(r.staleness)
    validation = s.get("validation") or r.validation or {}
    refused = sum(r.refused.values())
    cluster = record.config["config"].get("cluster", {})
    rate = s.get("images_per_second", r.mean_images_per_second)
    loss = s.get("train_loss", r.losses.get("loss"))
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.started_at))
    rows = {
        "folder": record.url,
        "status": f"{word}: {cause}" if cause else word,
        "started": f"{started} on {record.config.get('host', '?')}",
        "took": duration(s.get("wall_seconds", record.last_s)),
        "images applied": f"{r.examples_applied:,} of {r.total_examples:,}",
        "images a second": f"{rate:,.1f}",
        "loss": f"{loss:.4f}" if loss is not None else "",
    }
    if "top1" in validation:
        rows["averaged weights"] = (
            f"top-1 {validation['top1']:.2%}"
            + (f", top-5 {validation['top5']:.2%}" if "top5" in validation else "")
            + (f" of {validation['n_examples']:,} images" if "n_examples" in validation else "")
        )
    rows["staleness"] = f"mean {stale['mean']:.2f}, p99 {stale['p99']}, most {stale['max']}"
    rows["pushes"] = f"{r.applied:,} applied, {r.repeated:,} repeated, {refused:,} refused"
    rows["replicas and shards"] = f"{cluster.get('replicas', '?')} and {cluster.get('shards', '?')}"
    rows["parameters"] = f"{record.config.get('parameters', 0):,}"
    if r.mean_waiting:
        rows["waiting for data"] = f"{r.mean_waiting:.1%} of the replicas' time"
    lost_shards = [e for e in record.of("shard_lost") if e.get("role") != "twin"]
    if lost := len(record.of("replica_lost")) + len(lost_shards):
        rows["lost"] = str(lost)
    versions = record.config.get("versions", {})
    rows["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return rows


def differences(names: Sequence[str], records: Sequence[Record]) -> str:
    """A table of the options that are not the same in all runs."""
    columns = [flattened(record.config["config"]) for record in records]
    keys = dict.fromkeys(key for column in columns for key in column)
    different = [
        key
        for key in keys
        if key != "run_dir" and len({column.get(key, "") for column in columns}) > 1
    ]
    if not different:
        return "<h2>What differs</h2><p>The configurations are the same.</p>"
    return "<h2>What differs</h2>" + table(
        names, [{key: column.get(key, "") for key in different} for column in columns]
    )


def flattened(values: dict[str, Any]) -> dict[str, str]:
    """Options by the names that the command line has for them, which need no prefix."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found.update(flattened(value))
        else:
            found[name] = "" if value is None else str(value)
    return found
