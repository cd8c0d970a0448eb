"""A run's folder of either kind: files that are either whole or not there, and logs."""

import json
import os
import pickle
import re
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.errors import ConfigError
from distbelief.storage import LocalStorage, RemoteStorage, Storage, storage_at, write_json
from distbelief.storage import remote as module

FULL = OSError(28, "No space left on device")


# Either kind


def test_what_is_written_is_read(storage: Storage) -> None:
    storage.write("file", b"old, and ", bytearray(b"longer"), memoryview(b" than that"))
    assert storage.read("file") == b"old, and longer than that"
    storage.write("file", b"new")
    assert storage.read("file") == b"new"
    storage.write("empty")
    assert storage.read("empty") == b""


def test_folders_come_with_their_files(storage: Storage) -> None:
    storage.write("snapshots/000002/b", b"b")
    storage.write("snapshots/000002/a", b"a")
    storage.write("snapshots/000010/a", b"a")
    storage.write("config.json", b"{}")
    assert storage.names() == ["config.json", "snapshots"]
    assert storage.names("snapshots") == ["000002", "000010"]
    assert storage.names("snapshots/000002") == ["a", "b"]
    assert storage.read("snapshots/000002/b") == b"b"


def test_what_is_not_there(storage: Storage) -> None:
    assert (storage.names(), storage.names("no/such"), storage.logs("pushes")) == ([], [], [])
    assert not storage.exists("file")
    for read in (storage.read, storage.read_log):
        with pytest.raises(FileNotFoundError):
            read("file")
    storage.write("folder/file", b"x")
    assert [storage.exists(n) for n in ("folder", "folder/file", "folder/other", "fold")] == [
        *(True, True, False, False)
    ]
    with pytest.raises(FileNotFoundError):
        storage.read("folder/other")


def test_removing(storage: Storage) -> None:
    storage.remove("nothing")
    for name in ("a/b/c", "a/b/d", "a/e", "f"):
        storage.write(name, b"x")
    storage.remove("f")
    assert storage.names() == ["a"]
    storage.remove("a/b")
    assert (storage.names("a"), storage.exists("a/b/c")) == (["e"], False)
    storage.remove("a/b")
    assert storage.read("a/e") == b"x"


def test_one_of_another_process_sees_the_same(storage: Storage) -> None:
    storage.write("file", b"x")
    other = pickle.loads(pickle.dumps(storage))
    assert other == storage
    assert (other.url, other.read("file")) == (storage.url, b"x")
    assert storage_at(storage.url) == storage


def test_storages_of_different_folders_do_not_see_each_other(storage: Storage) -> None:
    a, b = (storage_at(f"{storage.url}/{name}") for name in "ab")
    a.write("file", b"x")
    assert (b.names(), storage.names(), storage.read("a/file")) == ([], ["a"], b"x")


def test_json(storage: Storage) -> None:
    value = {"rate": 0.1 + 0.2, "items": [1, None, "ä"], "nested": {"a": True}}
    write_json(storage, "a.json", value)
    text = storage.read("a.json").decode()
    assert json.loads(text) == value
    assert text.endswith("}\n")
    assert len(text.splitlines()) > 1


def test_what_is_no_json_leaves_the_old_file(storage: Storage) -> None:
    write_json(storage, "a.json", 1)
    with pytest.raises(TypeError):
        write_json(storage, "a.json", object())
    assert json.loads(storage.read("a.json")) == 1
    assert storage.names() == ["a.json"]


def test_a_log_has_its_lines_in_order(storage: Storage) -> None:
    log = storage.open_log("pushes/a.jsonl", new=True)
    log.write("1\n")
    log.write("2\n3\n")
    log.sync()
    assert storage.read_log("pushes/a.jsonl") == "1\n2\n3\n"
    log.write("ä\n")
    log.close()
    assert storage.read_log("pushes/a.jsonl") == "1\n2\n3\nä\n"


def test_a_new_log_takes_no_others_place_and_another_is_gone_on_with(storage: Storage) -> None:
    first = storage.open_log("log.jsonl", new=True)
    first.write("1\n")
    first.close()
    with pytest.raises(FileExistsError):
        storage.open_log("log.jsonl", new=True)
    for number in (2, 3):
        again = storage.open_log("log.jsonl", new=False)
        again.write(f"{number}\n")
        again.close()
    assert storage.read_log("log.jsonl") == "1\n2\n3\n"


