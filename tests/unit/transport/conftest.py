"""A shard behind its server, to be attacked, and what an attack must not change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import torch

from distbelief.server.shard import Shard
from distbelief.transport.client import ShardClient
from distbelief.transport.guard import authorization
from distbelief.transport.service import REASON_KEY, SERVICE, ShardServer
from distbelief.types import Push, ShardState

TOKEN = "the run's token"
BEGIN, SIZE = 10, 4
N_CLIENTS = 1
MakePush = Callable[..., Push]


class Memory:
    """The process's largest resident size since the block began."""

    def __enter__(self) -> Memory:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._peak()
        return self

    def __exit__(self, *of_an_error: object) -> None:
        self.growth = self._peak() - self._before

    def _peak(self) -> int:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) << 10


class Victim:
    """A shard behind its server, and what it was like before the attack."""

    def __init__(self, shard: Shard, server: ShardServer, client: ShardClient) -> None:
        self.shard, self.endpoint, self.client = shard, server.endpoint, client
        self.n_threads: int = server._pool._max_workers
        self.before, self.parameters = self._state(), self._parameters()

    def is_unharmed(self) -> None:
        assert self._state() == self.before
        assert torch.equal(self._parameters(), self.parameters)

    def _state(self) -> ShardState:
        # Refusals are counted, and what is looked at here is, too; nothing else may change.
        return replace(self.client.state(), refused={}, nbytes_sent=0, traffic={})

    def _parameters(self) -> torch.Tensor:
        out = torch.empty(SIZE)
        self.client.fetch(out, begin=BEGIN)
        return out


@pytest.fixture
def victim(start_shard: Callable[..., Shard], make_push: MakePush) -> Iterator[Victim]:
    shard = start_shard(SIZE, begin=BEGIN)
    with (
        ShardServer(shard, size=SIZE, token=TOKEN, n_clients=N_CLIENTS) as server,
        ShardClient(0, server.endpoint, TOKEN, timeout_s=60) as client,
    ):
        client.push(make_push(0, [1, 2, 3, 4], begin=BEGIN))
        client.set_aside((1,), "why")
        victim = Victim(shard, server, client)
        yield victim
        victim.is_unharmed()


@pytest.fixture
def channel(victim: Victim) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(victim.endpoint, options=options) as channel:
        yield channel


@pytest.fixture
def ask(channel: grpc.Channel) -> Callable[..., tuple[grpc.StatusCode, str, list[bytes]]]:
    """Makes a call of any kind, of raw messages, to the victim's server."""

    def call(
        method: str,
        *messages: bytes,
        metadata: tuple[tuple[str, str], ...] = authorization(TOKEN),
        timeout: float | None = 60,
    ) -> tuple[grpc.StatusCode, str, list[bytes]]:
        """The status of a call, the reason that came with it, and what was answered before."""
        call = channel.stream_stream(f"/{SERVICE}/{method}")(
            iter(messages), timeout=timeout, metadata=metadata
        )
        answers: list[bytes] = []
        with suppress(grpc.RpcError):  # its status is looked at below, like that of a good end
            answers += call
        trailing = dict(call.trailing_metadata() or ())
        return call.code(), str(trailing.get(REASON_KEY, "")), answers

    return call


@pytest.fixture
def memory() -> Memory:
    """A block whose ``growth`` is looked at afterwards."""
    return Memory()
