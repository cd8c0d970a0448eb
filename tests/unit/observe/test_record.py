"""A run, read from its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distbelief.errors import DataError
from distbelief.observe.record import newest_run, read_record, recoveries_of, report_of, silent_s
from distbelief.storage import storage_at

MakeRun = Callable[..., Path]
END = {"t": 9.0, "kind": "end", "status": "finished"}
INTERRUPTED = {"t": 8.0, "kind": "end", "status": "interrupted"}
FAILURE = {"t": 7.0, "kind": "failure", "cause": "no room"}
RESUMED = {"t": 8.5, "kind": "resumed", "snapshot": 1, "examples_applied": 50}


@pytest.mark.parametrize(
    ("events", "summary", "expected"),
    [
        ([], None, ("running", "")),
        ([END], None, ("finished", "")),
        ([INTERRUPTED], {"status": "interrupted"}, ("interrupted", "")),
        ([FAILURE], None, ("failed", "no room")),
        ([FAILURE, END], None, ("failed", "no room")),
        # Killed between its summary and its last event.
        ([], {"status": "failed", "cause": "x"}, ("failed", "x")),
        # A summary of each snapshot says nothing of the end.
        ([], {"status": "running"}, ("running", "")),
        # What came before a resumption is not the end, nor is the summary of that time.
        ([INTERRUPTED, RESUMED], {"status": "interrupted"}, ("running", "")),
        ([FAILURE, RESUMED, END], {"status": "failed"}, ("finished", "")),
    ],
)
def test_how_a_run_ended(
    events: list[dict[str, Any]],
    summary: dict[str, Any] | None,
    expected: tuple[str, str],
    make_run: MakeRun,
) -> None:
    assert read_record(make_run(events=events, summary=summary)).end == expected


def test_a_report_from_the_events(make_run: MakeRun) -> None:
    record = read_record(make_run())
    r = report_of(record)
    assert (record.name, record.recipe) == ("run", "quickstart")
    assert (r.finished, r.failure, r.epoch, r.n_epochs) == (True, "", 2, 3)
    assert (r.examples_applied, r.total_examples) == (290, 300)
    # Nothing goes on any more.
    assert (r.images_per_second, r.mean_images_per_second, r.left_s) == (0.0, 40.0, None)
    assert r.staleness == {0: 4, 2: 1}
    assert (r.applied, r.repeated, r.refused) == (29, 2, {"stale": 1})
    assert [(m["replica"], m["host"]) for m in r.replicas] == [(0, "h0"), (1, "h1")]
    assert (r.shards[0]["queued"], r.shards[0]["mb_per_second"]) == (3, 12.5)
    assert r.snapshot is not None
    assert (r.snapshot["number"], r.snapshot["t"]) == (2, 5.0)
    assert r.validation is not None
    assert (r.validation["top1"], r.validation["epoch"]) == (0.5, 1)
    assert r.run_dir == record.url


def test_a_run_that_goes_on_has_its_pace(make_run: MakeRun) -> None:
    record = read_record(make_run())
    going = read_record(make_run("going", events=list(record.events[:5])))
    r = report_of(going)
    assert (r.finished, r.images_per_second, r.left_s, r.epoch) == (False, 50.0, 3.5, 1)


def test_a_report_of_a_run_without_events(make_run: MakeRun) -> None:
    r = report_of(read_record(make_run(events=[])))
    assert (r.examples_applied, r.total_examples, r.losses) == (0, 300, {})
    assert (r.epoch, r.replicas, r.validation, r.snapshot) == (1, (), None, None)


def test_recoveries(make_run: MakeRun) -> None:
    (found,) = recoveries_of(read_record(make_run()))
    assert (found["t"], found["what"], found["seconds"]) == (4.5, "replica 1", 1.5)


def test_the_seconds_of_a_resumed_run_go_on(make_run: MakeRun) -> None:
    record = read_record(make_run())
    times = [event["t"] for event in record.events]
    assert times == sorted(times)
    assert record.of("resumed")[0]["t"] == 8.0
    assert record.last_s == 12.0


def test_how_long_nothing_has_been_written(make_run: MakeRun) -> None:
    folder = make_run()
    for file in folder.iterdir():
        os.utime(file, (500.0, 500.0))
    assert silent_s(read_record(folder), 530.0) == 30.0
    assert silent_s(read_record(folder), 100.0) == 0.0  # clocks of two hosts


def test_a_run_at_a_url(make_run: MakeRun) -> None:
    folder = make_run(events=[END])
    storage = storage_at("memory://observe-test/run")
    storage.write("config.json", (folder / "config.json").read_bytes())
    log = storage.open_log("events.jsonl", new=True)
    log.write((folder / "events.jsonl").read_text())
    log.close()
    try:
        record = read_record("memory://observe-test/run")
        assert (record.name, record.end[0]) == ("run", "finished")
        assert record.written_at == 1000.0 + 9.0
    finally:
        storage.remove("config.json")
        storage.remove("events.jsonl")


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (None, "is no run's folder: it has no config.json"),
        ("{", "config.json: is damaged"),
        ('{"config": {}}', "config.json: is damaged"),
        ('{"config": {}, "plan": {"n_items": 1}}', "config.json: is damaged"),
    ],
)
def test_what_is_no_run(config: str | None, problem: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(DataError, match=problem):
        read_record(tmp_path)
    with pytest.raises(DataError, match="is no run's folder"):
        read_record(tmp_path / "nowhere")


def test_a_damaged_summary_is_named(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary\.json: is damaged"):
        read_record(folder)


def test_the_newest_run_is_that_which_was_started_last(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run"):
        newest_run(tmp_path)
    make_run("b", started_at=10.0)
    make_run("a", started_at=30.0)
    make_run("c", started_at=20.0)
    (tmp_path / "other").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"started_at": None}))
    assert newest_run(tmp_path) == str(tmp_path / "a")
