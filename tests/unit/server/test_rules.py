"""The update rules, against torch's optimizers, their formulas and closed forms."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.config import OptimizerConfig
from distbelief.layout import Segment
from distbelief.server.rules import (
    Adagrad,
    FusedMomentum,
    Momentum,
    add_decay,
    make_rule,
    step_along,
)


def whole(n: int, rate: float = 1.0, decay: float = 1.0) -> tuple[Segment, ...]:
    return (Segment(0, n, rate, decay),)


segment_lists = st.lists(
    st.tuples(
        st.integers(1, 40), st.sampled_from([1.0, 2.0, 0.5]), st.sampled_from([0.0, 1.0, 2.0])
    ),
    min_size=1,
    max_size=6,
)


def segments_of(drawn: list[tuple[int, float, float]]) -> tuple[Segment, ...]:
    found, begin = [], 0
    for n, rate, decay in drawn:
        found.append(Segment(begin, begin + n, rate, decay))
        begin += n
    return tuple(found)


def trajectories(
    config: OptimizerConfig, segments: tuple[Segment, ...], seed: int, steps: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Our parameters after some steps, and torch.optim.SGD's on separate tensors."""
    torch.manual_seed(seed)
    n = segments[-1].end
    flat = torch.randn(n)
    separate = [torch.nn.Parameter(flat[s.begin : s.end].clone()) for s in segments]
    rule = make_rule(config, n, segments)
    optimizer = torch.optim.SGD(
        [
            {"params": [p], "weight_decay": config.weight_decay * s.decay, "lr": 0.0}
            for p, s in zip(separate, segments, strict=True)
        ],
        lr=0.1,
        momentum=config.momentum,
        nesterov=config.rule == "nesterov",
        foreach=False,
    )
    for step in range(steps):
        rate = 0.1 * 0.9**step
        gradient = torch.randn(n)
        for group, p, s in zip(optimizer.param_groups, separate, segments, strict=True):
            group["lr"] = rate * s.rate
            p.grad = gradient[s.begin : s.end].clone()
        optimizer.step()
        rule.apply(flat, gradient, rate)
    return flat, torch.cat([p.detach() for p in separate])


cases = st.sampled_from([("momentum", 0.9), ("momentum", 0.0), ("nesterov", 0.9)])


@settings(deadline=None, max_examples=60)
@given(cases, st.sampled_from([0.0, 1e-2]), segment_lists, st.integers(0, 2**31))
def test_unfused_equals_torch_bit_for_bit(
    case: tuple[Any, float], decay: float, drawn: list[tuple[int, float, float]], seed: int
) -> None:
    rule, momentum = case
    config = OptimizerConfig(rule=rule, momentum=momentum, weight_decay=decay, kernel="unfused")
    ours, expected = trajectories(config, segments_of(drawn), seed)
    assert torch.equal(ours, expected)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([("momentum", 0.9), ("momentum", 0.1), ("nesterov", 0.9)]),
    st.sampled_from([0.0, 1e-2]),
    segment_lists,
    st.integers(0, 2**31),
)
def test_fused_differs_in_the_last_places_only(
    case: tuple[Any, float], decay: float, drawn: list[tuple[int, float, float]], seed: int
) -> None:
    rule, momentum = case
    config = OptimizerConfig(rule=rule, momentum=momentum, weight_decay=decay, kernel="fused")
    ours, expected = trajectories(config, segments_of(drawn), seed)
    # Four steps, each of a few roundings of values of magnitude 1.
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [Momentum, FusedMomentum])
def test_momentum_closed_form(kind: type[Momentum]) -> None:
    # A constant gradient of 1 and mu = 1/2: v_k = 2 - 2**(1-k), all exact in float32.
    rule = kind(3, whole(3), 0.5, 0.0)
    p = torch.zeros(3)
    moved = 0.0
    for k in range(1, 11):
        rule.apply(p, torch.ones(3), 0.25)
        velocity = 2.0 - 2.0 ** (1 - k)
        moved -= 0.25 * velocity
        assert torch.equal(rule.slots["momentum"], torch.full((3,), velocity))
        assert torch.equal(p, torch.full((3,), moved))


