"""What is refused as poison: the item's fault, or the replica's."""

import pytest

from distbelief.coordinator.refusals import Refusals
from distbelief.types import ItemOutcome, Refusal

IN_A_ROW = "3 gradients in a row were refused (not_finite)"
NAN, NORM, STALE = Refusal.NOT_FINITE, Refusal.NORM, Refusal.STALE


def outcome(item: int, refusal: str = "") -> ItemOutcome:
    return ItemOutcome(item=item, examples=1, losses={}, refusal=refusal)


@pytest.mark.parametrize(
    ("outcomes", "dismissal"),
    [
        ([(0, NAN), (1, NAN)], ""),
        ([(0, NAN), (1, NAN), (2, NAN)], IN_A_ROW),
        ([(0, NAN), (1, NORM), (0, NORM)], "3 gradients in a row were refused (norm)"),
        ([(0, NAN), (1, NAN), (2, NAN), (3, "")], IN_A_ROW),
        ([(0, NAN), (1, NAN), (2, ""), (3, NAN), (4, NAN)], ""),
        ([(0, NAN), (1, NAN), (2, STALE), (3, NAN)], ""),
        ([(0, NAN), (0, NAN), (0, NAN)], ""),  # the item's fault
        (
            [(0, NAN), (0, NAN), (0, NAN), (1, NAN)],
            "3 gradients in a row were refused (not_finite)",
        ),
    ],
)
def test_a_replica_is_dismissed_for_several_items_in_a_row(
    outcomes: list[tuple[int, str]], dismissal: str
) -> None:
    refusals = Refusals()
    for item, refusal in outcomes:
        refusals.note(7, outcome(item, refusal))
        refusals.note(8, outcome(100))  # another's are not counted with them
    assert refusals.dismissal(7) == dismissal
    assert refusals.dismissal(8) == ""
    refusals.lose(7)
    assert refusals.dismissal(7) == ""


def test_an_item_is_set_aside_for_three_refusals_of_whomever() -> None:
    refusals = Refusals()
    said = [
        refusals.note(replica, outcome(5, refusal))
        for replica, refusal in [(0, NAN), (0, STALE), (1, NORM), (2, NAN), (3, NORM), (4, "")]
    ]
    assert said == ["", "", "", "not_finite, 3 times", "norm, 3 times", ""]
