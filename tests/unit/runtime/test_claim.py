"""One run at a time in a folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from distbelief.errors import ConfigError
from distbelief.runtime import claim as module
from distbelief.runtime.claim import NAME, STALE_S, claimed, held
from distbelief.storage import LocalStorage, RemoteStorage, Storage, storage_at, write_json

OTHERS = {"host": "other", "pid": 7, "word": "theirs"}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else claims a folder here but who is told to."""
    monkeypatch.setattr(module, "SETTLE_S", 0.0)


ME = f"process {os.getpid()} on {socket.gethostname()}"


def test_a_second_claim_is_refused_and_says_who_holds_it(storage: Storage) -> None:
    with claimed(storage):
        assert storage.exists(NAME)
        with pytest.raises(ConfigError) as caught, claimed(storage):
            raise AssertionError("must not come here")
        assert storage.exists(NAME)
        with pytest.raises(ConfigError), claimed(storage):
            raise AssertionError("nor here")
    assert caught.value.field == "run_dir"
    assert caught.value.problem == (
        f"{storage.url} is in use by {ME}; wait for its end (one that died lets go after 45 s at "
        f"the latest), or take another folder"
    )


def test_whether_a_folder_is_held(storage: Storage) -> None:
    """To look changes nothing, also for whoever claims it next."""
    assert not held(storage)
    with claimed(storage):
        assert held(storage)
        assert held(storage)
    assert not held(storage)
    with claimed(storage):
        pass


@pytest.mark.parametrize(("age_s", "expected"), [(0.0, True), (STALE_S + 1.0, False)])
def test_a_claim_that_was_not_renewed_holds_nothing(age_s: float, expected: bool) -> None:
    storage = RemoteStorage(f"memory://{uuid.uuid4()}/run")
    write_json(storage, NAME, {**OTHERS, "at": time.time() - age_s})
    assert held(storage) is expected


def test_a_claim_ends_with_its_block(storage: Storage) -> None:
    for _ in range(3):
        with claimed(storage):
            storage.write("config.json", b"{}")
        assert storage.exists("config.json")
        assert not storage.exists(NAME)


def test_a_claim_ends_with_an_error_too(storage: Storage) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), claimed(storage):
            raise ZeroDivisionError
    assert not storage.exists(NAME)


def test_folders_beside_each_other_are_claimed_apart(storage: Storage) -> None:
    with claimed(storage_at(f"{storage.url}/a")), claimed(storage_at(f"{storage.url}/b")):
        pass


def test_a_folder_in_which_nothing_was_begun_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "x"
    with claimed(LocalStorage(path)):
        assert path.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_of_the_folders_above_only_those_go_that_were_made(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with claimed(LocalStorage(tmp_path / "runs" / "a" / "b")):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


def test_a_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "x")
    with claimed(storage):
        storage.write("notes.txt", b"mine")
    assert storage.names() == ["notes.txt"]


# A path

HOLDER = """
import sys, time
from pathlib import Path
from distbelief.runtime.claim import claimed
from distbelief.storage import LocalStorage
with claimed(LocalStorage(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_another_process_holds_while_it_lives_and_not_after_it_was_killed(
    tmp_path: Path,
) -> None:
    storage = LocalStorage(tmp_path / "x")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(storage.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(ConfigError, match=f"in use by process {holder.pid} on "):
                claimed(storage).__enter__()
        finally:
            holder.kill()
    assert (storage.path / NAME).exists()  # nobody has taken it away
    with claimed(storage):
        pass
    assert list(storage.path.iterdir()) == []  # not made by this claim, it stays


def test_a_lock_that_its_holder_has_just_removed_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, the one who held it has removed it."""
    storage = LocalStorage(tmp_path)
    first = claimed(storage)
    first.__enter__()
    flock, calls = module.fcntl.flock, []

    def meanwhile(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            first.__exit__(None, None, None)
        flock(descriptor, operation)

    monkeypatch.setattr(module.fcntl, "flock", meanwhile)
    storage.write("notes.txt", b"mine")
    with claimed(storage):
        assert len(calls) == 2
        assert (tmp_path / NAME).read_text() == ME
        with pytest.raises(ConfigError):
            claimed(storage).__enter__()


@pytest.mark.parametrize(
    ("folder", "problem"),
    [("file", "{} is a file; give a folder"), ("file/x", "cannot make {}: Not a directory")],
)
def test_a_folder_that_cannot_be_made(folder: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=problem.format(tmp_path / folder)) as caught:
        claimed(LocalStorage(tmp_path / folder)).__enter__()
    assert caught.value.field == "run_dir"


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match=f"cannot write to {tmp_path}: Permission denied"):
        claimed(LocalStorage(tmp_path)).__enter__()


