"""A shard's file of a snapshot: what is written is read, and damage is named."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save

from distbelief.errors import DataError
from distbelief.server.statefile import (
    KEY,
    check,
    digest,
    file_name,
    image,
    read,
    read_vector,
    snapshot_folder,
)
from distbelief.storage import LocalStorage, Storage
from distbelief.types import ShardFile, ShardState

NUMBER = 17


def state_of(shard: int, begin: int, end: int) -> ShardState:
    return ShardState(
        shard=shard,
        incarnation=1,
        begin=begin,
        end=end,
        loaded=True,
        clock=0,
        examples=0,
        skipped=0,
        applied=(),
        set_aside={},
        repeated=0,
    )


def write(
    storage: Storage, content: bytes | bytearray, begin: int = 0, end: int = 4, shard: int = 0
) -> ShardFile:
    """A file that is in a snapshot, as its manifest has it."""
    file = ShardFile(
        name=file_name(shard, 3),
        nbytes=len(content),
        sha256=digest(content),
        n_shards=3,
        state=state_of(shard, begin, end),
    )
    storage.write(f"{snapshot_folder(NUMBER)}/{file.name}", content)
    return file


def test_names() -> None:
    assert snapshot_folder(17) == "snapshots/000017"
    assert file_name(3, 12) == "shard-00003-of-00012.safetensors"
    assert digest(b"abc") == hashlib.sha256(b"abc").hexdigest()


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.dictionaries(
        st.sampled_from(["parameters", "momentum", "average"]), st.integers(1, 70), min_size=1
    ),
    about=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3),
)
def test_the_library_reads_what_is_written_here(sizes: dict[str, int], about: Any) -> None:
    tensors = {name: torch.randn(n) for name, n in sizes.items()}
    content = image(tensors, about)
    found = load(bytes(content))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert len(content) % 4 == 0
    head = int.from_bytes(content[:8], "little")
    assert head % 8 == 0  # so that vectors lie where a reader may map them
    assert json.loads(json.loads(content[8 : 8 + head])["__metadata__"][KEY]) == about


def test_every_bit_survives(tmp_path: Any) -> None:
    values = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45, 3.4e38])
    storage = LocalStorage(tmp_path)
    file = write(storage, image({"parameters": values}, {"a": [1, None]}))
    found = read(storage, NUMBER, file)
    assert torch.equal(found.tensors["parameters"].view(torch.int32), values.view(torch.int32))
    assert found.about == {"a": [1, None]}
    with safe_open(tmp_path / "snapshots" / "000017" / file.name, "pt") as opened:
        assert json.loads(opened.metadata()[KEY]) == {"a": [1, None]}


def test_the_image_is_a_copy() -> None:
    values = torch.ones(5)
    content = image({"parameters": values}, {})
    values.fill_(7.0)
    assert load(bytes(content))["parameters"].tolist() == [1.0] * 5


def test_a_part_of_a_vector_is_that_part() -> None:
    whole = torch.arange(10.0, requires_grad=True)
    content = image({"parameters": whole[3:7], "momentum": whole.detach()[:2]}, {})
    found = load(bytes(content))
    assert found["parameters"].tolist() == [3.0, 4.0, 5.0, 6.0]
    assert found["momentum"].tolist() == [0.0, 1.0]


# Damage


def place(storage: Storage, file: ShardFile) -> str:
    return f"{storage.url}/snapshots/000017/{file.name}"


def test_a_file_as_it_was_written_passes(storage: Storage) -> None:
    content = image({"parameters": torch.ones(4)}, {})
    assert check(storage, NUMBER, write(storage, content)) == content


@pytest.mark.parametrize("at", [0, 8, 60, -1])
def test_a_changed_byte_is_named(at: int, storage: Storage) -> None:
    content = image({"parameters": torch.ones(4)}, {})
    file = write(storage, content)
    content[at] ^= 1
    storage.write(f"snapshots/000017/{file.name}", content)
    for reader in (check, read):
        with pytest.raises(DataError) as caught:
            reader(storage, NUMBER, file)
        text = f"{place(storage, file)}: is damaged: its SHA-256 is not what the manifest says"
        assert str(caught.value) == text


@pytest.mark.parametrize("length", [0, 7, 100])
def test_a_file_cut_short_is_named(length: int, storage: Storage) -> None:
    content = image({"parameters": torch.ones(4000)}, {})
    file = write(storage, content)
    storage.write(f"snapshots/000017/{file.name}", content[:length])
    with pytest.raises(DataError) as caught:
        read(storage, NUMBER, file)
    problem = f"is damaged: {length} bytes, of which there were {len(content):,}"
    assert str(caught.value) == f"{place(storage, file)}: {problem}"


def test_a_missing_file_is_named(storage: Storage) -> None:
    content = image({"parameters": torch.ones(4)}, {})
    file = write(storage, content)
    storage.remove(f"snapshots/000017/{file.name}")
    with pytest.raises(DataError) as caught:
        read(storage, NUMBER, file)
    assert str(caught.value) == f"{place(storage, file)}: is missing"


def test_a_file_that_cannot_be_read_is_named(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(storage, image({"parameters": torch.ones(4)}, {}))

    def fail(self: object, name: str) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(storage), "read", fail)
    with pytest.raises(DataError, match=r"unreadable: .*Permission denied"):
        check(storage, NUMBER, file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"12345678",
        (2**62).to_bytes(8, "little") + b"{}",
        save({"parameters": torch.ones(4)}),
        save({"parameters": torch.ones(4)}, metadata={"other": "{}"}),
        save({"parameters": torch.ones(4)}, metadata={KEY: "not json"}),
        image({"parameters": torch.ones(4)}, {})[:-4],
    ],
)
def test_another_file_of_the_same_digest_is_no_shards_state(
    content: bytes, storage: Storage
) -> None:
    file = write(storage, content)
    with pytest.raises(DataError) as caught:
        read(storage, NUMBER, file)
    assert str(caught.value).startswith(f"{place(storage, file)}: is no shard's state: ")


# The whole vector


def three(storage: Storage, averages: int) -> tuple[list[ShardFile], torch.Tensor]:
    whole = torch.arange(11.0)
    files = []
    for shard, (begin, end) in enumerate([(0, 3), (3, 7), (7, 11)]):
        tensors = {"parameters": whole[begin:end], "momentum": -whole[begin:end]}
        if shard < averages:
            tensors["average"] = 100 + whole[begin:end]
        files.append(write(storage, image(tensors, {}), begin, end, shard))
    return files, whole


def test_a_whole_vector_of_several_shards(storage: Storage) -> None:
    files, whole = three(storage, averages=3)
    for order in (files, files[::-1]):
        assert torch.equal(read_vector(storage, NUMBER, order), whole)
    assert torch.equal(read_vector(storage, NUMBER, files, "momentum"), -whole)
    assert torch.equal(read_vector(storage, NUMBER, files, "average"), 100 + whole)


@pytest.mark.parametrize("averages", [0, 1])
def test_where_there_is_no_average_the_parameters_stand_for_it(
    averages: int, storage: Storage
) -> None:
    files, whole = three(storage, averages)
    expected = whole.clone()
    expected[: 3 * averages] += 100
    assert torch.equal(read_vector(storage, NUMBER, files, "average"), expected)


def test_a_vector_that_there_is_none_of(storage: Storage) -> None:
    files, _ = three(storage, averages=0)
    with pytest.raises(DataError) as caught:
        read_vector(storage, NUMBER, files, "square")
    assert str(caught.value) == (
        f"{place(storage, files[0])}: has no square, only momentum, parameters"
    )


def test_a_vector_of_which_a_part_is_damaged(storage: Storage) -> None:
    files, _ = three(storage, averages=0)
    flawed = [files[0], replace(files[1], sha256="0" * 64), files[2]]
    with pytest.raises(DataError, match=files[1].name):
        read_vector(storage, NUMBER, flawed)
