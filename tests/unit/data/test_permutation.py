import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.data.permutation import Stream, epoch_permutation, example_rng, keyed_philox


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10_000),
    n=st.integers(min_value=0, max_value=500),
)
def test_order_holds_each_example_once(seed: int, epoch: int, n: int) -> None:
    order = epoch_permutation(seed, epoch, n)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_order_depends_on_its_arguments_alone() -> None:
    first = epoch_permutation(7, 3, 100).tolist()
    np.random.default_rng(0).random(10)
    assert epoch_permutation(7, 3, 100).tolist() == first


def test_order_is_the_same_on_every_host() -> None:
    # Written down once: resumed runs and other hosts must derive these very numbers.
    assert epoch_permutation(7, 3, 10).tolist() == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]


@pytest.mark.parametrize(("seed", "epoch"), [(7, 4), (8, 3), (3, 7)])
def test_another_seed_or_epoch_gives_another_order(seed: int, epoch: int) -> None:
    assert epoch_permutation(seed, epoch, 100).tolist() != epoch_permutation(7, 3, 100).tolist()


def test_order_is_uniform() -> None:
    first = [int(epoch_permutation(0, epoch, 4)[0]) for epoch in range(2000)]
    counts = np.bincount(first, minlength=4)
    # Five deviations of a binomial with p = 1/4.
    assert np.abs(counts - 500).max() < 5 * (2000 * 0.25 * 0.75) ** 0.5


def test_example_rng_repeats_and_differs_by_each_argument() -> None:
    def draw(seed: int, epoch: int, index: int) -> tuple[float, ...]:
        return tuple(example_rng(seed, epoch, index).random(3).tolist())

    assert draw(1, 2, 3) == draw(1, 2, 3)
    keys = [
        (1, 2, 3),
        (2, 1, 3),
        (1, 3, 2),
        (3, 2, 1),
        (0, 2, 3),
        (1, 0, 3),
        (1, 2, 0),
        (2**63, 2, 3),
    ]
    assert len({draw(*key) for key in keys}) == len(keys)


def test_streams_differ() -> None:
    words = {int(keyed_philox(1, stream, 2, 3).random_raw()) for stream in Stream}
    assert len(words) == len(Stream)


@pytest.mark.parametrize(
    ("seed", "part", "index"), [(-1, 0, 0), (2**64, 0, 0), (0, 2**56, 0), (0, 0, -1)]
)
def test_numbers_that_would_run_into_each_other_are_refused(
    seed: int, part: int, index: int
) -> None:
    with pytest.raises(OverflowError, match="out of range"):
        keyed_philox(seed, Stream.ORDER, part, index)
