"""The stages of one replica as a group: how they find each other, and what they tell one another.

Only this module and the pipeline use ``torch.distributed``, whose process group a process has one
of: a stage is a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch._C._distributed_c10d import TCPStore

from distbelief.errors import StageLostError

Word = dict[str, Any]
"""What a stage says: plain values that JSON knows. Nothing is unpickled."""

MEET_S = 120.0
"""How long the stages wait for each other at the start; some may be importing torch."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the stages of one replica meet: the store that its first stage's process keeps."""

    host: str
    port: int


class Group(Protocol):
    """The stages of a replica, as one of them sees it. All calls are made by all, in one order."""

    stage: int
    n_stages: int

    def gather(self, word: Word) -> list[Word]:
        """What every stage says, in their order; blocks until all have."""
        ...


class StageGroup(Group, Protocol):
    """A group of several stages, of which the first leads."""

    def tell(self, word: Word, arrays: Sequence[NDArray[Any]] = ()) -> None:
        """The first stage tells the others, who :meth:`hear`."""
        ...

    def hear(self) -> tuple[Word, list[NDArray[Any]]]:
        """What the first stage tells; blocks until it does."""
        ...


class Alone:
    """The group of a replica that has one stage."""

    stage, n_stages = 0, 1

    def gather(self, word: Word) -> list[Word]:
        """See :class:`Group`."""
        return [word]


class Stages:
    """A :class:`StageGroup` of processes; a context manager, one at a time in each of them.

    Every call raises StageLostError if another stage has ended, or does not answer in time.

    Args:
        meeting: Where the stages meet.
        replica: Whose stages they are.
        stage: Which of them this one is.
        n_stages: How many there are.
        address: By which the other stages reach this host.
        timeout_s: How long one stage may keep the others waiting.
    """

    def __init__(
        self,
        meeting: Meeting,
        *,
        replica: int,
        stage: int,
        n_stages: int,
        address: str,
        timeout_s: float,
    ) -> None:
        self.stage = stage
        self.n_stages = n_stages
        self._meeting = meeting
        self._replica = replica
        self._address = address
        self._timeout = timedelta(seconds=timeout_s)

    def __enter__(self) -> Stages:
        gloo: Any = dist.ProcessGroupGloo  # whose options have no stubs
        options = gloo._Options()
        # By its own means gloo takes the address that the host's name has, which may be another.
        device = gloo.create_device(hostname=self._address)
        options._devices = [device]
        options._timeout = self._timeout
        with self.watched("they did not meet"):
            store = TCPStore(
                self._meeting.host,
                self._meeting.port,
                self.n_stages,
                is_master=False,
                timeout=timedelta(seconds=MEET_S),
            )
            dist.init_process_group(
                "gloo",
                store=store,
                rank=self.stage,
                world_size=self.n_stages,
                timeout=self._timeout,
                pg_options=options,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        dist.destroy_process_group()

    @contextmanager
    def watched(self, doing: str = "no answer") -> Iterator[None]:
        """Turns what torch says of a stage that is gone into our word for it."""
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            raise self.lost(error, doing) from error

    def lost(self, error: Exception, doing: str = "no answer") -> StageLostError:
        """Our word for what torch says of a stage that is gone."""
        said = str(error).strip().splitlines()
        # What comes behind gloo's first sentence is advice for whoever develops gloo.
        cause = said[0].partition(". ")[0] if said else type(error).__name__
        detail = f"{doing} ({cause})"
        return StageLostError(self._replica, self.stage, detail)

    def tell(self, word: Word, arrays: Sequence[NDArray[Any]] = ()) -> None:
        """See :class:`StageGroup`."""
        about = [{"shape": a.shape, "dtype": a.dtype.str} for a in arrays]
        header = json.dumps({"word": word, "arrays": about}).encode()
        parts = [np.ascontiguousarray(a).view(np.uint8).reshape(-1).tobytes() for a in arrays]
        content = torch.frombuffer(bytearray(b"".join([header, *parts])), dtype=torch.uint8)
        with self.watched():
            dist.broadcast(torch.tensor([len(header), content.numel()]), 0)
            dist.broadcast(content, 0)

    def hear(self) -> tuple[Word, list[NDArray[Any]]]:
        """See :class:`StageGroup`."""
        sizes = torch.empty(2, dtype=torch.int64)
        with self.watched():
            dist.broadcast(sizes, 0)
            content = torch.empty(int(sizes[1]), dtype=torch.uint8)
            dist.broadcast(content, 0)
        raw = content.numpy().tobytes()
        at = int(sizes[0])
        told = json.loads(raw[:at])
        arrays = []
        for about in told["arrays"]:
            kind, shape = np.dtype(about["dtype"]), tuple(about["shape"])
            n = int(np.prod(shape, dtype=np.int64))
            arrays.append(np.frombuffer(raw, kind, count=n, offset=at).reshape(shape).copy())
            at += n * kind.itemsize
        return told["word"], arrays

    def gather(self, word: Word) -> list[Word]:
        """See :class:`StageGroup`."""
        mine = torch.frombuffer(bytearray(json.dumps(word).encode()), dtype=torch.uint8)
        sizes = [torch.empty(1, dtype=torch.int64) for _ in range(self.n_stages)]
        with self.watched():
            dist.all_gather(sizes, torch.tensor([mine.numel()]))
            longest = max(int(size) for size in sizes)
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: mine.numel()] = mine
            contents = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.n_stages)]
            dist.all_gather(contents, padded)
        return [
            json.loads(content[: int(size)].numpy().tobytes())
            for size, content in zip(sizes, contents, strict=True)
        ]


def keep_store(host: str, n_stages: int) -> tuple[TCPStore, Meeting]:
    """The store at which the stages of a replica meet, kept for as long as it is referred to.

    Args:
        host: The address of this host, by which the stages reach it.
        n_stages: Stages of the replica.
    """
    store = TCPStore(host, 0, n_stages, is_master=True, wait_for_workers=False)
    return store, Meeting(host, store.port)
