"""Files that are either whole or not there."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distbelief.storage import write_atomically, write_json


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old, and longer")
    assert path.read_bytes() == b"old, and longer"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    target = os if failing == "fsync" else Path
    monkeypatch.setattr(target, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


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
    write_atomically(tmp_path / "file", b"x")
    temporary, rename, folder = steps
    assert temporary.startswith("fsync of .file.")
    assert (rename, folder) == ("rename", f"fsync of {tmp_path.name}")


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
    path = tmp_path / "file"
    texts = [b"short", b"longer than that"]
    in_threads([lambda text=text: write_atomically(path, text) for text in texts])
    assert path.read_bytes() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "file", b"x")


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"rate": 0.1 + 0.2, "items": [1, None, "ä"], "nested": {"a": True}}
    write_json(path, value)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n")
    assert len(text.splitlines()) > 1


def test_what_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, object())
    assert json.loads(path.read_text()) == 1
    assert list(tmp_path.iterdir()) == [path]
