"""The events' file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distbelief.observe.events import EventLog, read_events


def test_an_event_has_its_time_kind_and_fields(tmp_path: Path) -> None:
    times = iter([100.0, 101.23456, 250.0])
    log = EventLog(tmp_path / "events.jsonl", 100.0, clock=lambda: next(times))
    log.emit("started", replicas=2)
    log.emit("pushed", item=3, losses={"loss": 0.5})
    log.emit("finished")
    log.close()
    assert read_events(tmp_path / "events.jsonl") == [
        {"t": 0.0, "kind": "started", "replicas": 2},
        {"t": 1.235, "kind": "pushed", "item": 3, "losses": {"loss": 0.5}},
        {"t": 150.0, "kind": "finished"},
    ]


def test_an_event_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, 0.0, clock=lambda: 1.0)
    assert read_events(path) == []
    log.emit("started")
    assert read_events(path) == [{"t": 1.0, "kind": "started"}]
    log.close()


def test_several_logs_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first = EventLog(path, 0.0, clock=lambda: 1.0)
    second = EventLog(path, 0.0, clock=lambda: 2.0)
    first.emit("a")
    second.emit("b")
    first.emit("c")
    first.close()
    second.close()
    assert [event["kind"] for event in read_events(path)] == ["a", "b", "c"]


def test_lines_of_many_threads_are_whole(
    tmp_path: Path, in_threads: Callable[..., list[Any]]
) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, 0.0, clock=lambda: 1.0)

    def emit(thread: int) -> None:
        for i in range(100):
            log.emit("event", thread=thread, i=i, text="x" * 500)

    in_threads([lambda t=t: emit(t) for t in range(4)])
    log.close()
    found = sorted((event["thread"], event["i"]) for event in read_events(path))
    assert found == [(thread, i) for thread in range(4) for i in range(100)]


def test_a_line_break_in_a_field_does_not_break_the_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, 0.0, clock=lambda: 1.0)
    log.emit("lost", cause="first\nsecond")
    log.close()
    assert len(path.read_text().splitlines()) == 1
    assert read_events(path)[0]["cause"] == "first\nsecond"


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole = json.dumps({"t": 1.0, "kind": "a"}) + "\n"
    for cut in range(1, len(whole)):
        path.write_text(whole + whole[:cut])
        assert read_events(path) == [{"t": 1.0, "kind": "a"}]


def test_damage_before_the_end_is_not_hidden(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"t": 1.0, "ki\n{"t": 2.0, "kind": "b"}\n')
    with pytest.raises(json.JSONDecodeError):
        read_events(path)
