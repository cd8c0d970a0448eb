"""Which place each start of a shard gets, with a stand-in for what reserves them."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distbelief.runtime import ray_places
from distbelief.runtime.placement import SHARD
from distbelief.runtime.ray_groups import Groups
from distbelief.runtime.ray_places import Places
from distbelief.runtime.shunned import FOR_S, Shunned


class Room:
    """Knows the node of each place, and takes note of what is to be renewed."""

    def __init__(self) -> None:
        self.nodes: dict[int, str | None] = {}
        self.renewed: list[tuple[int, set[str]]] = []

    def node_of(self, role: str, place: int) -> str | None:
        assert role == SHARD
        return self.nodes.get(place, f"node{place}")

    def renew(self, role: str, place: int, *, shunned: Iterable[str]) -> None:
        assert role == SHARD
        self.renewed.append((place, set(shunned)))


class Placed:
    """Places of shards, with their clock."""

    def __init__(self, n_shards: int = 2, copies: int = 2) -> None:
        self.now = 1000.0
        self.room = Room()
        self.shunned = Shunned()
        self.places = Places(cast(Groups, self.room), n_shards, copies, self.shunned)


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> Placed:
    placed = Placed()
    monkeypatch.setattr(ray_places, "time", SimpleNamespace(monotonic=lambda: placed.now))
    for shard in range(2):
        assert placed.places.first(shard, 1) == shard
    return placed


def test_the_first_starts_take_what_is_reserved(placed: Placed) -> None:
    assert placed.room.renewed == []


def test_a_twin_gets_the_second_place_on_another_node(placed: Placed) -> None:
    assert [placed.places.another(shard, 2) for shard in range(2)] == [2, 3]
    assert placed.room.renewed == [(2, {"node0"}), (3, {"node1"})]


def test_a_shard_changes_places_with_its_twin(placed: Placed) -> None:
    places = placed.places
    found = [places.another(0, 2)]
    for incarnation in (3, 4, 5):  # the twin has taken over, and gets a twin of its own
        places.free(0, incarnation - 2)
        found.append(places.another(0, incarnation))
    assert found == [2, 0, 2, 0]
    assert [shunned for _, shunned in placed.room.renewed] == [
        *({"node0"}, {"node2"}, {"node0"}, {"node2"}),
    ]


def test_a_shard_that_starts_anew_has_its_place_again(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = Placed(copies=1)
    monkeypatch.setattr(ray_places, "time", SimpleNamespace(monotonic=lambda: placed.now))
    placed.places.first(1, 1)
    placed.places.free(1, 1)
    placed.places.free(1, 1)
    placed.places.free(0, 9)  # who was never placed
    assert placed.places.another(1, 2) == 1
    assert placed.room.renewed == [(1, set())]


def test_a_shunned_node_is_avoided_for_a_while(placed: Placed) -> None:
    placed.shunned.add("silent", placed.now)
    placed.places.another(0, 2)
    placed.now += FOR_S
    placed.places.another(1, 2)
    assert placed.room.renewed == [(2, {"silent", "node0"}), (3, {"node1"})]


def test_a_place_whose_node_is_not_decided_yet_shuns_none(placed: Placed) -> None:
    placed.room.nodes[0] = None
    placed.places.another(0, 2)
    assert placed.room.renewed == [(2, set())]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=30))
def test_no_two_starts_ever_share_a_place(deaths: list[tuple[int, int]]) -> None:
    """Of three shards and their twins one dies after the other, and is replaced each time."""
    placed = Placed(n_shards=3)
    places, newest = placed.places, 2
    here = {(shard, 1): places.first(shard, 1) for shard in range(3)}
    here |= {(shard, 2): places.another(shard, 2) for shard in range(3)}
    for shard, which in deaths:
        dead = sorted(start for start in here if start[0] == shard)[which]
        places.free(*dead)
        place = here.pop(dead)
        newest += 1
        here[shard, newest] = places.another(shard, newest)
        assert here[shard, newest] == place
        assert sorted(here.values()) == list(range(6))
        assert {place % 3 for (k, _), place in here.items() if k == shard} == {shard}