@pytest.mark.parametrize("kind", [Momentum, FusedMomentum])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_prediction_is_where_momentum_alone_would_lead(kind: type[Momentum], steps: int) -> None:
    rule = kind(4, (Segment(0, 2, 1.0, 1.0), Segment(2, 4, 2.0, 0.0)), 0.5, 0.0)
    p = torch.zeros(4)
    rule.apply(p, torch.tensor([1.0, -2.0, 4.0, 0.5]), 0.25)
    predicted, part = p.clone(), p[1:3].clone()
    rule.predict(predicted, 0, 0.25, steps)
    rule.predict(part, 1, 0.25, steps)
    assert torch.equal(part, predicted[1:3])
    for _ in range(steps):
        rule.apply(p, torch.zeros(4), 0.25)
    torch.testing.assert_close(predicted, p, rtol=1e-6, atol=0.0)


def test_prediction_of_no_steps_changes_nothing() -> None:
    rule = Momentum(2, whole(2), 0.9, 0.0)
    p = torch.tensor([1.0, 2.0])
    rule.apply(p, torch.ones(2), 0.1)
    before = p.clone()
    rule.predict(p, 0, 0.1, 0.0)
    assert torch.equal(p, before)


@pytest.mark.parametrize("kernel", ["fused", "unfused"])
def test_without_momentum_it_is_gradient_descent_whatever_the_kernel(kernel: Any) -> None:
    config = OptimizerConfig(momentum=0.0, weight_decay=0.0, kernel=kernel)
    rule = make_rule(config, 2, (Segment(0, 1, 1.0, 1.0), Segment(1, 2, 2.0, 1.0)))
    p = torch.zeros(2)
    for k in range(1, 4):
        rule.apply(p, torch.ones(2), 0.25)
        assert p.tolist() == [-0.25 * k, -0.5 * k]


@pytest.mark.parametrize("kind", [Momentum, FusedMomentum])
def test_nesterov_closed_form(kind: type[Momentum]) -> None:
    rule = kind(1, whole(1), 0.5, 0.0, nesterov=True)
    p = torch.zeros(1)
    moved = 0.0
    for k in range(1, 9):
        rule.apply(p, torch.ones(1), 0.25)
        moved -= 0.25 * (1.0 + 0.5 * (2.0 - 2.0 ** (1 - k)))
        assert p.item() == moved


def test_decay_closed_form() -> None:
    # No gradient, no momentum: p shrinks by (1 - eta lambda) = 3/4 a step where it decays.
    rule = Momentum(2, (Segment(0, 1, 1.0, 1.0), Segment(1, 2, 1.0, 0.0)), 0.0, 0.5)
    p = torch.ones(2)
    for k in range(1, 8):
        rule.apply(p, torch.zeros(2), 0.5)
        assert p.tolist() == [0.75**k, 1.0]


@pytest.mark.parametrize("kind", [Momentum, FusedMomentum])
def test_segments_scale_rate_and_decay(kind: type[Momentum]) -> None:
    segments = (Segment(0, 2, 1.0, 0.0), Segment(2, 3, 2.0, 0.0), Segment(3, 4, 1.0, 2.0))
    rule = kind(4, segments, 0.5, 0.25)
    p = torch.ones(4)
    rule.apply(p, torch.ones(4), 0.5)
    assert p.tolist() == [0.5, 0.5, 0.0, 1.0 - 0.5 * (1.0 + 0.25 * 2.0)]


@pytest.mark.parametrize("kind", [Momentum, FusedMomentum])
def test_rate_zero_moves_the_momentum_alone(kind: type[Momentum]) -> None:
    rule = kind(2, whole(2), 0.5, 0.0)
    p = torch.ones(2)
    rule.apply(p, torch.full((2,), 4.0), 0.0)
    assert torch.equal(p, torch.ones(2))
    assert torch.equal(rule.slots["momentum"], torch.full((2,), 4.0))


