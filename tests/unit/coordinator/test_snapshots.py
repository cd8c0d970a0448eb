"""Snapshots as plain values: what a manifest says, when one is due, which are kept."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.coordinator.snapshots import (
    FORMAT,
    Manifest,
    Pace,
    abandoned_snapshots,
    is_even,
    newest_fit,
    superfluous,
)
from distbelief.types import ShardFile, ShardState


def file_of(
    shard: int = 0,
    n_shards: int = 1,
    begin: int = 0,
    end: int = 4,
    applied: tuple[tuple[int, int], ...] = ((0, 3),),
    aside: dict[int, str] | None = None,
    **changes: Any,
) -> ShardFile:
    state = ShardState(
        shard=shard,
        incarnation=2,
        begin=begin,
        end=end,
        loaded=True,
        clock=sum(high - low for low, high in applied),
        examples=30,
        skipped=1,
        applied=applied,
        set_aside=aside or {},
        repeated=4,
        **changes,
    )
    name = f"shard-{shard:05d}-of-{n_shards:05d}.safetensors"
    return ShardFile(
        name=name, nbytes=100, sha256="ab" * 32, n_shards=n_shards, state=state, paused_s=0.25
    )


def manifest_of(number: int = 0, *, even: bool = True, n_shards: int = 2) -> Manifest:
    return Manifest(
        number=number,
        even=even,
        examples_applied=30 * number,
        layout="fingerprint",
        n_parameters=4 * n_shards,
        elapsed_s=1.5,
        losses={"loss": 0.1 + 0.2},
        validation={"epoch": 1, "top1": 0.5},
        files=tuple(file_of(s, n_shards, 4 * s, 4 * s + 4) for s in range(n_shards)),
    )


# When


@pytest.mark.parametrize(
    ("examples", "seconds", "due"),
    [
        (0, 0.0, False),
        (0, 10_000.0, False),  # nothing has changed since the last one
        (1, 599.9, False),
        (1, 600.0, True),
        (99, 0.0, False),
        (100, 0.0, True),
        (250, 0.0, True),
    ],
)
def test_when_one_is_due(examples: int, seconds: float, due: bool) -> None:
    assert Pace(examples=100, seconds=600.0).due(examples, seconds) is due


# Which

EVEN, UNEVEN = True, False


@pytest.mark.parametrize(
    ("evenness", "keep", "gone"),
    [
        ([EVEN], 2, []),
        ([EVEN, EVEN], 2, []),
        ([EVEN, EVEN, EVEN], 2, [0]),
        ([EVEN, EVEN, EVEN, EVEN], 2, [0, 1]),
        ([EVEN, EVEN, EVEN, EVEN], 3, [0]),
        ([EVEN, UNEVEN, UNEVEN], 2, []),
        ([EVEN, UNEVEN, UNEVEN, UNEVEN], 2, [1]),
        ([EVEN, EVEN, UNEVEN, UNEVEN, UNEVEN], 2, [0, 2]),
        ([EVEN, UNEVEN, EVEN], 2, [0]),
        ([EVEN, UNEVEN, UNEVEN, EVEN, UNEVEN], 2, [0, 1, 2]),
        ([UNEVEN, UNEVEN, UNEVEN], 2, [0]),
    ],
)
def test_what_may_go(evenness: list[bool], keep: int, gone: list[int]) -> None:
    found = [manifest_of(number, even=even) for number, even in enumerate(evenness)]
    assert superfluous(found, keep) == gone
    assert superfluous(found[::-1], keep) == gone


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.integers(0, 99), st.booleans(), min_size=1), st.integers(2, 5))
def test_the_newest_and_the_newest_even_one_are_kept(evenness: dict[int, bool], keep: int) -> None:
    found = [manifest_of(number, even=even) for number, even in evenness.items()]
    kept = set(evenness) - set(superfluous(found, keep))
    assert set(sorted(evenness)[-keep:]) <= kept
    even = [number for number, is_it in evenness.items() if is_it]
    assert max(even, default=-1) in {*kept, -1}
    assert len(kept) <= keep + 1


@pytest.mark.parametrize(
    ("evenness", "abandoned", "gone"),
    [
        ([EVEN, EVEN, EVEN], {1}, [1]),
        ([EVEN, EVEN, EVEN, EVEN, EVEN], {2, 3}, [2, 3, 0]),
        ([EVEN, EVEN, EVEN], {1, 2}, [1]),  # the newest has nothing after it yet
        ([EVEN, UNEVEN, EVEN, UNEVEN], {2}, [2]),  # it does not count as the newest even one
        ([EVEN, EVEN, EVEN], {7}, [0]),
    ],
)
def test_what_was_abandoned_goes_first(
    evenness: list[bool], abandoned: set[int], gone: list[int]
) -> None:
    found = [manifest_of(number, even=even) for number, even in enumerate(evenness)]
    assert superfluous(found, 2, abandoned) == gone
    assert superfluous(found[::-1], 2, abandoned)[-1:] == gone[-1:]


def test_what_every_resumption_has_abandoned() -> None:
    assert abandoned_snapshots({}) == []
    resumed = [{"abandoned": [4, 5]}, {"snapshot": 6}, {"abandoned": []}, {"abandoned": [7]}]
    assert abandoned_snapshots({"resumed": resumed}) == [4, 5, 7]


FITS: list[tuple[list[tuple[int, bool, int]], int, int | None]] = [
    # number, evenness and shards of each; the shards that are wanted; the one that fits
    ([], 2, None),
    ([(0, EVEN, 2)], 2, 0),
    ([(0, EVEN, 2)], 7, 0),
    ([(0, EVEN, 2), (1, UNEVEN, 2)], 2, 1),
    ([(0, EVEN, 2), (1, UNEVEN, 2)], 3, 0),
    ([(1, UNEVEN, 2), (0, EVEN, 2)], 3, 0),
    ([(0, UNEVEN, 2), (1, UNEVEN, 3)], 2, 0),
    ([(0, UNEVEN, 2), (1, UNEVEN, 3)], 4, None),
    ([(5, EVEN, 2), (9, EVEN, 3), (7, EVEN, 1)], 4, 9),
]


@pytest.mark.parametrize(("found", "n_shards", "fit"), FITS)
def test_the_newest_that_fits(
    found: list[tuple[int, bool, int]], n_shards: int, fit: int | None
) -> None:
    made = [manifest_of(number, even=even, n_shards=n) for number, even, n in found]
    newest = newest_fit(made, n_shards)
    assert (None if newest is None else newest.number) == fit


@pytest.mark.parametrize(
    ("begin", "end", "shards"),
    [(0, 4, [0]), (0, 5, [0, 1]), (3, 4, [0]), (4, 8, [1]), (1, 12, [0, 1, 2]), (11, 12, [2])],
)
def test_the_files_that_have_a_part(begin: int, end: int, shards: list[int]) -> None:
    found = manifest_of(n_shards=3).overlapping(begin, end)
    assert [file.state.shard for file in found] == shards


@pytest.mark.parametrize(
    ("files", "even"),
    [
        ([file_of()], True),
        ([file_of(), file_of()], True),
        ([file_of(), file_of(applied=((0, 2),))], False),
        ([file_of(), file_of(applied=((0, 2),), aside={2: "norm"})], True),
        ([file_of(), file_of(applied=((0, 2),), aside={1: "norm"})], False),
        ([file_of(), file_of(), file_of(applied=((0, 4),))], False),
        ([file_of(applied=()), file_of(applied=())], True),
        ([file_of(aside={7: "a"}), file_of(aside={7: "b"})], True),
    ],
)
def test_evenness(files: list[ShardFile], even: bool) -> None:
    assert is_even(files) is even


# What it says


def through(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_a_manifest_survives_json() -> None:
    manifest = manifest_of(17)
    assert manifest.n_shards == 2
    assert Manifest.from_dict(through(manifest.to_dict())) == manifest


def test_a_manifest_with_all_there_is_survives_json() -> None:
    file = file_of(
        applied=((0, 3), (5, 2**40)),
        aside={3: "norm, 3 times", 2**41: "ä"},
        refused={"stale": 3},
        staleness={0: 5, 12: 1},
        queued=2,
        nbytes_received=2**50,
        nbytes_sent=7,
    )
    manifest = Manifest(
        number=3,
        even=False,
        examples_applied=0,
        layout="",
        n_parameters=4,
        elapsed_s=0.1,
        files=(file,),
    )
    found = Manifest.from_dict(through(manifest.to_dict()))
    assert found == manifest
    assert (found.losses, found.validation) == ({}, None)


def test_what_scripts_read() -> None:
    found = through(manifest_of(17).to_dict())
    assert (found["format"], found["number"], found["even"]) == (1, 17, True)
    assert found["examples_applied"] == 510
    first = found["files"][0]
    assert (first["name"], first["nbytes"]) == ("shard-00000-of-00002.safetensors", 100)
    assert (first["state"]["applied"], first["state"]["clock"]) == ([[0, 3]], 3)


def without(path: tuple[Any, ...], put: Any = None) -> Any:
    """A manifest without the field at that path, or with another value of it.

    It has no digest, like those that were written before there were any.
    """
    found = through(manifest_of().to_dict())
    del found["sha256"]
    place = found
    for key in path[:-1]:
        place = place[key]
    if put is None:
        del place[path[-1]]
    else:
        place[path[-1]] = put
    return found


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        "x",
        3,
        {},
        {"format": FORMAT},
        {"format": FORMAT, "files": []},
        without(("format",)),
        without(("format",), FORMAT + 1),
        without(("number",)),
        without(("files",)),
        without(("files",), 3),
        without(("files",), "abc"),
        without(("files",), [3]),
        without(("files", 0, "sha256")),
        without(("files", 0, "state")),
        without(("files", 0, "state"), "ab"),
        without(("files", 0, "state", "clock")),
        without(("files", 0, "state", "applied")),
        without(("files", 0, "state", "applied"), [[1]]),
        without(("files", 0, "state", "applied"), [["a", "b"]]),
        without(("files", 0, "state", "applied"), 3),
        without(("files", 0, "state", "applied"), [[0, float("inf")]]),
        without(("files", 0, "state", "set_aside"), [1]),
        without(("files", 0, "state", "set_aside"), {"x": "why"}),
        without(("files", 0, "state", "staleness"), {"x": 1}),
        without(("surprise",), 1),
        without(("files", 0, "surprise"), 1),
        without(("files", 0, "state", "surprise"), 1),
    ],
)
def test_what_is_no_manifest(values: Any) -> None:
    with pytest.raises(
        ValueError, match=r"manifest|not|no files|expected|invalid|dictionary|base 10"
    ):
        Manifest.from_dict(values)


def test_one_of_before_there_were_digests_is_read() -> None:
    found = without(("files", 0, "paused_s"), 0.5)
    assert Manifest.from_dict(found).files[0].paused_s == 0.5


def test_whichever_bit_of_a_manifest_is_flipped_it_is_another_one_to_nobody() -> None:
    whole = manifest_of(17)
    text = json.dumps(whole.to_dict()).encode()
    for at in range(len(text)):
        flipped = bytearray(text)
        flipped[at] ^= 1 << at % 8
        try:
            found = Manifest.from_dict(json.loads(flipped))
        except ValueError:
            continue
        assert found == whole, f"byte {at}"  # 1e5 and 1E5 are the same number


def test_a_manifest_without_files_is_none() -> None:
    with pytest.raises(ValueError, match="names no files"):
        Manifest.from_dict(without(("files",), []))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["format", "files", "state", "applied"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(plain)
def test_whatever_else_json_may_hold_is_no_manifest(values: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Manifest.from_dict(values)


@settings(deadline=None, max_examples=200)
@given(plain, st.sampled_from(sorted(manifest_of().to_dict())))
def test_a_damaged_field_is_a_manifest_or_a_value_error(values: Any, field: str) -> None:
    with contextlib.suppress(ValueError):
        Manifest.from_dict(without((field,), values if values is not None else 0))
