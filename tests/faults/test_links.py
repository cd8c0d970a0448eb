"""Links that repeat messages, lose them and deliver them late change nothing of what is learned."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from distbelief.faults.link import FaultyLink, LinkFaults
from distbelief.replica import exchange
from distbelief.services import ShardService

FAULTS = LinkFaults(seed=7, repeat=1.0, drop_before=0.02, drop_after=0.05, late=0.3, held=0.2)
"""Every message is repeated, 5 % are lost after they were carried out, the order is shuffled."""

EPOCHS = 6


class Links:
    """Makes faulty links, each with faults of its own, and knows what happened on all of them."""

    def __init__(self) -> None:
        self._made: list[FaultyLink] = []

    def __call__(self, shard: int, service: ShardService) -> FaultyLink:
        link = FaultyLink(shard, service, replace(FAULTS, seed=FAULTS.seed + len(self._made)))
        self._made.append(link)
        return link

    @property
    def counts(self) -> Counter[str]:
        """What happened to the messages."""
        return sum((Counter(link.counts) for link in self._made), Counter())


@pytest.fixture(autouse=True)
def retried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of messages are lost, and each would be waited for."""
    monkeypatch.setattr(exchange, "FIRST_PAUSE_S", 0.001)


def averaged(ended: Any) -> dict[str, torch.Tensor]:
    return load(ended.storage.read("model.safetensors"))


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("transport", ["direct", "grpc"])
def test_one_replica_learns_the_same_bit_for_bit(
    small: Any, tmp_path: Path, shards: int, transport: str
) -> None:
    changes = {"epochs": EPOCHS, "replicas": 1, "shards": shards, "overlap": False}
    links = Links()
    plain = small.run(changes={**changes, "run_dir": str(tmp_path / "plain")}, transport=transport)
    ended = small.run(changes=changes, transport=transport, link=links)
    ended.require_all(EPOCHS * 128)
    assert torch.equal(ended.values, plain.values)
    expected = averaged(plain)
    assert expected.keys() == averaged(ended).keys()
    for name, tensor in averaged(ended).items():
        assert torch.equal(tensor, expected[name]), name
    check_happened(links, ended, n_pushes=EPOCHS * 32 * shards)
    assert (ended.audit.forgotten, ended.result["recoveries"]) == (0, [])
    # It is the run that it is compared with that could be wrong alike.
    assert not torch.equal(plain.values, torch.zeros_like(plain.values))


@pytest.mark.parametrize("transport", ["direct", "grpc"])
def test_every_example_of_two_replicas_is_applied_once(small: Any, transport: str) -> None:
    links = Links()
    changes = {"epochs": EPOCHS, "n_fetch": 2}
    ended = small.run(changes=changes, transport=transport, link=links)
    ended.require_all(EPOCHS * 128)
    assert (ended.audit.forgotten, ended.result["recoveries"]) == (0, [])
    check_happened(links, ended, n_pushes=EPOCHS * 32 * 2)


def check_happened(links: Links, ended: Any, *, n_pushes: int) -> None:
    counts = links.counts
    assert counts["repeated"] >= n_pushes
    assert counts["delivered"] >= n_pushes // 3
    assert counts["held"] >= n_pushes // 10
    assert counts["dropped_after"] >= n_pushes // 50
    assert counts["dropped_before"] >= n_pushes // 200
    # All of them met a shard that has the item already, and says so.
    assert ended.result["pushes"]["applied"] == n_pushes
    assert ended.result["pushes"]["repeated"] >= n_pushes + counts["delivered"]
    assert ended.result["pushes"]["refused"] == {}
