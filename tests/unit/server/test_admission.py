"""Admission as a table."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from distbelief.server.admission import (
    AdmissionRules,
    Verdict,
    check_content,
    check_version,
    is_part,
    oldest,
    staleness,
)
from distbelief.types import Push, Refusal, Version

RULES = AdmissionRules(layout="fingerprint", incarnation=3, begin=10, end=14)
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def good(make_push: Callable[..., Push]) -> Push:
    return make_push(0, [3.0, 0.0, 4.0, 0.0], begin=10, incarnation=3, base=Version(3, 0))


def test_a_good_push_is_admitted(good: Push) -> None:
    assert check_content(good, RULES) is None
    assert check_content(good, replace(RULES, max_norm=5.0)) is None  # its norm is 5


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        (
            {"incarnation": 2},
            Verdict(Refusal.INCARNATION, "meant for incarnation 2, this shard is of 3"),
        ),
        (
            {"incarnation": 4},
            Verdict(Refusal.INCARNATION, "meant for incarnation 4, this shard is of 3"),
        ),
        (
            {"layout": "other"},
            Verdict(Refusal.LAYOUT, "layout other, this shard has fingerprint"),
        ),
        ({"begin": 9}, Verdict(Refusal.SIZE, "range [9, 13), this shard has [10, 14)")),
        ({"begin": 11}, Verdict(Refusal.SIZE, "range [11, 15), this shard has [10, 14)")),
        (
            {"gradient": torch.zeros(3), "begin": 12},
            Verdict(Refusal.SIZE, "range [12, 15), this shard has [10, 14)"),
        ),
        (
            {"gradient": torch.zeros(3), "begin": 9},
            Verdict(Refusal.SIZE, "range [9, 12), this shard has [10, 14)"),
        ),
        (
            {"gradient": torch.zeros(0), "begin": 12},
            Verdict(Refusal.SIZE, "range [12, 12), this shard has [10, 14)"),
        ),
        (
            {"gradient": torch.zeros(5)},
            Verdict(Refusal.SIZE, "range [10, 15), this shard has [10, 14)"),
        ),
        ({"rate": NAN}, Verdict(Refusal.RATE, "learning rate nan")),
        ({"rate": INF}, Verdict(Refusal.RATE, "learning rate inf")),
        ({"rate": -0.5}, Verdict(Refusal.RATE, "learning rate -0.5")),
        (
            {"gradient": torch.tensor([0.0, NAN, 0.0, 0.0])},
            Verdict(Refusal.NOT_FINITE, "gradient of norm nan"),
        ),
        (
            {"gradient": torch.tensor([0.0, 0.0, 0.0, -INF])},
            Verdict(Refusal.NOT_FINITE, "gradient of norm inf"),
        ),
        (
            {"gradient": torch.tensor([INF, 0.0, 0.0, -INF])},
            Verdict(Refusal.NOT_FINITE, "gradient of norm inf"),
        ),
    ],
)
def test_content(changes: dict[str, Any], verdict: Verdict, good: Push) -> None:
    assert check_content(replace(good, **changes), RULES) == verdict


@pytest.mark.parametrize(
    ("begin", "n", "part"),
    [
        (10, 4, False),
        (10, 3, True),
        (11, 3, True),
        (12, 1, True),
        (13, 1, True),
        (10, 0, False),
        (14, 0, False),
        (9, 2, False),
        (13, 2, False),
        (9, 6, False),
        (2**40, 1, False),
    ],
)
def test_a_part_is_a_true_part(begin: int, n: int, part: bool, good: Push) -> None:
    push = replace(good, begin=begin, gradient=torch.zeros(n))
    assert is_part(push, RULES) is part
    assert (check_content(push, RULES) is None) is (part or (begin, n) == (10, 4))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gradient": torch.tensor([NAN, 1.0])}, Refusal.NOT_FINITE),
        ({"gradient": torch.tensor([3.0, 4.0])}, Refusal.NORM),
        ({"rate": -1.0}, Refusal.RATE),
        ({"layout": "other"}, Refusal.LAYOUT),
        ({"incarnation": 2}, Refusal.INCARNATION),
    ],
)
def test_a_part_is_checked_like_a_whole(
    changes: dict[str, Any], reason: Refusal, good: Push
) -> None:
    rules = replace(RULES, max_norm=4.9)
    part = replace(good, begin=11, gradient=torch.ones(2))
    assert check_content(part, rules) is None
    verdict = check_content(replace(part, **changes), rules)
    assert verdict is not None
    assert verdict.reason is reason


@pytest.mark.parametrize(
    ("bases", "expected"),
    [
        ([Version(3, 5)], Version(3, 5)),
        ([Version(3, 5), Version(3, 4), Version(3, 6)], Version(3, 4)),
        ([Version(3, 5), Version(2, 99)], Version(2, 99)),
        ([Version(3, 5), Version(4, 99)], Version(4, 99)),  # another incarnation, any
        ([Version(2, 3), Version(1, 7)], Version(1, 7)),
    ],
)
def test_the_oldest_base(bases: list[Version], expected: Version) -> None:
    assert oldest(bases, 3) == oldest(reversed(bases), 3) == expected


def test_norm(good: Push) -> None:
    rules = replace(RULES, max_norm=4.9)
    verdict = check_content(good, rules)
    assert verdict == Verdict(Refusal.NORM, "gradient of norm 5, the limit is 4.9")


def test_a_rate_of_zero_is_a_rate(good: Push) -> None:
    assert check_content(replace(good, rate=0.0), RULES) is None


def test_the_gradient_is_only_read(good: Push) -> None:
    check_content(good, RULES)
    assert good.gradient.tolist() == [3.0, 0.0, 4.0, 0.0]


@pytest.mark.parametrize(
    ("base", "now", "expected"),
    [
        (Version(3, 5), Version(3, 5), 0),
        (Version(3, 5), Version(3, 9), 4),
        (Version(2, 5), Version(3, 9), None),
    ],
)
def test_staleness(base: Version, now: Version, expected: int | None) -> None:
    assert staleness(base, now) == expected


@pytest.mark.parametrize(
    ("base", "limit", "verdict"),
    [
        (Version(3, 9), None, None),
        (Version(3, 0), None, None),
        (Version(3, 9), 0, None),
        (Version(3, 8), 0, Verdict(Refusal.STALE, "staleness 1, the limit is 0")),
        (Version(3, 4), 5, None),
        (Version(3, 3), 5, Verdict(Refusal.STALE, "staleness 6, the limit is 5")),
        (Version(2, 0), 0, None),  # across incarnations it is not known
        (Version(2, 99), None, None),
        (
            Version(3, 10),
            None,
            Verdict(Refusal.INCARNATION, "rests on version (3, 10), this shard is at (3, 9)"),
        ),
        (
            Version(4, 0),
            None,
            Verdict(Refusal.INCARNATION, "rests on version (4, 0), this shard is at (3, 9)"),
        ),
    ],
)
def test_version(base: Version, limit: int | None, verdict: Verdict | None) -> None:
    rules = replace(RULES, max_staleness=limit)
    assert check_version(base, Version(3, 9), rules) == verdict
