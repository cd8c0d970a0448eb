"""At the end the items of a replica that is slow are leased once more, and nobody waits for it."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import torch

from distbelief.server.pushlog import LogEntry, read_log
from distbelief.services import ParameterService, ShardService
from distbelief.types import Push, PushReply


def applied_by(ended: Any, shard: int) -> dict[int, int]:
    """Whose push of each item the shard applied."""
    _, entries = read_log(ended.storage, f"shard-{shard:05}-of-00002.0001.jsonl")
    return {entry.item: entry.replica for entry in entries if isinstance(entry, LogEntry)}


def told_by(ended: Any, replica: int) -> list[int]:
    """Items that the replica has told of."""
    return [
        item
        for event in ended.told("items")
        for item, whose in zip(event["items"], event["replicas"], strict=True)
        if whose == replica
    ]


def test_the_run_does_not_wait_for_a_slow_replica(small: Any, hold: Any) -> None:
    """It is in its first step until all is done, its own items included; then it comes too late."""
    ended = small.run(
        holds=[
            hold(lambda run: run.told("replica_joined", replica=1), after=2, who="replica-0"),
            hold(lambda run: run.report is not None and run.report.finished, who="replica-1"),
        ]
    )
    ended.require_all(small.n_examples)
    for shard in (0, 1):
        by = applied_by(ended, shard)
        assert by == dict.fromkeys(range(small.n_items), 0)
    late = told_by(ended, 1)
    assert late
    assert sorted(told_by(ended, 0)) == list(range(small.n_items))
    assert ended.result["pushes"]["repeated"] == 2 * len(late)
    assert ended.result["recoveries"] == []


class Mail:
    """What a slow replica reaches shard 1 by: a push waits until all others have come."""

    def __init__(self, service: ShardService, n_items: int) -> None:
        self._service = service
        self._n_items = n_items

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        give_up_at = time.monotonic() + 60.0
        while self._service.state().clock < self._n_items:
            assert time.monotonic() < give_up_at, "the others wait for it"
            time.sleep(0.01)
        return self._service.push(push, fetch_into=fetch_into)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)


class Noted:
    """What it reaches shard 0 by: its first push is noted once it has been applied."""

    def __init__(self, service: ShardService) -> None:
        self._service = service
        self.first: list[int] = []
        self.applied = threading.Event()

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        reply = self._service.push(push, fetch_into=fetch_into)
        self.first.append(push.item)
        self.applied.set()
        return reply

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)


def test_each_shard_takes_what_comes_first(small: Any, hold: Any) -> None:
    """Of one item: shard 0 the slow replica's gradient, shard 1 that of the other."""
    noted: list[Noted] = []

    def link(shard: int, service: ShardService) -> ParameterService:
        if threading.current_thread().name != "replica-1":
            return service
        if shard == 1:
            return cast(ParameterService, Mail(service, small.n_items))
        noted.append(Noted(service))
        return cast(ParameterService, noted[0])

    ended = small.run(
        holds=[hold(lambda run: noted and noted[0].applied.is_set(), after=2, who="replica-0")],
        link=link,
        changes={"lease_s": 1e-6},  # few items at once, so that few are to be leased once more
    )
    ended.require_all(small.n_examples)
    item = noted[0].first[0]
    assert applied_by(ended, 0) == {**dict.fromkeys(range(small.n_items), 0), item: 1}
    assert applied_by(ended, 1) == dict.fromkeys(range(small.n_items), 0)
    # Each has met the other's: the one replica's on shard 0, the other one's on shard 1.
    assert item in told_by(ended, 0)
    assert item in told_by(ended, 1)
    assert ended.result["pushes"]["repeated"] >= 2