def test_where_there_are_no_locks_the_claim_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", none)
    storage = LocalStorage(tmp_path / "x")
    with claimed(storage):
        assert json.loads(storage.read(NAME))["pid"] == os.getpid()
        with pytest.raises(ConfigError, match=f"in use by {ME}"):
            claimed(storage).__enter__()
    assert not storage.path.exists()


# An object store


@pytest.fixture
def remote() -> RemoteStorage:
    return RemoteStorage(f"memory://{uuid.uuid4()}")


def held_since(storage: Storage, seconds: float) -> None:
    held = {"host": "other", "pid": 7, "at": time.time() - seconds}
    write_json(storage, NAME, held)


@pytest.mark.parametrize("seconds", [0.0, module.STALE_S - 5])
def test_a_remote_claim_of_another_host_holds(seconds: float, remote: RemoteStorage) -> None:
    held_since(remote, seconds)
    before = remote.read(NAME)
    with pytest.raises(ConfigError, match="in use by process 7 on other"):
        claimed(remote).__enter__()
    assert remote.read(NAME) == before


def test_a_remote_claim_that_was_not_renewed_is_of_the_dead(remote: RemoteStorage) -> None:
    held_since(remote, module.STALE_S + 1)
    with claimed(remote):
        assert json.loads(remote.read(NAME))["pid"] == os.getpid()
    assert remote.names() == []


def test_a_remote_claim_is_renewed_while_it_is_held(
    remote: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = threading.Semaphore(0)
    write = module.write_json

    def told(storage: Storage, name: str, value: object) -> None:
        write(storage, name, value)
        renewed.release()

    monkeypatch.setattr(module, "BEAT_S", 0.001)
    monkeypatch.setattr(module, "write_json", told)
    with claimed(remote):
        first = json.loads(remote.read(NAME))["at"]
        for _ in range(5):
            assert renewed.acquire(timeout=60)
        assert json.loads(remote.read(NAME))["at"] > first
        assert [t.name for t in threading.enumerate()].count("claim") == 1
    assert [t.name for t in threading.enumerate()].count("claim") == 0
    assert remote.names() == []


def test_a_remote_claim_outlives_a_moment_in_which_it_cannot_be_renewed(
    remote: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, lost = threading.Semaphore(0), threading.Event()
    write, n = module.write_json, 0

    def sometimes(storage: Storage, name: str, value: object) -> None:
        nonlocal n
        n += 1
        calls.release()
        if n == 2:
            raise OSError("a moment without a network")
        write(storage, name, value)

    monkeypatch.setattr(module, "BEAT_S", 0.001)
    monkeypatch.setattr(module, "write_json", sometimes)
    with claimed(remote, on_loss=lost.set):
        for _ in range(4):
            assert calls.acquire(timeout=60)
    assert not lost.is_set()
    assert remote.names() == []


def test_who_finds_anothers_word_in_place_of_its_own_is_told_and_leaves_it(
    remote: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, n = module.write_json, 0

    def taken_over(storage: Storage, name: str, value: object) -> None:
        nonlocal n
        n += 1
        write(storage, name, value if n == 1 else {**OTHERS, "at": time.time()})

    lost = threading.Event()
    monkeypatch.setattr(module, "BEAT_S", 0.001)
    monkeypatch.setattr(module, "write_json", taken_over)
    with claimed(remote, on_loss=lost.set):
        assert lost.wait(60)
    assert n == 2  # and it is not written over
    assert json.loads(remote.read(NAME))["word"] == "theirs"


def test_a_claim_that_is_gone_is_lost_too(
    remote: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, n = module.write_json, 0

    def removed(storage: Storage, name: str, value: object) -> None:
        nonlocal n
        n += 1
        if n == 1:
            write(storage, name, value)
        else:
            storage.remove(name)

    lost = threading.Event()
    monkeypatch.setattr(module, "BEAT_S", 0.001)
    monkeypatch.setattr(module, "write_json", removed)
    with claimed(remote, on_loss=lost.set):
        assert lost.wait(60)


def test_of_two_that_claim_at_once_the_later_word_holds(
    remote: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module.write_json

    def both(storage: Storage, name: str, value: object) -> None:
        write(storage, name, value)
        write(storage, name, {**OTHERS, "at": time.time()})

    monkeypatch.setattr(module, "write_json", both)
    with pytest.raises(ConfigError, match="a process that began at the same moment"):
        claimed(remote).__enter__()
    assert json.loads(remote.read(NAME))["word"] == "theirs"


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b'{"at": "now"}'])
def test_a_remote_claim_that_is_none_does_not_break_the_start(
    content: bytes, remote: RemoteStorage
) -> None:
    remote.write(NAME, content)
    try:
        with claimed(remote):
            pass
    except ConfigError:
        pass


def test_a_remote_folder_that_cannot_be_written_to(
    remote: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Access denied")

    monkeypatch.setattr(module, "write_json", refuse)
    with pytest.raises(ConfigError):
        claimed(remote).__enter__()
