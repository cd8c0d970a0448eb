import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from distbelief.data import places
from distbelief.data.places import (
    RangeReader,
    list_files,
    load_beside,
    local_path,
    opened,
    save_beside,
    state_of,
)
from distbelief.errors import DataError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[str]:
    """A folder of fsspec's memory, this test's own."""
    url = f"memory://{request.node.name.replace('[', '-').replace(']', '')}"
    system = fsspec.filesystem("memory")
    yield url
    if system.exists(url):
        system.rm(url, recursive=True)


def put(path: str, content: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(path, content)


def test_a_file_url_is_a_path() -> None:
    assert local_path("file:///a%20b/c.tar") == "/a b/c.tar"
    assert local_path("/a%20b") == "/a%20b"
    assert local_path("s3://bucket/a") == "s3://bucket/a"


def test_files_are_listed_by_bytes_without_hidden_ones(tmp_path: Path, memory: str) -> None:
    for name in ("b.tar", "B.tar", "é.tar", "a10.tar", "a9.tar", ".c.tar"):
        (tmp_path / name).write_bytes(b"")
        put(f"{memory}/{name}", b"")
    expected = ["B.tar", "a10.tar", "a9.tar", "b.tar", "é.tar"]
    assert list_files(str(tmp_path)) == expected
    assert list_files(memory) == expected
    assert list_files(str(tmp_path / "none")) == []
    assert list_files(f"{memory}/none") == []
    assert list_files(str(tmp_path / "b.tar")) == []


def test_the_state_changes_with_the_file(tmp_path: Path, memory: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"1")
    os.utime(path, ns=(5, 5))
    assert state_of(str(path)) == "1 5"
    os.utime(path, ns=(5, 6))
    assert state_of(str(path)) == "1 6"
    put(f"{memory}/a.tar", b"1")
    first = state_of(f"{memory}/a.tar")
    assert state_of(f"{memory}/a.tar") == first
    put(f"{memory}/a.tar", b"1")
    assert state_of(f"{memory}/a.tar") != first


@pytest.mark.parametrize("act", [state_of, opened])
def test_what_is_not_there_is_named(act: object, tmp_path: Path, memory: str) -> None:
    assert callable(act)
    for path in (str(tmp_path / "a.tar"), f"{memory}/a.tar"):
        with pytest.raises(DataError, match="cannot be opened") as caught:
            act(path)
        assert caught.value.path == path


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(DataError, match=r"nosuch://x: cannot be opened \(Protocol not known"):
        state_of("nosuch://x")


def test_whatever_a_file_system_raises_is_an_os_error(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ls(*args: object, **options: object) -> list[str]:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "ls", ls)
    with pytest.raises(DataError, match=r"cannot be listed \(ZeroDivisionError: odd\)"):
        list_files(memory)


def test_what_is_saved_lies_beside_the_file(tmp_path: Path, home: Path, memory: str) -> None:
    for folder in (str(tmp_path), memory):
        save_beside(f"{folder}/a.tar", ".index", b"content")
        assert list(load_beside(f"{folder}/a.tar", ".index")) == [b"content"]
    assert sorted(os.listdir(tmp_path)) == ["a.tar.index", "home"]
    assert fsspec.filesystem("memory").ls(memory, detail=False) == [
        f"{memory.removeprefix('memory:/')}/a.tar.index"
    ]
    assert list(home.iterdir()) == []


def read_only_url(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "pipe_file", refuse)


def test_where_that_fails_it_lies_at_home(
    tmp_path: Path, home: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o555)
    read_only_url(memory, monkeypatch)
    for path in (f"{folder}/a.tar", f"{memory}/a.tar", "https://host/a.tar?signature=1"):
        save_beside(path, ".index", path.encode())
        assert list(load_beside(path, ".index")) == [path.encode()]
    folder.chmod(0o755)
    assert list(folder.iterdir()) == []
    saved = list((home / ".cache" / "distbelief").iterdir())
    # Of one name, and yet of three tars.
    assert len(saved) == 3
    assert all(path.name.split("-", 1)[1].startswith("a.tar") for path in saved)


def test_where_nothing_can_be_written_nothing_is_saved(tmp_path: Path, home: Path) -> None:
    (home / ".cache").write_bytes(b"a file")
    save_beside(str(tmp_path / "none" / "a.tar"), ".index", b"content")
    assert list(load_beside(str(tmp_path / "none" / "a.tar"), ".index")) == []


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_ranges(where: str, tmp_path: Path, memory: str) -> None:
    path = str(tmp_path / "a") if where == "disk" else f"{memory}/a"
    if where == "disk":
        Path(path).write_bytes(b"0123456789")
    else:
        put(path, b"0123456789")
    reader = RangeReader()
    assert reader.read(path, 3, 4) == b"3456"
    assert reader.read(path, 8, 4) == b"89"
    sent = pickle.loads(pickle.dumps(reader))
    assert sent.read(path, 0, 1) == b"0"
    with pytest.raises(FileNotFoundError):
        reader.read(path + "x", 0, 1)


def test_a_server_that_sends_the_whole_file_is_named(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(f"{memory}/a", b"0123456789")
    system = fsspec.get_filesystem_class("memory")
    monkeypatch.setattr(system, "cat_file", lambda *args, **ranges: b"0123456789")
    with pytest.raises(DataError, match="a: cannot be read in parts: put it where ranges"):
        RangeReader().read(f"{memory}/a", 3, 4)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.seekable", lambda self: False)
    with pytest.raises(DataError, match="a: cannot be read in parts"):
        opened(f"{memory}/a")


def test_few_files_stay_open_and_none_when_the_reader_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "N_OPEN", 3)

    def n_open() -> int:
        found = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        return sum(path.startswith(str(tmp_path)) for path in found)

    reader = RangeReader()
    for turn in range(2):
        for number in range(6):
            path = tmp_path / str(number)
            path.write_bytes(b"x%d" % number)
            assert reader.read(str(path), 1, 1) == b"%d" % number
            assert n_open() == min(3, 6 * turn + number + 1)
    del reader
    assert n_open() == 0
