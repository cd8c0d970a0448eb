"""The learning rate in closed form."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.config import ScheduleConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.items import ItemPlan

PLAN = ItemPlan(n_examples=100, batch_size=10, n_push=1, n_items=200)


def rates(plan: ItemPlan = PLAN, **config: object) -> list[float]:
    schedule = Schedule(ScheduleConfig(**config), plan)  # type: ignore[arg-type]
    return [schedule.rate(item) for item in range(plan.n_items)]


def test_fixed() -> None:
    assert rates(lr=0.3) == [0.3] * 200


def test_step_falls_at_the_first_item_of_every_eighth_epoch() -> None:
    expected = [0.01] * 80 + [0.01 * 0.96] * 80 + [0.01 * 0.96**2] * 40
    assert rates(lr=0.01, schedule="step", step_epochs=8, step_factor=0.96) == expected


def test_step_within_an_epoch() -> None:
    expected = [0.5 ** (item // 5) for item in range(200)]
    assert rates(lr=1.0, schedule="step", step_epochs=0.5, step_factor=0.5) == expected


def test_step_counts_examples_not_items() -> None:
    # 25 examples in items of 10, 10 and 5: the third of an epoch starts at 20 of 25.
    plan = ItemPlan(n_examples=25, batch_size=10, n_push=1, n_items=9)
    found = rates(plan, lr=1.0, schedule="step", step_epochs=1, step_factor=0.5)
    assert found == [1.0] * 3 + [0.5] * 3 + [0.25] * 3


def test_polynomial() -> None:
    found = rates(lr=2.0, schedule="polynomial", power=2.0)
    assert found == [2.0 * (1 - item / 200) ** 2 for item in range(200)]
    assert found[0] == 2.0
    assert found[100] == 0.5
    assert found[-1] > 0


def test_polynomial_as_a_root() -> None:
    found = rates(lr=0.1, schedule="polynomial", power=0.5)
    assert found[150] == 0.1 * math.sqrt(0.25)


def test_polynomial_beyond_the_run_is_zero() -> None:
    schedule = Schedule(ScheduleConfig(schedule="polynomial", power=1.0), PLAN)
    assert schedule.rate(200) == 0.0
    assert schedule.rate(250) == 0.0


def test_warm_up_rises_by_examples() -> None:
    found = rates(lr=1.0, warmup_examples=40)
    assert found[:6] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_warm_up_shorter_than_an_item_changes_nothing() -> None:
    assert rates(lr=1.0, warmup_examples=7) == [1.0] * 200


def test_warm_up_that_ends_within_an_item() -> None:
    assert rates(lr=1.0, warmup_examples=25)[:4] == [10 / 25, 20 / 25, 1.0, 1.0]


def test_warm_up_multiplies_the_falling_rate() -> None:
    found = rates(lr=1.0, schedule="polynomial", power=1.0, warmup_examples=20)
    assert found[:3] == [0.5, 1 - 1 / 200, 1 - 2 / 200]


configs = st.builds(
    ScheduleConfig,
    lr=st.floats(1e-6, 10),
    schedule=st.sampled_from(["fixed", "step", "polynomial"]),
    step_epochs=st.floats(0.1, 10),
    step_factor=st.floats(0.1, 1.0),
    power=st.floats(0.1, 3),
    warmup_examples=st.integers(0, 300),
)


@settings(deadline=None, max_examples=60)
@given(configs, st.integers(1, 60), st.integers(1, 20), st.integers(1, 30))
def test_every_rate_of_a_run_is_positive_and_at_most_lr(
    config: ScheduleConfig, n_examples: int, batch_size: int, n_items: int
) -> None:
    plan = ItemPlan(n_examples=n_examples, batch_size=batch_size, n_push=1, n_items=n_items)
    schedule = Schedule(config, plan)
    found = [schedule.rate(item) for item in range(n_items)]
    assert all(0 < rate <= config.lr for rate in found)
    warm = [r for i, r in enumerate(found) if plan.examples_before(i) >= config.warmup_examples]
    assert warm == sorted(warm, reverse=True)
    assert found == [Schedule(config, plan).rate(item) for item in range(n_items)]
