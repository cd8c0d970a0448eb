"""What may be skipped and set aside, to the very example."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from distbelief.coordinator.coordinator import RunStatus
from distbelief.coordinator.suspects import REASON
from distbelief.errors import RunError
from distbelief.items import ItemPlan
from distbelief.runtime.waste import SHOWN_UNREADABLE, Waste


def plan(n_items: int = 100) -> ItemPlan:
    return ItemPlan(n_examples=500, batch_size=10, n_push=1, n_items=n_items)


def status(
    *, skipped: int = 0, applied: int = 0, aside: int = 0, reason: str = "not_finite, 3 times"
) -> RunStatus:
    """As far as it is looked at."""
    fields = {
        "examples_skipped": skipped,
        "examples_applied": applied,
        "items_set_aside": aside,
        "set_aside": dict.fromkeys(range(aside), reason),
    }
    return cast(RunStatus, SimpleNamespace(**fields))


@pytest.mark.parametrize(
    ("skipped", "applied", "fails"),
    [
        (0, 0, False),
        (10, 0, False),
        (11, 0, True),
        (11, 10_999, True),
        (11, 11_000, False),  # one of a thousand
        (100, 100_000, False),
        (101, 100_000, True),
    ],
)
def test_images_that_cannot_be_read(skipped: int, applied: int, fails: bool) -> None:
    waste = Waste(plan())
    if fails:
        with pytest.raises(RunError, match=rf"^{skipped} of {applied} images could not be read"):
            waste.check(status(skipped=skipped, applied=applied))
    else:
        waste.check(status(skipped=skipped, applied=applied))


@pytest.mark.parametrize(
    ("n_items", "aside", "fails"),
    [(5, 3, False), (5, 4, True), (400, 4, False), (400, 5, True), (1000, 11, True)],
)
def test_items_that_are_set_aside(n_items: int, aside: int, fails: bool) -> None:
    waste = Waste(plan(n_items))
    if fails:
        with pytest.raises(RunError, match=rf"^{aside} of {n_items} items had to be set aside"):
            waste.check(status(aside=aside))
    else:
        waste.check(status(aside=aside))


@pytest.mark.parametrize(
    ("reason", "remedy"), [("norm, 3 times", "lower --lr"), (REASON, "events.jsonl")]
)
def test_the_commonest_reason_and_its_remedy_are_told(reason: str, remedy: str) -> None:
    with pytest.raises(RunError, match=rf"9 of them since: {reason}; .*{remedy}"):
        Waste(plan(100)).check(status(aside=9, reason=reason))


def test_each_image_is_named_once_and_only_a_few() -> None:
    waste = Waste(plan())
    names = [f"{n}.jpg" for n in range(SHOWN_UNREADABLE + 5)]
    for _ in range(2):  # as in each epoch
        for name in names:
            waste.unreadable([name])
    with pytest.raises(RunError) as caught:
        waste.check(status(skipped=99))
    assert f"({', '.join(names[:SHOWN_UNREADABLE])}; all are in" in str(caught.value)


def test_without_names_there_are_none() -> None:
    with pytest.raises(RunError, match=r"mend or remove them \(all are in the push logs"):
        Waste(plan()).check(status(skipped=99))
