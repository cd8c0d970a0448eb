"""What is seen while a run goes on."""

from __future__ import annotations

from distbelief.chaos.watch import Changes, Memory
from distbelief.serving import Endpoint, Serving

A, B = (1, 100), (2, 200)


def test_growth_is_told_from_after_the_warm_up() -> None:
    memory = Memory()
    for second in range(100):
        memory.add(A, second, 1000 * second if second < 20 else 20_000)
        memory.add(B, second, 1000 * second)
    assert memory.growth(A) == 0
    # The middle of seconds 25 to 36, and that of 88 to 99.
    assert memory.growth(B) == 93_500 - 30_500


def test_a_few_looks_tell_nothing() -> None:
    memory = Memory()
    for second in range(7):
        memory.add(A, second, 1 << second)
    assert memory.growth(A) == memory.growth(B) == 0


def test_survivors_were_there_all_the_time() -> None:
    memory = Memory()
    assert (memory.survivors(), memory.n_processes()) == ([], (0, 0))
    for second in range(3):
        memory.add(A, second, 1)
        if second:
            memory.add(B, second, 1)
    for identity in ((3, 3), (4, 4)):
        memory.add(identity, 0, 1)
    assert memory.survivors() == [A]
    assert memory.n_processes() == (3, 2)


def serving(number: int, *twins: tuple[int, int]) -> Serving:
    return Serving(
        number=number,
        run=1,
        shards=(),
        twins=tuple(Endpoint(shard, 0, 4, start, "h:1") for shard, start in twins),
    )


def test_another_twin_is_seen_when_it_follows() -> None:
    changes = Changes()
    changes.look(0.0, None)
    changes.look(1.0, serving(1, (0, 2), (1, 2)))
    changes.look(2.0, serving(1, (0, 2), (1, 2)))
    changes.look(3.0, serving(2, (1, 2)))
    assert changes.another_twin(0, 2, since=2.5) is None
    changes.look(9.0, serving(3, (0, 3), (1, 2)))
    assert [at for at, _ in changes.seen] == [1.0, 3.0, 9.0]
    assert changes.another_twin(0, 2, since=2.5) == 9.0
    assert changes.another_twin(0, 2, since=9.5) is None
    assert changes.another_twin(1, 2, since=0.0) is None
