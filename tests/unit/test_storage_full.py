"""A log whose disk has no room: what waits is written once there is some, each line whole."""

from __future__ import annotations

import errno
import os
import resource
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distbelief.storage import LocalStorage, RemoteStorage, Storage, local, remote

FULL = OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def room_for(nbytes: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: of a write that would, the system takes a part."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", range(4, 13))
def test_wherever_the_room_ends_no_line_is_written_twice_or_left_half(
    room: int, tmp_path: Path
) -> None:
    storage = LocalStorage(tmp_path)
    log = storage.open_log("log.jsonl", new=True)
    log.write("aaa\n")
    log.flush()
    with room_for(room):
        log.write("bbb\n")
        log.flush()
        log.write("ccc\n")
        log.flush()
        assert log.failure == ("" if room == 12 else "File too large")
        assert storage.read_log("log.jsonl") == "aaa\nbbb\nccc\n"[:room]
    log.flush()
    assert (log.failure, storage.read_log("log.jsonl")) == ("", "aaa\nbbb\nccc\n")
    log.write("ddd\n")
    log.close()
    assert storage.read_log("log.jsonl") == "aaa\nbbb\nccc\nddd\n"


def test_a_sync_says_that_lines_are_not_durable_until_they_are(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    log = storage.open_log("log.jsonl", new=True)
    log.write("ä\n")
    with room_for(1):
        for _ in range(2):
            with pytest.raises(OSError, match="File too large") as caught:
                log.sync()
            assert caught.value.errno == errno.EFBIG
    log.sync()
    assert storage.read_log("log.jsonl") == "ä\n"
    log.close()


def test_what_is_left_at_the_end_and_has_no_room_is_told(tmp_path: Path) -> None:
    log = LocalStorage(tmp_path).open_log("log.jsonl", new=True)
    log.write("1\n2\n")
    with room_for(2), pytest.raises(OSError, match="File too large"):
        log.close()
    log.close()  # once is enough
    assert LocalStorage(tmp_path).read_log("log.jsonl") == "1\n"
    for call in (log.flush, log.sync, lambda: log.write("3\n")):
        with pytest.raises(ValueError, match="has been closed"):
            call()


def test_only_so_much_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "ROOM_NBYTES", 8)
    storage = LocalStorage(tmp_path)
    log = storage.open_log("log.jsonl", new=True)
    with room_for(1):
        log.write("111\n222\n")
        log.flush()  # takes one byte
        with pytest.raises(OSError, match="File too large"):
            log.write("33\n")
        log.write("\n")
    log.write("444\n")  # tries again, since there is no room for it otherwise
    log.close()
    assert storage.read_log("log.jsonl") == "111\n222\n\n444\n"


def test_many_lines_are_handed_on_unasked_and_not_tried_again_at_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "AT_ONCE_NBYTES", 8)
    storage = LocalStorage(tmp_path)
    log = storage.open_log("log.jsonl", new=True)
    log.write("111\n")
    assert storage.read_log("log.jsonl") == ""
    log.write("222\n")
    assert storage.read_log("log.jsonl") == "111\n222\n"
    with room_for(8):
        log.write("333\n444\n")
        assert log.failure == "File too large"
    log.write("555\n666\n")
    assert storage.read_log("log.jsonl") == "111\n222\n"  # until somebody asks
    log.flush()
    assert storage.read_log("log.jsonl").count("\n") == 6
    log.close()


def test_a_new_log_that_cannot_be_made_durable_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", raising(FULL))
        for new in (True, True, False):
            if not new:
                (tmp_path / "log.jsonl").write_text("1\n")
            with pytest.raises(OSError, match="No space left"):
                storage.open_log("log.jsonl", new=new)
            assert storage.exists("log.jsonl") is not new  # nothing of another's is removed
    log = storage.open_log("log.jsonl", new=False)
    log.close()
    assert storage.read_log("log.jsonl") == "1\n"


def raising(error: OSError) -> Callable[..., None]:
    def fail(*args: object) -> None:
        raise error

    return fail


def test_a_remote_log_says_why_lines_wait_and_takes_no_more_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "ROOM_NBYTES", 8)
    storage = RemoteStorage(f"memory://{uuid.uuid4()}")
    log = storage.open_log("log.jsonl", new=True)
    log.write("111\n")
    assert log.failure == ""
    with monkeypatch.context() as patch:
        patch.setattr(RemoteStorage, "write", raising(FULL))
        with pytest.raises(OSError, match="No space left"):
            log.sync()
        assert log.failure == "No space left on device"
        log.write("222\n")
        with pytest.raises(OSError, match="No space left"):
            log.write("3")
    log.sync()
    assert log.failure == ""
    log.write("444\n")
    log.close()
    assert storage.read_log("log.jsonl") == "111\n222\n444\n"


def test_lines_of_many_threads_wait_and_come_whole(
    tmp_path: Path, in_threads: Callable[..., list[Any]]
) -> None:
    storage: Storage = LocalStorage(tmp_path)
    log = storage.open_log("log.jsonl", new=True)
    half = threading.Barrier(4)

    def write(thread: int) -> None:
        for i in range(100):
            if i == 50:
                half.wait(60)
            log.write(f"{thread} {i} {'x' * 100}\n")
            log.flush()

    with room_for(5000):
        in_threads([lambda t=t: write(t) for t in range(4)])
        assert len(storage.read_log("log.jsonl")) == 5000
    log.close()
    lines = [line.split() for line in storage.read_log("log.jsonl").splitlines()]
    for thread in range(4):
        assert [int(i) for t, i, _ in lines if int(t) == thread] == list(range(100))
    assert {x for _, _, x in lines} == {"x" * 100}
