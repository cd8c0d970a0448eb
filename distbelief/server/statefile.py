"""A shard's state as a file of a snapshot, in safetensors' format.

``snapshots/000017/shard-00000-of-00002.safetensors`` holds ``parameters``, the update rule's state
by name (``momentum``), and ``average`` once there is one, each ``(n,) float32``; its metadata has
the shard's account as JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from distbelief.errors import DataError
from distbelief.storage import Storage
from distbelief.types import ShardFile

SNAPSHOTS = "snapshots"
KEY = "distbelief"


def snapshot_folder(number: int) -> str:
    """The folder of a snapshot below the run's."""
    return f"{SNAPSHOTS}/{number:06d}"


def file_name(shard: int, n_shards: int) -> str:
    """A shard's file within a snapshot's folder."""
    return f"shard-{shard:05d}-of-{n_shards:05d}.safetensors"


def image(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> bytearray:
    """The bytes of the file.

    Written here rather than by the library, which would copy the vectors twice more: this copy is
    made while the shard's writer waits, and is the one that is then written at leisure.

    Args:
        tensors: ``(n,) float32`` each, contiguous, on the CPU.
        about: What goes into the metadata, as JSON.
    """
    header: dict[str, Any] = {"__metadata__": {KEY: json.dumps(about)}}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + 4 * tensor.numel()
        header[name] = {
            "dtype": "F32",
            "shape": [tensor.numel()],
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    content = bytearray(len(head) + begin)
    content[: len(head)] = head
    vectors = torch.frombuffer(content, dtype=torch.uint8, offset=len(head), count=begin)
    at = 0
    for tensor in tensors.values():
        raw = tensor.detach().view(torch.uint8)
        vectors[at : at + raw.numel()].copy_(raw)
        at += raw.numel()
    return content


def digest(content: bytes | bytearray) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True)
class Saved:
    """What a shard's file holds."""

    tensors: dict[str, torch.Tensor]
    about: dict[str, Any]


def read(storage: Storage, snapshot: int, file: ShardFile) -> Saved:
    """A shard's file, held against the digest that the manifest has of it.

    Raises:
        DataError: the file is missing or damaged; the text names it.
    """
    name = f"{snapshot_folder(snapshot)}/{file.name}"
    content = check(storage, snapshot, file)
    try:
        tensors = load(content)
        # The header, whose length comes first, is JSON.
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(head["__metadata__"][KEY])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{storage.url}/{name}", f"is no shard's state: {error}") from error
    return Saved(tensors, about)


def views(content: bytearray) -> Saved:
    """What :func:`image` has put into those bytes; the tensors share their memory.

    Not by the library, which would copy the vectors three times while the shard that sent them
    waits.

    Raises:
        ValueError: they are no such image.
    """
    try:
        begin = 8 + int.from_bytes(content[:8], "little")
        head = json.loads(content[8:begin])
        about = json.loads(head.pop("__metadata__")[KEY])
        tensors = {}
        for name, entry in head.items():
            if entry["dtype"] != "F32":
                raise ValueError(f"{name} is of {entry['dtype']}")
            low, high = entry["data_offsets"]
            if not 0 <= low < high <= len(content) - begin or (high - low) % 4:
                raise ValueError(f"{name} lies at [{low}, {high})")
            tensors[name] = torch.frombuffer(
                content, dtype=torch.float32, offset=begin + low, count=(high - low) // 4
            )
    # JSON of another process may be anything at all.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no image of a shard's state: {error}") from error
    return Saved(tensors, about)


def check(storage: Storage, snapshot: int, file: ShardFile) -> bytes:
    """The bytes of a shard's file, if they are those that were written.

    Raises:
        DataError: the file is missing or damaged; the text names it.
    """
    name = f"{snapshot_folder(snapshot)}/{file.name}"
    try:
        content = storage.read(name)
    except OSError as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"unreadable: {error}"
        raise DataError(f"{storage.url}/{name}", problem) from error
    if len(content) != file.nbytes:
        problem = f"is damaged: {len(content):,} bytes, of which there were {file.nbytes:,}"
        raise DataError(f"{storage.url}/{name}", problem)
    if digest(content) != file.sha256:
        problem = "is damaged: its SHA-256 is not what the manifest says"
        raise DataError(f"{storage.url}/{name}", problem)
    return content


def read_vector(
    storage: Storage, snapshot: int, files: Sequence[ShardFile], name: str = "parameters"
) -> torch.Tensor:
    """A whole vector, ``(P,) float32``, from the files of all shards of a snapshot.

    Args:
        storage: The run's folder.
        snapshot: The snapshot's number.
        files: Its files, from the manifest.
        name: ``parameters``, ``average`` (the parameters where there is none yet), or a slot of
            the update rule.

    Raises:
        DataError: a file is missing or damaged, or has no such vector.
    """
    whole = torch.empty(max(file.state.end for file in files))
    for file in files:
        tensors = read(storage, snapshot, file).tensors
        wanted = "parameters" if name == "average" and name not in tensors else name
        if wanted not in tensors:
            place = f"{storage.url}/{snapshot_folder(snapshot)}/{file.name}"
            raise DataError(place, f"has no {name}, only {', '.join(sorted(tensors))}")
        whole[file.state.begin : file.state.end] = tensors[wanted]
    return whole