def test_the_logs_of_a_folder(storage: Storage) -> None:
    for name in ("b.0002.jsonl", "b.0001.jsonl", "a.jsonl"):
        log = storage.open_log(f"pushes/{name}", new=True)
        for line in range(3):
            log.write(f"{line}\n")
            log.sync()
        log.close()
    storage.write("pushes/notes.txt", b"x")
    assert storage.logs("pushes") == ["a.jsonl", "b.0001.jsonl", "b.0002.jsonl"]
    storage.remove("pushes/b.0001.jsonl")
    assert storage.logs("pushes") == ["a.jsonl", "b.0002.jsonl"]
    with pytest.raises(FileNotFoundError):
        storage.read_log("pushes/b.0001.jsonl")
    assert storage.read_log("pushes/b.0002.jsonl") == "0\n1\n2\n"
    storage.remove("pushes")
    assert (storage.logs("pushes"), storage.names()) == ([], [])


def test_a_log_whose_name_begins_with_anothers_is_another(storage: Storage) -> None:
    for name in ("log", "log.jsonl"):
        log = storage.open_log(name, new=True)
        log.write(f"{name}\n")
        log.close()
    assert (storage.read_log("log"), storage.read_log("log.jsonl")) == ("log\n", "log.jsonl\n")


def test_threads_write_whole_lines(storage: Storage, in_threads: Callable[..., list[Any]]) -> None:
    log = storage.open_log("log.jsonl", new=True)

    def write(thread: int) -> None:
        for i in range(50):
            log.write(f"{thread} {i} {'x' * 300}\n")
            if i % 10 == thread:
                log.sync()

    in_threads([lambda t=t: write(t) for t in range(4)])
    log.close()
    lines = storage.read_log("log.jsonl").splitlines()
    found = [tuple(map(int, line.split()[:2])) for line in lines]
    assert sorted(found) == [(thread, i) for thread in range(4) for i in range(50)]
    for thread in range(4):
        assert [i for t, i in found if t == thread] == list(range(50))


# A path


