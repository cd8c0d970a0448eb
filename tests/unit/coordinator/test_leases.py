"""The leases that are out."""

from distbelief.coordinator.leases import Lease, Leases


def numbers(leases: list[Lease]) -> list[tuple[int, int]]:
    return [(lease.item, lease.number) for lease in leases]


def test_leases_are_found_by_item_and_by_replica() -> None:
    leases = Leases(first=100)
    one, two = leases.grant(5, 0, at=1.0), leases.grant(5, 1, at=2.0)
    other = leases.grant(6, 0, at=3.0)
    assert [one.number, two.number, other.number] == [100, 101, 102]
    assert leases.of_item(5) == [one, two]
    assert leases.of_replica(0) == [one, other]
    assert leases.find(5, 1) is two
    assert (leases.find(6, 1), leases.find(7, 0), leases.find(5, 2)) == (None, None, None)
    assert (5 in leases, 7 in leases, len(leases)) == (True, False, 2)


def test_an_item_is_free_when_its_last_lease_ends() -> None:
    leases = Leases(first=1)
    one, two = leases.grant(5, 0, at=0.0), leases.grant(5, 1, at=0.0)
    leases.report(two, now=3)
    assert not leases.end(one)
    assert leases.of_item(5) == [two]
    assert leases.of_replica(0) == []
    assert leases.end(two)
    assert (5 in leases, len(leases), leases.n_reported) == (False, 0, 0)


def test_what_is_reported_is_held_no_more_and_counts_once() -> None:
    leases = Leases(first=1)
    one, two = leases.grant(5, 0, at=0.0), leases.grant(5, 1, at=0.0)
    third = leases.grant(6, 0, at=0.0)
    leases.report(one, now=3)
    leases.report(two, now=4)
    assert leases.held_by(0) == [third]
    assert leases.n_reported == 1
    assert leases.reported_before(3) == []
    assert leases.reported_before(4) == [one]
    assert leases.reported_before(5) == [one, two]


def test_the_longest_held_comes_first_and_of_a_grant_its_last() -> None:
    leases = Leases(first=1)
    for item, at in [(3, 2.0), (4, 2.0), (1, 1.0), (2, 5.0), (7, 1.0), (8, 1.0)]:
        leases.grant(item, 0, at)
    leases.grant(7, 1, at=1.0)  # two have it already
    reported = leases.find(8, 0)
    assert reported is not None
    leases.report(reported, now=1)
    assert [lease.item for lease in leases.longest_held(5.0)] == [1, 4, 3]
    assert [lease.item for lease in leases.longest_held(5.5)] == [1, 4, 3, 2]
    assert list(leases.longest_held(1.0)) == []


def test_an_adopted_lease_keeps_its_number_and_later_ones_are_above() -> None:
    leases = Leases(first=10)
    leases.adopt(5, 40, replica=0, at=0.0)
    leases.adopt(5, 41, replica=0, at=0.0)  # it has it already
    leases.adopt(6, 7, replica=0, at=0.0)
    assert numbers(leases.of_replica(0)) == [(5, 40), (6, 7)]
    assert leases.grant(8, 0, at=0.0).number == 42
    leases.adopt(5, 3, replica=1, at=0.0)
    leases.adopt(5, 4, replica=2, at=0.0)  # a third holder
    assert [lease.replica for lease in leases.of_item(5)] == [0, 1]
