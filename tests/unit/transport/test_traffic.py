"""Counts of bytes by sender."""

from collections.abc import Callable
from typing import Any

import pytest

from distbelief.transport.traffic import MAX_SENDERS, Traffic, sender_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", ""),
        ("replica-3/stage-1", "replica-3/stage-1"),
        ("a b\nc\x7fä∞", "a_b_c___"),
        ("x" * 65, "x" * 64),
    ],
)
def test_a_name_may_stand_in_metadata(text: str, name: str) -> None:
    assert sender_name(text) == name


def test_bytes_are_counted_by_sender() -> None:
    traffic = Traffic()
    for sender, nbytes in [("a", 4), ("b", 8), ("a", 2**40), ("", 99), ("é", 1), ("ü", 1)]:
        traffic.add(sender, nbytes)
    counts = traffic.by_sender()
    assert counts == {"a": 2**40 + 4, "b": 8, "_": 2}
    traffic.add("a", 1)
    assert counts["a"] == 2**40 + 4  # a copy


def test_of_too_many_senders_those_unheard_of_the_longest_go() -> None:
    traffic = Traffic()
    for number in range(MAX_SENDERS):
        traffic.add(str(number), 4)
    traffic.add("0", 4)
    traffic.add("new", 4)
    counts = traffic.by_sender()
    assert (len(counts), counts["0"], counts["new"]) == (MAX_SENDERS, 8, 4)
    assert "1" not in counts
    assert "2" in counts


def test_threads_lose_no_count(in_threads: Callable[..., list[Any]]) -> None:
    traffic = Traffic()

    def add(sender: str) -> None:
        for _ in range(500):
            traffic.add(sender, 1)
            traffic.by_sender()

    in_threads([lambda s=s: add(s) for s in "aabb"])
    assert traffic.by_sender() == {"a": 1000, "b": 1000}
