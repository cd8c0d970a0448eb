"""The report page, as text."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable
from pathlib import Path

from distbelief.observe.page import page
from distbelief.observe.record import read_record

MakeRun = Callable[..., Path]
BAD = "</script><img src=x onerror=alert(1)>"


def of(*folders: Path) -> str:
    return page([read_record(folder) for folder in folders], 0.0)


def test_one_run(make_run: MakeRun) -> None:
    text = of(make_run())
    assert "<title>run</title>" in text
    for title in (
        "Loss over images",
        "Loss over time",
        "Averaged weights over images",
        "Averaged weights over time",
        "Throughput, images a second",
        "Traffic of each shard",
        "Share of the pushes by staleness",
        "Mean staleness over time",
    ):
        assert text.count(title) >= 1
    assert text.count("nothing yet") == 0
    for cell in ("finished", "290 of 300", "top-1 50.00%, top-5 75.00% of 64 images", "1,234"):
        assert f"<td>{cell}</td>" in text
    assert "What differs" not in text
    assert "data-run=" not in text  # with nothing to choose from there is no legend


def test_runs_compared(make_run: MakeRun) -> None:
    a = make_run("a", seed=1, epochs=3)
    b = make_run("b", seed=2, epochs=3)
    text = of(a, b)
    assert "2 runs compared" in text
    assert [f'data-run="{run}"' in text for run in (0, 1, 2)] == [True, True, False]
    differences = text.partition("What differs")[2].partition("</table>")[0]
    assert re.findall(r'<th scope="row">(\w+)</th><td>(\w+)</td><td>(\w+)</td>', differences) == [
        ("seed", "1", "2")
    ]
    assert "The configurations are the same." in of(a, make_run("c", seed=1, epochs=3))


def test_folders_of_the_same_name_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    a, b = make_run("a"), make_run("x/a")
    text = of(a, b)
    found = re.search(r'data-runs="([^"]*)"', text)
    assert found is not None
    assert json.loads(html.unescape(found[1])) == [str(a), str(b)]


def test_a_run_that_failed_early_and_one_that_has_only_begun(make_run: MakeRun) -> None:
    failed = make_run("failed", events=[{"t": 1.0, "kind": "failure", "cause": "no room"}])
    begun = make_run("begun", events=[])
    for text in (of(failed), of(begun), of(failed, begun)):
        assert text.count("nothing yet") >= 8
    assert "failed: no room" in of(failed)
    assert "<td>running</td>" in of(begun)


def test_nothing_is_fetched_and_only_our_script_runs(make_run: MakeRun) -> None:
    text = of(make_run("a"), make_run("b"))
    assert re.findall(r"""(?:src|href)=|url\(|@import|https?://""", text) == []
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert f'content="{policy}"' in text


def test_what_runs_contain_is_escaped(make_run: MakeRun) -> None:
    events = [
        {"t": 1.0, "kind": "replica_joined", "replica": 0, "host": BAD, "pid": 1},
        {"t": 2.0, "kind": "replica_lost", "replica": 0, "cause": BAD, "items_returned": []},
        {"t": 3.0, "kind": "failure", "cause": BAD},
    ]
    folder = make_run("<b>&", events=events, recipe=BAD)
    text = of(folder, make_run())
    assert BAD not in text
    assert "<img" not in text
    assert "<b>" not in text
    assert text.count("<script>") == 1
    assert html.escape(BAD) in text


def test_a_run_that_was_resumed_is_marked(make_run: MakeRun) -> None:
    text = of(make_run())
    assert "resumed from snapshot 2 at 100 images" in text
    assert "8s</td><td>resumed" in text


def test_rows_of_the_timeline_are_in_the_order_of_their_numbers(make_run: MakeRun) -> None:
    joined = [
        {"t": 1.0, "kind": "replica_joined", "replica": n, "host": "h", "pid": 1}
        for n in (10, 9, 2)
    ]
    shard = {"t": 1.0, "kind": "shard_started", "shard": 0, "incarnation": 1}
    text = of(make_run(events=[shard, *joined]))
    rows = re.findall(r">((?:replica|shard) \d+)</text>", text)
    assert rows == ["replica 2", "replica 9", "replica 10", "shard 0"]


def test_the_events_shown_are_not_without_end(make_run: MakeRun) -> None:
    aside = [{"t": float(i), "kind": "set_aside", "item": i, "reason": "norm"} for i in range(250)]
    text = of(make_run(events=aside))
    assert text.count("set aside: norm") == 200
    assert "and 50 more in events.jsonl" in text
