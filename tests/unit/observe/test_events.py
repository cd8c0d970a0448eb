"""The events' file."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distbelief.errors import DataError
from distbelief.faults.files import FULL, FaultyStorage
from distbelief.observe.events import EventLog, read_events
from distbelief.storage import LocalStorage, RemoteStorage, Storage, local


def test_an_event_has_its_time_kind_and_fields(tmp_path: Path) -> None:
    times = iter([100.0, 101.23456, 250.0])
    storage = LocalStorage(tmp_path)
    log = EventLog(storage, 100.0, clock=lambda: next(times))
    log.emit("started", replicas=2)
    log.emit("pushed", item=3, losses={"loss": 0.5})
    log.emit("finished")
    log.close()
    assert read_events(storage) == [
        {"t": 0.0, "kind": "started", "replicas": 2},
        {"t": 1.235, "kind": "pushed", "item": 3, "losses": {"loss": 0.5}},
        {"t": 150.0, "kind": "finished"},
    ]


def test_an_event_is_there_at_once(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    log = EventLog(storage, 0.0, clock=lambda: 1.0)
    assert read_events(storage) == []
    log.emit("started")
    assert read_events(storage) == [{"t": 1.0, "kind": "started"}]
    log.close()


def test_several_logs_append_to_one_file(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    first = EventLog(storage, 0.0, clock=lambda: 1.0)
    second = EventLog(storage, 0.0, clock=lambda: 2.0)
    first.emit("a")
    second.emit("b")
    first.emit("c")
    first.close()
    second.close()
    assert [event["kind"] for event in read_events(storage)] == ["a", "b", "c"]


def test_lines_of_many_threads_are_whole(
    tmp_path: Path, in_threads: Callable[..., list[Any]]
) -> None:
    storage = LocalStorage(tmp_path)
    log = EventLog(storage, 0.0, clock=lambda: 1.0)

    def emit(thread: int) -> None:
        for i in range(100):
            log.emit("event", thread=thread, i=i, text="x" * 500)

    in_threads([lambda t=t: emit(t) for t in range(4)])
    log.close()
    found = sorted((event["thread"], event["i"]) for event in read_events(storage))
    assert found == [(thread, i) for thread in range(4) for i in range(100)]


def test_a_line_break_in_a_field_does_not_break_the_line(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    log = EventLog(storage, 0.0, clock=lambda: 1.0)
    log.emit("lost", cause="first\nsecond")
    log.close()
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 1
    assert read_events(storage)[0]["cause"] == "first\nsecond"


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    whole = json.dumps({"t": 1.0, "kind": "a"}) + "\n"
    for cut in range(1, len(whole)):
        (tmp_path / "events.jsonl").write_text(whole + whole[:cut])
        assert read_events(storage) == [{"t": 1.0, "kind": "a"}]


def test_damage_before_the_end_is_not_hidden(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    (tmp_path / "events.jsonl").write_text('{"t": 1.0, "ki\n{"t": 2.0, "kind": "b"}\n')
    with pytest.raises(DataError) as caught:
        read_events(storage)
    assert str(caught.value).startswith(f"{tmp_path / 'events.jsonl'}: line 1 is damaged: ")


@pytest.mark.parametrize("line", ["[]", "3", "{}", '{"t": 1.0}', '{"t": "soon", "kind": "a"}'])
def test_a_line_that_is_no_event_is_damage(line: str, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"t": 1.0, "kind": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match="line 2 is damaged"):
        read_events(LocalStorage(tmp_path))


def test_a_file_that_is_no_text_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_events(LocalStorage(tmp_path))


def test_a_run_that_is_resumed_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path, storage = tmp_path / "events.jsonl", LocalStorage(tmp_path)
    path.write_text('{"t": 1.0, "kind": "a"}\n{"t": 2.0, "ki')
    log = EventLog(storage, 0.0, clock=lambda: 3.0)
    log.emit("resumed", snapshot=1)
    log.close()
    assert [event["kind"] for event in read_events(storage)] == ["a", "resumed"]


def test_a_folder_without_events_has_none(tmp_path: Path) -> None:
    assert read_events(LocalStorage(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_events_of_a_remote_folder() -> None:
    storage = RemoteStorage(f"memory://{uuid.uuid4()}")
    for number in (1, 2):
        log = EventLog(storage, 0.0, clock=lambda: 1.0)
        log.emit("started", number=number)
        log.sync()
        log.emit("ended", number=number)
        log.close()
    assert [(e["kind"], e["number"]) for e in read_events(storage)] == [
        ("started", 1),
        ("ended", 1),
        ("started", 2),
        ("ended", 2),
    ]


def test_events_wait_for_a_disk_that_has_no_room_and_nobody_who_tells_has_to_catch(
    storage: Storage,
) -> None:
    faulty = FaultyStorage(storage)
    log = EventLog(faulty, 0.0, clock=lambda: 1.0)
    log.emit("one")
    assert (log.trouble, log.failure) == ("", "")
    faulty.change([FULL])
    log.emit("two")
    log.emit("three")
    assert log.trouble == f"cannot write to {storage.url}/events.jsonl: No space left on device"
    assert log.failure == ""
    with pytest.raises(OSError, match="No space left on device"):
        log.sync()
    faulty.change(())
    log.emit("four")
    assert log.trouble == ""
    log.close()
    assert [event["kind"] for event in read_events(storage)] == ["one", "two", "three", "four"]


def test_events_for_which_there_is_no_room_are_a_failure_and_end_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "ROOM_NBYTES", 3000)
    # A disk that is full in earnest.
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(local, "_cut_torn_line", lambda path: None)  # it has no end
    log = EventLog(LocalStorage(tmp_path), 0.0)
    log.emit("one", text="x" * 2000)
    expected = f"cannot write to {tmp_path}/events.jsonl: No space left on device"
    assert (log.trouble, log.failure) == (expected, "")
    log.emit("two", text="x" * 2000)
    assert log.failure == expected
    log.emit("three")
    log.close()
    assert log.failure == expected


def test_events_that_are_lost_at_the_end_are_a_failure(storage: Storage) -> None:
    faulty = FaultyStorage(storage)
    log = EventLog(faulty, 0.0)
    faulty.change([FULL])
    log.emit("one")
    log.close()
    assert log.failure == f"cannot write to {storage.url}/events.jsonl: No space left on device"
