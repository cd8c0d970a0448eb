"""What stages made of blocks weigh."""

from __future__ import annotations

from collections.abc import Callable

from distbelief.planner.costs import BlockTime, Costs, Flow, Link, StageCost

MakeCosts = Callable[..., Costs]


def test_a_stage_is_the_sum_of_its_blocks(make_costs: MakeCosts) -> None:
    costs = make_costs([1.0, 2.0, 4.0], [1.0, 10.0], handed_on=[7, 8, 0])
    assert costs.stages((1,)) == [StageCost(0.5, 0.5, 7), StageCost(30.0, 30.0, 0)]
    assert costs.stages((2,)) == [StageCost(1.5, 1.5, 8), StageCost(20.0, 20.0, 0)]
    assert costs.stages((1,))[1].total_s == 60.0
    assert BlockTime(1.0, 2.0).slowed(3.0).total_s == 9.0


def test_micro_batches_in_flight() -> None:
    in_turn, gpipe = Flow(micro_batches=3), Flow(micro_batches=3, pipeline="gpipe")
    assert [in_turn.in_flight(stage, 4) for stage in range(4)] == [3, 3, 2, 1]
    assert [gpipe.in_flight(stage, 4) for stage in range(4)] == [3, 3, 3, 3]


def test_a_message_takes_its_bytes_and_the_latency() -> None:
    assert Link(bytes_per_s=100.0, latency_s=0.5).seconds(50) == 1.0


def test_memory(make_costs: MakeCosts) -> None:
    sizes = {"parameters": [1, 2, 3], "handed_on": [1000, 2000, 0], "kept": [10, 20, 30]}
    costs = make_costs([1.0] * 3, micro_batches=5, **sizes)
    # Four vectors; two micro-batches in flight, and what each hands on; what passes backwards
    # through the largest block; a buffer of each micro-batch for the gradients that come back.
    first = 4 * 4 * 3 + 2 * (10 + 20 + 2000) + (2000 + 1000) + 5 * 2000
    second = 4 * 4 * 3 + 1 * (30 + 2000) + (30 + 2000) + 5 * 2000
    assert costs.memories((2,)) == [first, second]
    away = make_costs([1.0] * 3, micro_batches=5, is_host=False, **sizes)
    assert away.memories((2,)) == [
        first - 2 * 4 * 3 - 5 * 2000,
        second - 2 * 4 * 3 - 5 * 2000,
    ]
    gpipe = make_costs([1.0] * 3, micro_batches=5, pipeline="gpipe", **sizes)
    assert gpipe.memories((2,))[0] - first == 3 * (10 + 20 + 2000)
    with_batch = make_costs([1.0] * 3, micro_batches=5, batch=100, **sizes)
    assert with_batch.memories((2,)) == [first + 100, second]
    assert costs.memory_of_one(is_host=True) == 4 * 4 * 6 + 5 * (60 + 3000)
    assert costs.memory_of_one(is_host=False) == 2 * 4 * 6 + 5 * (60 + 3000)
