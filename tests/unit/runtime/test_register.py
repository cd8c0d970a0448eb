"""Who serves: what is changed, told and written, and what is left as it is."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from distbelief.errors import SupersededError
from distbelief.runtime.register import Register
from distbelief.serving import NAME, Endpoint, Serving, read_serving, write_serving
from distbelief.storage import LocalStorage, RemoteStorage, Storage
from distbelief.storage.contract import Part

RUN = 5


def at(shard: int, incarnation: int) -> Endpoint:
    return Endpoint(shard, 10 * shard, 10 * shard + 10, incarnation, f"h{shard}:{incarnation}")


FIRST = Serving(number=1, run=RUN, shards=(at(0, 1), at(1, 1)))


class Troubled(LocalStorage):
    """Takes nothing while it is ``full``, and is out of reach altogether while ``away``."""

    trouble: ClassVar[set[str]] = set()

    def write(self, name: str, *parts: Part) -> None:
        if "full" in self.trouble:
            raise OSError(28, "No space left on device")
        super().write(name, *parts)

    def read(self, name: str) -> bytes:
        if "away" in self.trouble:
            raise OSError(107, "Transport endpoint is not connected")
        return super().read(name)


@pytest.fixture
def trouble() -> Iterator[set[str]]:
    """What is wrong with the storage."""
    yield Troubled.trouble
    Troubled.trouble.clear()


class Kept:
    """A register, with what it has told."""

    def __init__(self, storage: Storage, serving: Serving = FIRST) -> None:
        write_serving(storage, serving)
        self.storage = storage
        self.told: list[Serving] = []
        self.said: list[str] = []
        self.register = Register(storage, serving, self.told.append, self.said.append)

    def file(self) -> Serving | None:
        return read_serving(self.storage)


@pytest.fixture(params=["local", "remote"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    local = request.param == "local"
    return Kept(LocalStorage(tmp_path) if local else RemoteStorage(f"memory://{uuid.uuid4()}/run"))


def test_every_change_is_told_and_written_with_a_number_of_its_own(kept: Kept) -> None:
    kept.register.change(coordinator=2)
    kept.register.serve(at(1, 2))
    assert [(s.number, s.coordinator) for s in kept.told] == [(2, 2), (3, 2)]
    assert kept.register.serving == kept.told[-1] == kept.file()
    assert kept.register.serving.shards == (at(0, 1), at(1, 2))
    assert (kept.said, kept.register.unwritten) == ([], False)


def test_a_twin_that_serves_is_none_any_more(kept: Kept) -> None:
    for twin in (at(0, 2), at(1, 3)):
        kept.register.add_twin(twin)
    assert [kept.register.twin_of(shard) for shard in range(3)] == [at(0, 2), at(1, 3), None]
    kept.register.serve(at(0, 2))
    serving = kept.file()
    assert serving is not None
    assert (serving.shards, serving.twins) == ((at(0, 2), at(1, 1)), (at(1, 3),))
    assert serving.fences(0, 1, RUN)


def test_a_shard_that_starts_anew_leaves_the_twins_as_they_are(kept: Kept) -> None:
    kept.register.add_twin(at(0, 2))
    kept.register.serve(at(0, 3))
    assert kept.register.serving.twins == (at(0, 2),)


def test_a_twin_is_dropped_by_its_start_and_what_is_none_changes_nothing(kept: Kept) -> None:
    kept.register.add_twin(at(0, 3))
    number = kept.register.serving.number
    kept.register.drop_twin(0, 2)
    kept.register.drop_twin(1, 3)
    assert kept.register.serving.number == number
    assert len(kept.told) == 1
    kept.register.drop_twin(0, 3)
    assert kept.file() == kept.register.serving == replace(FIRST, number=number + 1)


# The file


@pytest.mark.parametrize("number", [1, 99])
def test_a_later_runs_file_is_not_overwritten(number: int, kept: Kept) -> None:
    later = Serving(number=number, run=RUN + 2, shards=(at(0, 1),))
    write_serving(kept.storage, later)
    for _ in range(2):
        with pytest.raises(SupersededError) as caught:
            kept.register.change(coordinator=2)
        assert (caught.value.what, caught.value.start) == ("the run", RUN + 2)
        assert kept.file() == later


def test_an_earlier_runs_file_is_overwritten(kept: Kept) -> None:
    write_serving(kept.storage, Serving(number=99, run=RUN - 1, shards=(), coordinator=7))
    kept.register.write()
    assert kept.file() == FIRST


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"run": 9}'])
def test_a_damaged_file_is_written_anew(content: bytes, kept: Kept) -> None:
    kept.storage.write(NAME, content)
    kept.register.change(coordinator=2)
    assert kept.file() == kept.register.serving
    assert (kept.said, kept.register.unwritten) == ([], False)


def test_a_file_that_is_gone_is_written_anew(kept: Kept) -> None:
    kept.storage.remove(NAME)
    kept.register.write()
    assert kept.file() == FIRST


@pytest.mark.parametrize("what", ["full", "away"])
def test_what_cannot_be_written_is_said_once_and_written_later(
    what: str, trouble: set[str], tmp_path: Path
) -> None:
    kept = Kept(Troubled(tmp_path))
    for _ in range(2):  # each time that it comes
        kept.said.clear()
        before = kept.file()
        trouble.add(what)
        kept.register.serve(at(0, kept.register.serving.number + 1))
        kept.register.write()
        assert kept.register.unwritten
        (said,) = kept.said
        assert said.startswith("cannot write serving.json, and it is tried again: [Errno ")
        assert kept.told[-1] == kept.register.serving, "who is started now shall know it"
        trouble.clear()
        assert kept.file() == before
        kept.register.write()
        assert kept.file() == kept.register.serving
        assert not kept.register.unwritten


def test_whoever_could_not_write_finds_that_it_was_superseded_meanwhile(
    trouble: set[str], tmp_path: Path
) -> None:
    kept = Kept(Troubled(tmp_path))
    trouble.add("full")
    kept.register.change(coordinator=2)
    trouble.clear()
    later = Serving(number=1, run=RUN + 1, shards=())
    write_serving(kept.storage, later)
    with pytest.raises(SupersededError):
        kept.register.write()
    assert kept.file() == later
