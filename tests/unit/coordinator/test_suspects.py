"""Items in the hands of replicas that died."""

from distbelief.coordinator.suspects import Suspects
from distbelief.server.applied import ItemSet


def test_the_second_death_makes_a_suspect_and_the_third_is_the_last() -> None:
    suspects = Suspects()
    assert suspects.note_death([1, 2, 3]) == []
    assert list(suspects) == []
    assert suspects.note_death([2, 3]) == []
    assert sorted(suspects) == [2, 3]
    assert (1 in suspects, 2 in suspects) == (False, True)
    assert suspects.note_death([3, 9]) == [3]


def test_an_item_that_is_done_is_no_suspect_and_begins_anew() -> None:
    suspects = Suspects()
    suspects.note_death([1, 2])
    suspects.note_death([1, 2])
    suspects.clear(ItemSet(((0, 2),)))
    assert list(suspects) == [2]
    assert suspects.note_death([1, 2]) == [2]
    assert 1 not in suspects
