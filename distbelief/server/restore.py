"""A shard's state from a snapshot, whatever the number of shards that wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from distbelief.server.account import Account, merged
from distbelief.server.statefile import Saved, read
from distbelief.storage import Storage
from distbelief.types import ShardFile


@dataclass(frozen=True, slots=True)
class Restore:
    """Where a shard's state is to be taken from.

    Attributes:
        snapshot: The snapshot's number.
        files: Its files that have a part of the shard's range, in the order of their ranges.
    """

    snapshot: int
    files: tuple[ShardFile, ...]

    @property
    def sources(self) -> tuple[tuple[int, int, int, int], ...]:
        """Shard, number of shards, incarnation and clock of each file, for the push log."""
        return tuple(
            (f.state.shard, f.n_shards, f.state.incarnation, f.state.clock) for f in self.files
        )


@dataclass(frozen=True, slots=True)
class Restored:
    """A shard's state: vectors of its range by name, its account, and its average's counts."""

    tensors: dict[str, torch.Tensor]
    account: Account
    average: dict[str, Any]


def restore(storage: Storage, wanted: Restore, begin: int, end: int) -> Restored:
    """Reads the state of the range ``[begin, end)``.

    From files of the same range it is exactly what was saved. From others vectors are cut and
    joined, and what is a count of a whole shard is that of the file with the largest part.

    Raises:
        DataError: a file is missing or damaged.
    """
    saved = [read(storage, wanted.snapshot, file) for file in wanted.files]
    tensors: dict[str, torch.Tensor] = {}
    for file, part in zip(wanted.files, saved, strict=True):
        low, high = max(begin, file.state.begin), min(end, file.state.end)
        for name in _names(saved):
            source = part.tensors.get(name, part.tensors["parameters"])
            vector = tensors.setdefault(name, torch.empty(end - begin))
            vector[low - begin : high - begin] = source[
                low - file.state.begin : high - file.state.begin
            ]
    order = sorted(
        range(len(saved)),
        key=lambda i: -_overlap(wanted.files[i], begin, end),
    )
    accounts = [Account.from_dict(saved[i].about["account"]) for i in order]
    if len(accounts) == 1 and _same_range(wanted.files[0], begin, end):
        return Restored(tensors, accounts[0], saved[0].about["average"])
    # Each old shard's counts go to the one new shard that has its first element.
    counted = [begin <= wanted.files[i].state.begin < end for i in order]
    return Restored(tensors, merged(accounts, counted), saved[order[0]].about["average"])


def _names(saved: list[Saved]) -> list[str]:
    """Vectors that some file has: of an average that began on some shards only, on all."""
    return list(dict.fromkeys(name for part in saved for name in part.tensors))


def _overlap(file: ShardFile, begin: int, end: int) -> int:
    return min(end, file.state.end) - max(begin, file.state.begin)


def _same_range(file: ShardFile, begin: int, end: int) -> bool:
    return (file.state.begin, file.state.end) == (begin, end)
