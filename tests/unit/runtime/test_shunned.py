"""Nodes on which processes fell silent."""

from __future__ import annotations

import pytest

from distbelief.runtime.shunned import FOR_S, Shunned


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (110.0, {"a", "b"}),
        (100.0 + FOR_S - 0.5, {"a", "b"}),
        (100.0 + FOR_S, {"b"}),
        (110.0 + FOR_S, set()),
    ],
)
def test_for_how_long_a_node_is_shunned(at: float, expected: set[str]) -> None:
    shunned = Shunned()
    shunned.add("a", 100.0)
    shunned.add("b", 110.0)
    assert shunned.nodes(at) == expected


def test_another_silence_begins_anew() -> None:
    shunned = Shunned()
    assert shunned.nodes(0.0) == frozenset()
    shunned.add("a", 0.0)
    shunned.add("a", 50.0)
    assert shunned.nodes(FOR_S + 10.0) == {"a"}
    assert shunned.nodes(FOR_S + 50.0) == frozenset()