def test_adagrad_closed_form() -> None:
    # A constant gradient g: the k-th step is eta g / (|g| sqrt(k)), whatever the size of g.
    gradient = torch.tensor([1.0, -1.0, 1000.0])
    rule = Adagrad(3, whole(3), 0.0)
    p = torch.zeros(3)
    for _ in range(16):
        rule.apply(p, gradient.clone(), 0.5)
    expected = 0.5 * sum(1 / math.sqrt(k) for k in range(1, 17))
    torch.testing.assert_close(p, torch.tensor([-expected, expected, -expected]))
    assert torch.equal(rule.slots["sum_of_squares"], 16 * gradient * gradient)


@settings(deadline=None, max_examples=40)
@given(segment_lists, st.integers(0, 2**31))
def test_adagrad_against_the_formula(drawn: list[tuple[int, float, float]], seed: int) -> None:
    torch.manual_seed(seed)
    segments = segments_of(drawn)
    n, decay = segments[-1].end, 0.01
    rate_by = torch.cat([torch.full((s.end - s.begin,), s.rate) for s in segments]).double()
    decay_by = torch.cat([torch.full((s.end - s.begin,), s.decay) for s in segments]).double()
    rule = make_rule(OptimizerConfig(rule="adagrad", weight_decay=decay), n, segments)
    p = torch.randn(n)
    expected, squares = p.double(), torch.zeros(n, dtype=torch.float64)
    for _ in range(4):
        gradient = torch.randn(n)
        g = gradient.double() + decay * decay_by * expected
        squares += g * g
        expected = expected - 0.1 * rate_by * g / (squares.sqrt() + 1e-10)
        rule.apply(p, gradient, 0.1)
    torch.testing.assert_close(p.double(), expected, rtol=1e-5, atol=1e-5)


def test_adagrad_with_no_gradient_stays_where_it_is() -> None:
    rule = Adagrad(2, whole(2), 0.0)
    p = torch.ones(2)
    rule.apply(p, torch.zeros(2), 1.0)
    assert torch.equal(p, torch.ones(2))


@pytest.mark.parametrize(
    ("config", "kind", "nesterov"),
    [
        (OptimizerConfig(), FusedMomentum, False),
        (OptimizerConfig(kernel="unfused"), Momentum, False),
        (OptimizerConfig(rule="nesterov"), FusedMomentum, True),
        (OptimizerConfig(rule="nesterov", kernel="unfused"), Momentum, True),
        # Torch's fused kernel refuses a momentum of 0.
        (OptimizerConfig(momentum=0.0), Momentum, False),
        (OptimizerConfig(momentum=0.0, kernel="unfused"), Momentum, False),
    ],
)
def test_make_rule(config: OptimizerConfig, kind: type[Momentum], nesterov: bool) -> None:
    rule = make_rule(config, 5, whole(5))
    assert type(rule) is kind
    assert isinstance(rule, Momentum)
    assert (rule.nesterov, rule.momentum, rule.decay) == (nesterov, config.momentum, 2e-4)
    assert torch.equal(rule.slots["momentum"], torch.zeros(5))


def test_make_rule_makes_adagrad_whatever_the_kernel() -> None:
    for kernel in ("fused", "unfused"):
        rule = make_rule(OptimizerConfig(rule="adagrad", kernel=kernel), 5, whole(5))
        assert type(rule) is Adagrad
        assert torch.equal(rule.slots["sum_of_squares"], torch.zeros(5))


def test_add_decay_and_step_along() -> None:
    segments = (Segment(0, 1, 1.0, 0.0), Segment(1, 2, 2.0, 1.0), Segment(2, 3, 4.0, 0.5))
    gradient, parameters = torch.ones(3), torch.tensor([8.0, 8.0, 8.0])
    add_decay(gradient, parameters, segments, 0.0)
    assert gradient.tolist() == [1.0, 1.0, 1.0]
    add_decay(gradient, parameters, segments, 0.5)
    assert gradient.tolist() == [1.0, 5.0, 3.0]
    step_along(parameters, torch.ones(3), segments, 0.5)
    assert parameters.tolist() == [7.5, 7.0, 6.0]
