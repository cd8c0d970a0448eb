"""A faulty storage: the chosen call fails, as the disk would have it, and the others do not."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distbelief.faults.files import FULL, OPERATIONS, READ_ONLY, FaultyStorage, FileFault
from distbelief.faults.points import InjectedError
from distbelief.storage import LocalStorage, Storage

CALLS: dict[str, Callable[[Storage], object]] = {
    "write": lambda s: s.write("file", b"x"),
    "read": lambda s: s.read("file"),
    "exists": lambda s: s.exists("file"),
    "names": lambda s: s.names(),
    "remove": lambda s: s.remove("other"),
    "open_log": lambda s: s.open_log("b.jsonl", new=False).close(),
    "read_log": lambda s: s.read_log("a.jsonl"),
    "logs": lambda s: s.logs(""),
    "free_nbytes": lambda s: s.free_nbytes(),
}


@pytest.fixture
def inner(tmp_path: Path) -> LocalStorage:
    """A folder with a file and a log."""
    inner = LocalStorage(tmp_path)
    inner.write("file", b"old")
    log = inner.open_log("a.jsonl", new=True)
    log.write("1\n")
    log.close()
    return inner


def test_without_a_plan_it_is_the_storage(storage: Storage) -> None:
    faulty = FaultyStorage(storage)
    faulty.write("folder/file", b"a", b"b")
    log = faulty.open_log("folder/a.jsonl", new=True)
    log.write("1\n")
    log.flush()
    log.sync()
    assert log.failure == ""
    log.close()
    assert (faulty.url, faulty.read("folder/file")) == (storage.url, b"ab")
    assert faulty.exists("folder/file")
    assert faulty.names("folder") == storage.names("folder")
    assert faulty.logs("folder") == ["a.jsonl"]
    assert faulty.read_log("folder/a.jsonl") == "1\n"
    assert faulty.free_nbytes() is None or faulty.free_nbytes() == storage.free_nbytes()
    faulty.remove("folder")
    assert storage.names("folder") == []
    with pytest.raises(FileNotFoundError):
        faulty.read("folder/file")
    assert faulty.n_injected == 0


@pytest.mark.parametrize("operation", CALLS)
def test_the_chosen_operation_fails_at_the_chosen_call(operation: Any, inner: Storage) -> None:
    faulty = FaultyStorage(inner, [FileFault(operations=(operation,), nth=2)])
    failed: list[tuple[object, ...]] = []
    for turn in (1, 2, 3):
        for name, call in CALLS.items():
            try:
                call(faulty)
            except OSError as error:
                failed.append((turn, name, error.errno, error.strerror))
    assert failed == [(2, operation, errno.EIO, "Input/output error")]
    assert faulty.n_injected == 1


def test_every_call_can_be_made_to_fail_by_its_number(inner: Storage) -> None:
    def go(storage: Storage) -> None:
        for call in CALLS.values():
            call(storage)

    faulty = FaultyStorage(inner)
    go(faulty)
    calls = faulty.calls
    assert {operation for operation, _ in calls} == {*CALLS, "log.close"}
    for number in range(1, len(calls) + 1):
        faulty = FaultyStorage(inner, [FileFault(nth=number)])
        with pytest.raises(OSError, match="Input/output"):
            go(faulty)
        assert faulty.calls == calls[:number]
    faulty = FaultyStorage(inner, [FileFault(nth=len(calls) + 1)])
    go(faulty)
    assert faulty.n_injected == 0


def test_a_lasting_fault_fails_from_there_on_until_the_plan_is_another(inner: Storage) -> None:
    faulty = FaultyStorage(inner, [FileFault(operations=("write",), nth=2, lasting=True)])
    faulty.write("file", b"1")
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            faulty.write("file", b"2")
    faulty.change(())
    faulty.write("file", b"3")
    faulty.change([FileFault(operations=("write",), nth=2)])  # whose counts begin anew
    faulty.write("file", b"4")
    with pytest.raises(OSError, match="Input/output"):
        faulty.write("file", b"5")
    assert (inner.read("file"), faulty.n_injected) == (b"4", 4)


def test_files_whose_names_do_not_match_are_not_counted(inner: Storage) -> None:
    fault = FileFault(operations=("write",), names="snapshots/*.safetensors", nth=2)
    faulty = FaultyStorage(inner, [fault])
    for name in ("file", "snapshots/000000/a.safetensors", "snapshots/000000/manifest.json"):
        faulty.write(name, b"x")
    with pytest.raises(OSError, match="Input/output"):
        faulty.write("snapshots/000001/a.safetensors", b"x")
    assert inner.names("snapshots") == ["000000"]


def test_a_write_that_fails_leaves_the_old_file_and_a_torn_one_half_of_the_new(
    inner: Storage,
) -> None:
    for torn, left in ((False, b"old"), (True, b"new ")):
        faulty = FaultyStorage(inner, [FileFault(operations=("write",), torn=torn)])
        with pytest.raises(OSError, match="Input/output"):
            faulty.write("file", b"new ", b"file")
        assert inner.read("file") == left


@pytest.mark.parametrize("torn", [False, True])
def test_after_its_death_a_process_does_nothing_any_more(torn: bool, inner: Storage) -> None:
    faulty = FaultyStorage(inner, [FileFault(operations=("write",), torn=torn, dies=True)])
    log = faulty.open_log("b.jsonl", new=True)
    log.write("1\n")
    with pytest.raises(InjectedError, match="write of file"):
        faulty.write("file", b"new ", b"file")
    assert inner.read("file") == (b"new " if torn else b"old")
    later: list[Callable[[], object]] = [lambda c=call: c(faulty) for call in CALLS.values()]
    for call in (*later, log.flush, log.sync, lambda: log.write("2\n")):
        with pytest.raises(InjectedError, match="in a process that is dead"):
            call()
    assert (inner.exists("file"), inner.read_log("b.jsonl")) == (True, "")
    assert faulty.n_injected == 1
    faulty.change(())
    log.close()


def test_on_a_full_disk_what_is_there_can_be_read_and_removed(inner: Storage) -> None:
    faulty = FaultyStorage(inner, [FULL])
    for name, call in CALLS.items():
        if name in ("write", "open_log"):
            with pytest.raises(OSError, match="No space left on device") as caught:
                call(faulty)
            assert caught.value.errno == errno.ENOSPC
        else:
            call(faulty)


def test_in_a_folder_turned_read_only_nothing_is_removed_either(inner: Storage) -> None:
    inner.write("other", b"x")
    faulty = FaultyStorage(inner, [READ_ONLY])
    for name, call in CALLS.items():
        if name in ("write", "open_log", "remove"):
            with pytest.raises(OSError, match="Read-only file system") as caught:
                call(faulty)
            assert caught.value.errno == errno.EROFS
        else:
            call(faulty)
    assert inner.read("other") == b"x"


def test_lines_wait_for_the_disk_and_are_there_once_each(storage: Storage) -> None:
    faulty = FaultyStorage(storage)
    log = faulty.open_log("a.jsonl", new=True)
    log.write("1\n")
    log.sync()
    faulty.change([FULL])
    log.write("2\n")
    log.flush()
    assert log.failure == "No space left on device"
    with pytest.raises(OSError, match="No space left on device"):
        log.sync()
    log.write("3\n")
    assert storage.read_log("a.jsonl") == "1\n"
    faulty.change(())
    assert log.failure == "No space left on device"  # nobody has tried again yet
    log.sync()
    assert (log.failure, storage.read_log("a.jsonl")) == ("", "1\n2\n3\n")
    log.close()


@pytest.mark.parametrize("operation", ["log.write", "log.sync", "log.close"])
def test_a_logs_calls_are_in_the_plan(operation: Any, inner: Storage) -> None:
    faulty = FaultyStorage(inner, [FileFault(operations=(operation,), names="b.*")])
    other, log = (faulty.open_log(name, new=True) for name in ("c.jsonl", "b.jsonl"))
    for each in (other, log):
        calls = {
            "log.write": lambda log=each: log.write("1\n"),
            "log.flush": each.flush,
            "log.sync": each.sync,
            "log.close": each.close,
        }
        for name, call in calls.items():
            if each is log and name == operation:
                with pytest.raises(OSError, match="Input/output"):
                    call()
            else:
                call()
    log.close()
    assert faulty.n_injected == 1


def test_a_copy_of_another_process_has_the_plan_and_counts_anew(inner: Storage) -> None:
    faulty = FaultyStorage(inner, [FileFault(operations=("write",), nth=2)])
    faulty.write("file", b"1")
    copy = pickle.loads(pickle.dumps(faulty))
    assert (copy.url, copy.calls) == (inner.url, [])
    for storage in (copy, faulty):
        if storage is copy:
            storage.write("file", b"2")
        with pytest.raises(OSError, match="Input/output"):
            storage.write("file", b"3")


def test_threads_calls_are_counted_once_each(
    inner: Storage, in_threads: Callable[..., list[Any]]
) -> None:
    faulty = FaultyStorage(inner, [FileFault(operations=("read",), nth=100, lasting=True)])

    def reads() -> int:
        n_failed = 0
        for _ in range(50):
            try:
                faulty.read("file")
            except OSError:
                n_failed += 1
        return n_failed

    assert sum(in_threads([reads] * 4)) == faulty.n_injected == 101
    assert faulty.calls == [("read", "file")] * 200


def test_a_plan_that_means_nothing_is_refused() -> None:
    operations: Any = ("wirte",)
    with pytest.raises(ValueError, match=r"operations are write, read, .*; not \['wirte'\]"):
        FileFault(operations=operations)
    with pytest.raises(ValueError, match="not none"):
        FileFault(operations=())
    with pytest.raises(ValueError, match="counted from 1, not from 0"):
        FileFault(nth=0)
    assert FileFault().operations == OPERATIONS
