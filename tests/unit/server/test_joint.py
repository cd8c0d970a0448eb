"""A joint's plain decisions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from distbelief.server.admission import Verdict
from distbelief.server.joint import Caller, Joint, Part
from distbelief.types import Push, Refusal, Version

MakePush = Callable[..., Push]


@pytest.fixture
def joint(make_push: MakePush) -> Joint:
    """Of item 3 with parts [10, 12) and [14, 16), of norms 3 and 4."""
    joint = Joint(make_push(3, [1, 1], begin=10, lease=7, replica=2, skipped=(5,)))
    joint.parts[10, 12] = Part(10, 12, 3.0, Version(2, 8))
    joint.parts[14, 16] = Part(14, 16, 4.0, Version(2, 6))
    return joint


def test_it_is_of_an_item_and_a_lease(joint: Joint, make_push: MakePush) -> None:
    assert (joint.item, joint.lease, joint.replica) == (3, 7, 2)
    assert joint.of(make_push(3, lease=7))
    assert not joint.of(make_push(3, lease=8))
    assert not joint.of(make_push(4, lease=7))


def test_the_norm_is_of_all_parts(joint: Joint) -> None:
    assert joint.norm == 5.0


def test_the_whole_is_one_push_on_the_oldest_base(joint: Joint, make_push: MakePush) -> None:
    with pytest.raises(ValueError, match="no part of item 3 has come"):
        joint.whole(10, 2)
    joint.vector = torch.arange(6.0)
    for incarnation in (2, 3):
        whole = joint.whole(10, incarnation)
        assert whole == make_push(
            3,
            whole.gradient,
            begin=10,
            lease=7,
            replica=2,
            skipped=(5,),
            base=Version(2, 6),
        )
        assert whole.gradient is joint.vector


@pytest.mark.parametrize(
    ("begin", "n", "overlaps"),
    [
        (12, 2, None),
        (12, 1, None),
        (13, 1, None),
        (10, 2, None),  # a retry
        (14, 2, None),
        (10, 1, "[10, 11) overlaps part [10, 12)"),
        (11, 1, "[11, 12) overlaps part [10, 12)"),
        (11, 3, "[11, 14) overlaps part [10, 12)"),
        (10, 6, "[10, 16) overlaps part [10, 12)"),
        (13, 2, "[13, 15) overlaps part [14, 16)"),
        (15, 1, "[15, 16) overlaps part [14, 16)"),
    ],
)
def test_what_overlaps_does_not_fit(
    begin: int, n: int, overlaps: str | None, joint: Joint, make_push: MakePush
) -> None:
    found = joint.misfit(make_push(3, begin=begin, size=n, lease=7, skipped=(5,)))
    assert found == (Verdict(Refusal.SIZE, f"part {overlaps}") if overlaps else None)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rate": 0.5}, "learning rate 1.0 and 0.5"),
        ({"examples": 9}, "examples 10 and 9"),
        ({"skipped": ()}, "skipped (5,) and ()"),
        ({"base": Version(1, 0)}, None),
        ({"replica": 2}, None),
    ],
)
def test_parts_must_agree(
    changes: dict[str, Any], text: str | None, joint: Joint, make_push: MakePush
) -> None:
    fields = {"begin": 12, "size": 2, "lease": 7, "skipped": (5,), **changes}
    found = joint.misfit(make_push(3, **fields))
    assert found == (Verdict(Refusal.LEASE, f"its parts disagree: {text}") if text else None)


def test_a_caller_knows_its_range(make_push: MakePush) -> None:
    caller = Caller(make_push(3, [1, 2, 3], begin=12), 1.0, None)
    assert caller.range == (12, 15)
    with pytest.raises(TimeoutError):
        caller.wait(0.0)
