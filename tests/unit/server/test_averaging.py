"""Polyak averages in closed form."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.config import AveragingConfig
from distbelief.server.averaging import PolyakAverage


def averaging(
    kind: Any, n: int = 2, *, total: int = 100, per_item: int = 10, **config: Any
) -> PolyakAverage:
    config.setdefault("average_every", 1)
    return PolyakAverage(
        AveragingConfig(average=kind, **config), n, examples_per_item=per_item, total_examples=total
    )


def vector(value: float) -> torch.Tensor:
    return torch.full((2,), float(value))


def test_none_reads_the_parameters() -> None:
    average = averaging("none")
    p = vector(3)
    average.update(p, 10)
    assert not average.started
    assert average.read(p) is p


@pytest.mark.parametrize("kind", ["uniform", "exponential"])
def test_until_it_starts_it_reads_the_parameters(kind: str) -> None:
    average = averaging(kind)
    p = vector(3)
    assert not average.started
    assert average.read(p) is p


@pytest.mark.parametrize("kind", ["uniform", "exponential"])
def test_it_keeps_no_hold_of_the_parameters(kind: str) -> None:
    average = averaging(kind, average_tail=1.0)
    p = vector(3)
    average.update(p, 10)
    p.fill_(100.0)
    assert torch.equal(average.read(p), vector(3))


def test_uniform_is_the_mean_over_the_tail() -> None:
    average = averaging("uniform", average_tail=0.5)
    for i in range(1, 11):
        average.update(vector(i), 10 * i)
        assert average.started == (i > 5)
    torch.testing.assert_close(average.read(vector(0)), vector((6 + 7 + 8 + 9 + 10) / 5))


def test_uniform_weighs_by_examples() -> None:
    average = averaging("uniform", average_tail=1.0)
    average.update(vector(8), 10)
    average.update(vector(4), 40)  # 30 examples since
    assert torch.equal(average.read(vector(0)), vector((8 * 10 + 4 * 30) / 40))


def test_uniform_counts_only_the_part_of_a_push_within_the_tail() -> None:
    average = averaging("uniform", total=100, average_tail=0.5)
    average.update(vector(1), 40)
    average.update(vector(8), 60)  # 10 of its 20 examples lie beyond 50
    average.update(vector(4), 90)  # all 30
    assert torch.equal(average.read(vector(0)), vector((8 * 10 + 4 * 30) / 40))


def test_uniform_samples_every_few_pushes_with_the_weight_of_them_all() -> None:
    average = averaging("uniform", average_tail=1.0, average_every=2)
    for value, examples in [(100, 10), (8, 20), (100, 30), (4, 80)]:
        average.update(vector(value), examples)
    assert torch.equal(average.read(vector(0)), vector((8 * 20 + 4 * 60) / 80))


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=30),
    st.floats(0.05, 1.0),
    st.integers(1, 4),
    st.integers(0, 2**31),
)
def test_uniform_equals_the_weighted_mean_of_the_samples(
    examples: list[int], tail: float, every: int, seed: int
) -> None:
    torch.manual_seed(seed)
    total = sum(examples)
    average = averaging("uniform", 3, total=total, average_tail=tail, average_every=every)
    begin = round((1 - tail) * total)
    applied = before = 0
    weighted, weights = torch.zeros(3, dtype=torch.float64), 0
    p = torch.zeros(3)
    for i, n in enumerate(examples, start=1):
        applied += n
        p = torch.randn(3)
        average.update(p, applied)
        if i % every == 0:
            weight = max(applied, begin) - max(before, begin)
            weighted += weight * p.double()
            weights += weight
            before = applied
    assert average.started == (weights > 0)
    expected = weighted / weights if weights else p.double()
    torch.testing.assert_close(average.read(p).double(), expected, rtol=1e-5, atol=1e-5)


def test_exponential_starts_with_the_first_sample() -> None:
    average = averaging("exponential", average_decay=0.998)
    average.update(vector(7), 10)
    assert torch.equal(average.read(vector(0)), vector(7))


def test_exponential_of_constant_parameters_is_constant() -> None:
    average = averaging("exponential", average_decay=0.9)
    for i in range(1, 50):
        average.update(vector(0.3), 10 * i)
    assert torch.equal(average.read(vector(0)), vector(0.3))


def test_exponential_is_limited_while_the_run_is_young() -> None:
    average = averaging("exponential", average_decay=0.998)
    average.update(vector(0), 10)
    expected = 0.0
    for n in range(2, 40):
        average.update(vector(1), 10 * n)
        decay = (1 + n) / (10 + n)  # below 0.998 all the while
        expected += (1.0 - expected) * (1.0 - decay)
        torch.testing.assert_close(average.read(vector(0)), vector(expected))


def test_exponential_has_its_own_decay_once_the_limit_is_above() -> None:
    average = averaging("exponential", average_decay=0.5)
    average.update(vector(0), 1000)  # (1 + 100) / (10 + 100) > 0.5
    for k in range(1, 10):
        average.update(vector(1), 1000 + 10 * k)
        assert torch.equal(average.read(vector(0)), vector(1 - 0.5**k))


@pytest.mark.parametrize("n_pushes", [1, 2, 4])
def test_exponential_decays_by_examples_not_by_pushes(n_pushes: int) -> None:
    """Two items' examples weigh the same in one push, two, or four halves."""
    average = averaging("exponential", average_decay=0.5)
    average.update(vector(0), 1000)
    for k in range(1, n_pushes + 1):
        average.update(vector(1), 1000 + 20 * k // n_pushes)
    torch.testing.assert_close(average.read(vector(0)), vector(0.75))


def test_exponential_samples_every_few_pushes() -> None:
    average = averaging("exponential", average_decay=0.5, average_every=2)
    values = [(100, 990), (0, 1000), (100, 1010), (1, 1020)]
    for value, examples in values:
        average.update(vector(value), examples)
    assert torch.equal(average.read(vector(0)), vector(0.75))


@pytest.mark.parametrize("kind", ["uniform", "exponential"])
def test_a_push_of_no_examples_moves_nothing(kind: str) -> None:
    average = averaging(kind, average_tail=1.0)
    average.update(vector(2), 10)
    average.update(vector(100), 10)
    assert torch.equal(average.read(vector(0)), vector(2))


# A snapshot's average


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["uniform", "exponential", "none"]),
    every=st.integers(1, 3),
    tail=st.sampled_from([0.25, 0.5, 1.0]),
    n=st.integers(0, 10),
)
def test_an_average_goes_on_as_if_it_had_not_been_saved(
    kind: Any, every: int, tail: float, n: int
) -> None:
    config: dict[str, Any] = {"average_every": every, "average_tail": tail}
    through, saved = averaging(kind, **config), averaging(kind, **config)
    for i in range(1, n + 1):
        for average in (through, saved):
            average.update(vector(i * i), 10 * i)
    restored = averaging(kind, **config)
    values = saved.read(vector(0)).clone() if saved.started else None
    restored.restore(json.loads(json.dumps(saved.to_dict())), values)
    assert restored.started == saved.started
    for i in range(n + 1, 11):
        through.update(vector(i * i), 10 * i)
        restored.update(vector(i * i), 10 * i)
        assert torch.equal(through.read(vector(i)), restored.read(vector(i)))
    assert restored.to_dict() == through.to_dict()


def test_values_that_are_taken_over_are_a_copy() -> None:
    average, values = averaging("exponential"), vector(3)
    average.restore({"pending_pushes": 0, "examples_at_update": 10, "weight": 1}, values)
    values.fill_(9.0)
    assert torch.equal(average.read(vector(0)), vector(3))


def test_an_average_of_shards_of_which_some_had_none_has_begun() -> None:
    average = averaging("exponential")
    average.restore({"pending_pushes": 0, "examples_at_update": 0, "weight": 0}, vector(3))
    assert average.started
    assert torch.equal(average.read(vector(0)), vector(3))


def test_without_averaging_a_saved_average_is_passed_over() -> None:
    average = averaging("none")
    average.restore({"pending_pushes": 0, "examples_at_update": 0, "weight": 5}, vector(3))
    assert not average.started