def test_a_file_is_there_under_its_name_alone(tmp_path: Path) -> None:
    LocalStorage(tmp_path).write("file", b"x")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("file", b"old")

    def fail(*args: object) -> None:
        raise FULL

    monkeypatch.setattr(os if failing == "fsync" else Path, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        storage.write("file", b"new")
    assert storage.read("file") == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_the_contents_are_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        steps.append("fsync of " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    LocalStorage(tmp_path).write("file", b"x")
    temporary, rename, folder = steps
    assert temporary.startswith("fsync of .file.")
    assert (rename, folder) == ("rename", f"fsync of {tmp_path.name}")


def test_a_new_folder_is_durable_in_the_one_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    storage = LocalStorage(tmp_path / "runs" / "a")
    storage.write("snapshots/000000/file", b"x")
    for folder in ("", "runs", "runs/a", "runs/a/snapshots", "runs/a/snapshots/000000"):
        assert tmp_path / folder in synced
    synced.clear()
    storage.open_log("pushes/log.jsonl", new=True).close()
    assert synced == [tmp_path / "runs" / "a", tmp_path / "runs" / "a" / "pushes"]


def test_nobody_who_writes_lines_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_threads: Callable[..., list[Any]]
) -> None:
    log = LocalStorage(tmp_path).open_log("log.jsonl", new=True)
    begun, go_on = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        begun.set()
        assert go_on.wait(60)

    monkeypatch.setattr(os, "fsync", slow)

    def meanwhile() -> None:
        try:
            assert begun.wait(60)
            log.write("1\n")
            log.flush()
        finally:
            go_on.set()

    in_threads([log.sync, meanwhile])
    assert LocalStorage(tmp_path).read_log("log.jsonl") == "1\n"
    log.close()


def test_two_threads_may_write_one_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_threads: Callable[..., list[Any]],
) -> None:
    both = threading.Barrier(2)
    real_replace = Path.replace

    def replace(self: Path, target: Path) -> Path:
        both.wait(60)  # both have written, neither has renamed
        return real_replace(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    storage = LocalStorage(tmp_path)
    texts = [b"short", b"longer than that"]
    in_threads([lambda text=text: storage.write("file", text) for text in texts])
    assert storage.read("file") in texts
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_half_written_file_of_a_crash_is_none(tmp_path: Path) -> None:
    (tmp_path / ".file.1-2.tmp").write_text("half")
    assert LocalStorage(tmp_path).names() == []


@pytest.mark.parametrize("text", ["", "1\n", "1\n2\n", "ä\n"])
def test_a_torn_last_line_is_cut_on_reopening_wherever_it_is_torn(
    text: str, tmp_path: Path
) -> None:
    path, torn = tmp_path / "log.jsonl", "ü3".encode()
    for cut in range(len(torn) + 1):
        path.write_bytes(text.encode() + torn[:cut])
        log = LocalStorage(tmp_path).open_log("log.jsonl", new=False)
        log.write("4\n")
        log.close()
        assert path.read_text(encoding="utf-8") == f"{text}4\n"


def test_lines_are_handed_on_by_a_flush_and_durable_after_a_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append(path.read_text() if path.is_file() else path.name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    storage = LocalStorage(tmp_path)
    log = storage.open_log("log.jsonl", new=True)
    log.write("1\n")
    assert storage.read_log("log.jsonl") == ""
    log.flush()
    assert storage.read_log("log.jsonl") == "1\n"
    log.write("2\n")
    synced.clear()
    log.sync()
    assert synced[0] == "1\n2\n"
    log.close()


def test_the_name_of_a_log_is_durable_after_a_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    log = LocalStorage(tmp_path).open_log("pushes/log.jsonl", new=True)
    log.write("1\n")
    log.sync()
    log.close()
    assert "pushes" in synced


def test_the_room_that_is_left_is_that_of_the_filesystem_that_the_folder_will_be_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return type("Usage", (), {"free": 123})

    monkeypatch.setattr("shutil.disk_usage", usage)
    assert LocalStorage(tmp_path / "not" / "there").free_nbytes() == 123
    assert asked == [tmp_path]


# An object store


@pytest.fixture
def remote() -> RemoteStorage:
    return RemoteStorage(f"memory://{uuid.uuid4()}")


def test_a_remote_log_is_a_series_of_objects(remote: RemoteStorage) -> None:
    log = remote.open_log("pushes/a.jsonl", new=True)
    log.write("1\n")
    log.flush()
    log.write("2\n")
    log.flush()
    assert remote.names("pushes") == []  # they wait for others
    log.sync()
    assert remote.names("pushes") == ["a.jsonl.000000"]
    log.write("3\n")
    assert remote.read_log("pushes/a.jsonl") == "1\n2\n"
    log.sync()
    log.sync()  # nothing waits: nothing is written
    log.write("4\n")
    log.close()
    assert remote.names("pushes") == [f"a.jsonl.{n:06d}" for n in range(3)]
    contents = [remote.read(f"pushes/{name}") for name in remote.names("pushes")]
    assert contents == [b"1\n2\n", b"3\n", b"4\n"]


def test_lines_that_wait_are_written_by_the_log_itself(
    remote: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_S", 0.001)
    written = threading.Event()
    write = RemoteStorage.write

    def told(storage: RemoteStorage, name: str, *parts: bytes) -> None:
        write(storage, name, *parts)
        written.set()

    monkeypatch.setattr(RemoteStorage, "write", told)
    log = remote.open_log("a.jsonl", new=True)
    log.write("1\n")
    assert written.wait(60)
    assert remote.read_log("a.jsonl") == "1\n"
    log.close()


class Uploads:
    """Uploads of which the first ones fail; each is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
        self.tried, self.failing = threading.Semaphore(0), failing
        write = RemoteStorage.write

        def sometimes(storage: RemoteStorage, name: str, *parts: bytes) -> None:
            self.failing -= 1
            failed = self.failing >= 0
            if not failed:
                write(storage, name, *parts)
            self.tried.release()
            if failed:
                raise FULL

        monkeypatch.setattr(RemoteStorage, "write", sometimes)

    def await_one(self) -> None:
        assert self.tried.acquire(timeout=60)


def test_lines_whose_upload_failed_go_with_the_next_one(
    remote: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_S", 0.001)
    uploads = Uploads(monkeypatch, failing=2)
    log = remote.open_log("a.jsonl", new=True)
    log.write("1\n")
    uploads.await_one()
    log.write("2\n")
    log.flush()  # which never raises
    uploads.await_one()
    uploads.await_one()
    log.write("3\n")
    log.close()
    assert remote.read_log("a.jsonl") == "1\n2\n3\n"
    assert remote.names()[0] == "a.jsonl.000000"  # no number is left out
    assert remote.names() == [f"a.jsonl.{n:06d}" for n in range(len(remote.names()))]


def test_a_sync_whose_upload_fails_raises_and_loses_nothing(
    remote: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    Uploads(monkeypatch, failing=1)
    log = remote.open_log("a.jsonl", new=True)
    log.write("1\n")
    with pytest.raises(OSError, match="No space left"):
        log.sync()
    log.write("2\n")
    log.close()
    assert remote.read_log("a.jsonl") == "1\n2\n"
    assert remote.names() == ["a.jsonl.000000"]


def test_nobody_who_writes_lines_waits_for_an_upload(
    remote: RemoteStorage,
    monkeypatch: pytest.MonkeyPatch,
    in_threads: Callable[..., list[Any]],
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    write = RemoteStorage.write

    def slow(storage: RemoteStorage, name: str, *parts: bytes) -> None:
        begun.set()
        assert go_on.wait(60)
        write(storage, name, *parts)

    monkeypatch.setattr(RemoteStorage, "write", slow)
    log = remote.open_log("a.jsonl", new=True)
    log.write("1\n")

    def meanwhile() -> None:
        try:
            assert begun.wait(60)
            log.write("2\n")
            log.flush()
        finally:
            go_on.set()

    in_threads([log.sync, meanwhile])
    log.close()
    assert [remote.read(name) for name in remote.names()] == [b"1\n", b"2\n"]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=8))
def test_a_log_of_several_processes_is_one_log(writers: list[list[int]]) -> None:
    remote = RemoteStorage(f"memory://{uuid.uuid4()}")
    expected = ""
    for lines in writers:
        log = remote.open_log("events.jsonl", new=False)
        for line in lines:
            log.write(f"{line}\n")
            expected += f"{line}\n"
            if line % 3 == 0:
                log.sync()
        log.close()
    if expected:
        assert remote.read_log("events.jsonl") == expected


def test_only_the_url_travels(remote: RemoteStorage) -> None:
    _ = remote.filesystem
    assert pickle.loads(pickle.dumps(remote)).__dict__ == {"url": remote.url}


def test_an_object_store_does_not_say_what_room_is_left(remote: RemoteStorage) -> None:
    assert remote.free_nbytes() is None


def test_a_remote_file_is_written_in_one_call(
    remote: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is opened and closed is there, cut short, if an error comes between."""
    calls: list[tuple[str, bytes]] = []

    def pipe_file(filesystem: Any, path: str, value: bytes, **options: Any) -> None:
        calls.append((path, value))
        if len(calls) == 2:
            raise FULL

    monkeypatch.setattr(type(remote.filesystem), "pipe_file", pipe_file)
    remote.write("file", b"in ", bytearray(b"three "), memoryview(b"parts"))
    with pytest.raises(OSError, match="No space left"):
        remote.write("file", b"half", b"of the new")
    path = f"{remote._root}/file"
    assert calls == [(path, b"in three parts"), (path, b"halfof the new")]
    assert remote.names() == []


CALLS: dict[str, tuple[str, Callable[[RemoteStorage], object]]] = {
    "write": ("pipe_file", lambda s: s.write("file", b"x")),
    "read": ("cat_file", lambda s: s.read("file")),
    "exists": ("exists", lambda s: s.exists("file")),
    "names": ("ls", lambda s: s.names()),
    "remove": ("rm", lambda s: s.remove("file")),
    "open_log": ("ls", lambda s: s.open_log("log.jsonl", new=True)),
    "read_log": ("cat_file", lambda s: s.read_log("log.jsonl")),
    "logs": ("ls", lambda s: s.logs("")),
}


@pytest.mark.parametrize(("inner", "call"), CALLS.values(), ids=CALLS)
def test_whatever_a_filesystem_raises_is_an_os_error(
    inner: str,
    call: Callable[[RemoteStorage], object],
    remote: RemoteStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class ForeignError(Exception):
        pass

    remote.write("file", b"x")
    log = remote.open_log("log.jsonl", new=True)
    log.write("1\n")
    log.close()

    def fail(*args: object, **kwargs: object) -> None:
        raise ForeignError("no credentials")

    monkeypatch.setattr(type(remote.filesystem), inner, fail)
    with pytest.raises(OSError, match="ForeignError: no credentials"):
        call(remote)


# Paths and URLs


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("runs/a", "{cwd}/runs/a"),
        ("/data/runs", "/data/runs"),
        ("~/runs", "{home}/runs"),
        ("file:///data/a%20b", "/data/a b"),
        ("local:///data/runs", "/data/runs"),
    ],
)
def test_paths(url: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    wanted = path.format(cwd=tmp_path, home="/home/somebody")
    storage = storage_at(url)
    assert storage == LocalStorage(Path(wanted))
    assert storage.url == wanted
    assert storage_at(Path("runs/a")) == LocalStorage(tmp_path / "runs" / "a")


def test_a_url_has_no_slash_at_its_end() -> None:
    assert storage_at("memory://runs/a//") == RemoteStorage("memory://runs/a")


@pytest.mark.parametrize("url", ["nonsense://bucket/run", "hdfs-of-nobody://x"])
def test_a_filesystem_that_there_is_none_of(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        storage_at(url, "init_from")
    assert caught.value.field == "init_from"
    assert str(caught.value).startswith(f"--init-from: cannot use {url}: ")


def test_a_filesystem_whose_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Please install s3fs to access S3")

    monkeypatch.setattr(module, "url_to_fs", missing)
    with pytest.raises(ConfigError, match=re.escape("install s3fs")) as caught:
        storage_at("s3://bucket/run")
    assert caught.value.field == "run_dir"
