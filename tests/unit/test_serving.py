"""Who serves, in the file and out of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distbelief.errors import DataError
from distbelief.serving import NAME, Endpoint, Serving, read_serving, write_serving
from distbelief.storage import Storage

ENDPOINT = Endpoint(
    shard=0, begin=0, end=10, incarnation=3, address="h:1", node="n", host="h", pid=4
)


def at(shard: int, incarnation: int) -> Endpoint:
    return Endpoint(shard, 10 * shard, 10 * shard + 10, incarnation, f"h:{incarnation}")


SERVING = Serving(number=7, run=2, shards=(ENDPOINT, at(1, 5)), twins=(at(1, 6),), coordinator=3)


@pytest.mark.parametrize(
    "serving",
    [
        SERVING,
        SERVING.changed(twins=()),
        Serving(number=1, run=1, shards=()),
    ],
)
def test_what_is_written_is_read(serving: Serving, storage: Storage) -> None:
    assert read_serving(storage) is None
    write_serving(storage, serving)
    assert read_serving(storage) == serving
    write_serving(storage, serving.changed(coordinator=9))
    found = read_serving(storage)
    assert found is not None
    assert (found.number, found.coordinator) == (serving.number + 1, 9)


def plain() -> dict[str, object]:
    """What the file has, to be spoilt."""
    return {"number": 1, "run": 1, "shards": [], "twins": [], "coordinator": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        json.dumps({k: v for k, v in plain().items() if k != "run"}).encode(),
        json.dumps({**plain(), "number": "many"}).encode(),
        json.dumps({**plain(), "shards": 3}).encode(),
        json.dumps({**plain(), "shards": [{"shard": 0}]}).encode(),
        json.dumps({**plain(), "twins": [[1, 2]]}).encode(),
    ],
)
def test_a_damaged_file_is_named(content: bytes, storage: Storage) -> None:
    write_serving(storage, SERVING)
    storage.write(NAME, content)
    with pytest.raises(DataError) as caught:
        read_serving(storage)
    assert caught.value.path == f"{storage.url}/{NAME}"
    assert caught.value.problem.startswith("is damaged: ")


@pytest.mark.parametrize(
    ("shard", "incarnation", "run", "fenced"),
    [
        # Who serves, and who follows.
        (0, 3, 2, False),
        (1, 5, 2, False),
        (1, 6, 2, False),
        # Whom they have succeeded.
        (0, 2, 2, True),
        (0, 1, 2, True),
        (1, 4, 2, True),
        # Who is being started, and will be named.
        (0, 4, 2, False),
        (1, 7, 2, False),
        # All of an earlier start of the run, and none of a later one.
        (0, 3, 1, True),
        (0, 99, 1, True),
        (0, 1, 3, False),
        # A shard that is not named.
        (2, 1, 2, False),
    ],
)
def test_who_is_fenced(shard: int, incarnation: int, run: int, fenced: bool) -> None:
    assert SERVING.fences(shard, incarnation, run) is fenced


def test_a_primary_is_fenced_as_soon_as_its_twin_serves() -> None:
    promoted = SERVING.changed(shards=(ENDPOINT, at(1, 6)), twins=())
    assert promoted.fences(1, 5, 2)
    assert not promoted.fences(1, 6, 2)


@given(st.lists(st.integers(1, 9), min_size=1, unique=True))
def test_nobody_is_fenced_that_is_named_and_everybody_before_them(named: list[int]) -> None:
    first, *twins = named
    serving = Serving(number=1, run=1, shards=(at(0, first),), twins=tuple(at(0, i) for i in twins))
    fenced = {i for i in range(1, 12) if serving.fences(0, i, 1)}
    assert fenced == set(range(1, max(named))) - set(named)


def test_numbers_grow() -> None:
    assert SERVING.changed().number == SERVING.number + 1
    assert SERVING.changed(twins=()).shards == SERVING.shards
