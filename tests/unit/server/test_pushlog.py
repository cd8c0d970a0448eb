"""The push log: what is written is read, and damage is told from a torn end."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.errors import DataError
from distbelief.faults.files import FULL, FaultyStorage, FileFault
from distbelief.server.pushlog import (
    LogEntry,
    LogHeader,
    PushLog,
    SetAside,
    incarnation_of,
    read_log,
)
from distbelief.storage import LocalStorage, Storage

HEADER = LogHeader(shard=1, n_shards=3, begin=10, end=20, incarnation=2)
NAME = "shard-00001-of-00003.0002.jsonl"


def read_at(path: Path) -> tuple[LogHeader, Iterator[LogEntry | SetAside]]:
    """The log of that path in a run's folder."""
    return read_log(LocalStorage(path.parent.parent), path.name)


def entry(item: int, clock: int, skipped: tuple[int, ...] = ()) -> LogEntry:
    return LogEntry(
        item=item, clock=clock, base=(2, 0), rate=0.1, replica=4, examples=8, skipped=skipped
    )


PUSH = (
    '"item": 7, "clock": 1, "base": [2, 0], "rate": 0.1, "replica": 4, "examples": 8, "skipped": []'
)
FLAWS = (  # of a name that comes twice, JSON takes the last
    '"item": "seven"',
    '"item": null',
    '"clock": []',
    '"base": [2]',
    '"base": 2',
    '"base": ["a", "b"]',
    '"rate": "fast"',
    '"rate": null',
    '"replica": {}',
    '"examples": "some"',
    '"skipped": 3',
    '"skipped": ["a"]',
)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A log of three lines after its header."""
    log = PushLog(LocalStorage(tmp_path), HEADER)
    log.append(entry(7, 1, (3, 5)))
    log.set_aside(9, 'not_finite, 3 times, "quoted"\nwith a second line')
    log.append(entry(8, 2))
    log.close()
    return tmp_path / "pushes" / NAME


def test_what_is_written_is_read(written: Path) -> None:
    header, entries = read_at(written)
    assert header == HEADER
    assert list(entries) == [
        entry(7, 1, (3, 5)),
        SetAside(9, 'not_finite, 3 times, "quoted"\nwith a second line'),
        entry(8, 2),
    ]


def test_a_log_of_either_storage_says_what_it_rests_on(storage: Storage) -> None:
    header = LogHeader(
        shard=0,
        n_shards=1,
        begin=0,
        end=30,
        incarnation=4,
        snapshot=17,
        clock=9,
        sources=((0, 2, 3, 9), (1, 2, 3, 8)),
    )
    log = PushLog(storage, header)
    log.append(entry(7, 10))
    log.sync()
    log.set_aside(8, "norm")
    log.close()
    (name,) = storage.logs("pushes")
    assert name == header.file_name
    found, entries = read_log(storage, name)
    assert found == header
    assert list(entries) == [entry(7, 10), SetAside(8, "norm")]


@pytest.mark.parametrize("sources", ["3", "[3]", "[[1, 2, 3]]", '[["a", 1, 1, 1]]', "null"])
def test_sources_of_another_kind_are_no_header(sources: str, written: Path) -> None:
    first, *rest = written.read_text().split("\n")
    flawed = first.replace('"sources": []', f'"sources": {sources}')
    written.write_text("\n".join([flawed, *rest]))
    with pytest.raises(DataError, match="line 1 is no header"):
        read_at(written)


def test_a_log_of_an_earlier_version_names_no_sources(written: Path) -> None:
    first, *rest = written.read_text().split("\n")
    written.write_text("\n".join([first.replace(', "sources": []', ""), *rest]))
    assert read_at(written)[0] == HEADER


def test_the_file_is_what_scripts_read(written: Path) -> None:
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert lines[0] == {
        "shard": 1,
        "n_shards": 3,
        "begin": 10,
        "end": 20,
        "incarnation": 2,
        "snapshot": None,
        "clock": 0,
        "sources": [],
        "set_aside": [],
    }
    assert lines[1] == {
        "item": 7,
        "clock": 1,
        "base": [2, 0],
        "rate": 0.1,
        "replica": 4,
        "examples": 8,
        "skipped": [3, 5],
    }


def test_the_header_is_there_at_once_and_entries_after_a_flush(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    log = PushLog(storage, HEADER)
    assert list(read_log(storage, NAME)[1]) == []
    log.append(entry(0, 1))
    log.flush()
    assert list(read_log(storage, NAME)[1]) == [entry(0, 1)]
    log.close()


@pytest.mark.parametrize(
    ("name", "incarnation"),
    [
        (HEADER.file_name, 2),
        ("shard-00000-of-00001.0123.jsonl", 123),
        ("shard-00000-of-00001.jsonl", 0),
        ("notes.txt", 0),
        ("", 0),
    ],
)
def test_the_incarnation_is_in_the_name(name: str, incarnation: int) -> None:
    assert incarnation_of(name) == incarnation


def test_entries_wait_for_a_disk_that_has_no_room(storage: Storage) -> None:
    faulty = FaultyStorage(storage)
    log = PushLog(faulty, HEADER)
    log.append(entry(0, 1))
    log.sync()
    faulty.change([FULL])
    log.append(entry(1, 2))
    log.flush()
    assert log.failure == "No space left on device"
    log.set_aside(7, "norm")
    with pytest.raises(OSError, match="No space left on device"):
        log.sync()
    assert list(read_log(storage, NAME)[1]) == [entry(0, 1)]
    faulty.change(())
    log.sync()
    assert log.failure == ""
    assert list(read_log(storage, NAME)[1]) == [entry(0, 1), entry(1, 2), SetAside(7, "norm")]
    log.close()


@pytest.mark.parametrize("operation", ["open_log", "log.write", "log.sync"])
def test_a_log_whose_header_cannot_be_written_is_none(operation: Any, storage: Storage) -> None:
    faulty = FaultyStorage(storage, [FileFault(operations=(operation,))])
    with pytest.raises(OSError, match="Input/output error"):
        PushLog(faulty, HEADER)
    assert storage.logs("pushes") == []
    PushLog(faulty, HEADER).close()  # its name is free
    assert read_log(storage, NAME)[0] == HEADER


def test_what_had_been_set_aside_is_in_the_header(tmp_path: Path) -> None:
    header = replace(HEADER, snapshot=3, sources=((1, 3, 1, 4),), set_aside=(2, 9))
    storage = LocalStorage(tmp_path)
    PushLog(storage, header).close()
    assert read_log(storage, NAME)[0] == header


def test_a_log_is_never_written_over(written: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(FileExistsError):
        PushLog(LocalStorage(written.parent.parent), HEADER)
    assert written.read_bytes() == before


@settings(deadline=None, max_examples=50)
@given(rate=st.floats(0, 1e6), item=st.integers(0, 2**60))
def test_rates_and_numbers_survive_exactly(rate: float, item: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(Path(folder))
        wanted = LogEntry(
            item=item, clock=1, base=(1, item), rate=rate, replica=0, examples=1, skipped=(item,)
        )
        log = PushLog(storage, HEADER)
        log.append(wanted)
        log.close()
        assert list(read_log(storage, NAME)[1]) == [wanted]


def test_a_torn_last_line_is_left_out_wherever_it_is_torn(written: Path) -> None:
    whole = written.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(last, len(whole)):
        written.write_bytes(whole[:cut])
        assert len(list(read_at(written)[1])) == 2
    written.write_bytes(whole)
    assert len(list(read_at(written)[1])) == 3


@pytest.mark.parametrize(
    ("line", "replacement", "problem"),
    [
        (1, '{"item": 7, ', "line 2 is damaged: "),
        (2, "", "line 3 is damaged: "),
        (1, "[1, 2]", "line 2 is not an object"),
        (1, "{}", "line 2 is no push: "),
        (1, '{"item": 7}', "line 2 is no push: "),
        (1, '{"set_aside": 7}', "line 2 is no push: 'reason'"),
        *((1, f"{{{PUSH}, {flaw}}}", "line 2 is no push: ") for flaw in FLAWS),
        (0, "{}", "line 1 is no header: "),
        (0, '{"shard": 1, "surprise": 2}', "line 1 is no header: "),
        (0, "not json", "line 1 is damaged: "),
        (0, "3", "line 1 is not an object"),
    ],
)
def test_damage_is_named_by_file_and_line(
    line: int, replacement: str, problem: str, written: Path
) -> None:
    lines = written.read_text().split("\n")
    lines[line] = replacement
    written.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        list(read_at(written)[1])
    assert str(caught.value).startswith(f"{written}: {problem}")


def test_the_push_that_those_flaws_are_put_into_is_whole(written: Path) -> None:
    lines = written.read_text().split("\n")
    lines[1] = f"{{{PUSH}}}"
    written.write_text("\n".join(lines))
    assert next(read_at(written)[1]) == entry(7, 1)


def test_a_log_that_is_no_text_or_is_not_there_cannot_be_read(written: Path) -> None:
    written.write_bytes(b"\xff\xfe\x00")
    (written.parent / "folder").mkdir()
    for path in (written, written.parent / "folder", written.with_name("none.jsonl")):
        with pytest.raises(DataError) as caught:
            read_at(path)
        assert str(caught.value).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("contents", ["", '{"shard": 1'])
def test_a_log_without_a_whole_header_is_an_error(contents: str, written: Path) -> None:
    written.write_text(contents)
    with pytest.raises(DataError, match="line 1 is damaged"):
        read_at(written)


@pytest.mark.parametrize(
    ("shard", "n_shards", "incarnation", "name"),
    [
        (0, 1, 1, "shard-00000-of-00001.0001.jsonl"),
        (12, 100, 23, "shard-00012-of-00100.0023.jsonl"),
    ],
)
def test_file_names(shard: int, n_shards: int, incarnation: int, name: str) -> None:
    header = LogHeader(shard=shard, n_shards=n_shards, begin=0, end=1, incarnation=incarnation)
    assert header.file_name == name
