"""Update rules: small functions of explicit state, in place on flat vectors.

``p`` parameters, ``g`` gradient, ``v`` momentum, ``s`` sum of squares, all ``(n,) float32``; eta
is the item's rate, mu the momentum, lambda the weight decay. A segment scales eta and lambda for a
range.

    momentum   g <- g + lambda p;  v <- mu v + g;                  p <- p - eta v
    nesterov   g <- g + lambda p;  v <- mu v + g;  g <- g + mu v;  p <- p - eta g
    adagrad    g <- g + lambda p;  s <- s + g*g;                   p <- p - eta g/(sqrt(s) + 1e-10)

The first two are those of ``torch.optim.SGD``. Adagrad is that of Dean et al. 2012, section 4.1:
each parameter has a rate of its own, gamma / sqrt(sum of g*g).

A gradient is applied some updates after the parameters that it was computed on were fetched. What
momentum will do meanwhile is known at the fetch, so that the parameters can be handed out as they
will be: linear weight prediction (Kosson et al. 2021, Pipelined backpropagation at scale).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from distbelief.config import OptimizerConfig
from distbelief.layout import Segment

ADAGRAD_EPSILON = 1e-10


class UpdateRule(Protocol):
    """A rule with the state that it keeps beside the parameters."""

    slots: dict[str, torch.Tensor]
    """The rule's state by name, each ``(n,) float32``; saved in snapshots."""

    def apply(self, parameters: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """Updates ``parameters`` and the state in place; overwrites ``gradient``."""
        ...

    def predict(self, parameters: torch.Tensor, begin: int, rate: float, steps: float) -> None:
        """Moves a copy of the parameters, from ``begin`` on, to where ``steps`` updates lead.

        What the gradients to come will add is not known; what is in the state already is.
        """
        ...


def add_decay(
    gradient: torch.Tensor, parameters: torch.Tensor, segments: Sequence[Segment], decay: float
) -> None:
    """In place: g <- g + lambda p, where the segment has decay."""
    if decay == 0.0:
        return
    for s in segments:
        if s.decay:
            gradient[s.begin : s.end].add_(parameters[s.begin : s.end], alpha=decay * s.decay)


def step_along(
    parameters: torch.Tensor,
    direction: torch.Tensor,
    segments: Sequence[Segment],
    rate: float,
    *,
    begin: int = 0,
) -> None:
    """In place: p <- p - eta d, with each segment's rate multiplier.

    ``parameters`` may be a part, from ``begin`` on, of what ``direction`` and ``segments`` cover.
    """
    for s in segments:
        low, high = max(s.begin, begin), min(s.end, begin + parameters.numel())
        if low < high:
            part = parameters[low - begin : high - begin]
            part.add_(direction[low:high], alpha=-rate * s.rate)


@dataclass
class Momentum:
    """SGD with momentum in torch's form, plain or Nesterov, by elementwise kernels."""

    n: int
    segments: tuple[Segment, ...]
    momentum: float
    decay: float
    nesterov: bool = False
    slots: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.slots = {"momentum": torch.zeros(self.n)}

    def apply(self, parameters: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """See :class:`UpdateRule`."""
        velocity = self.slots["momentum"]
        add_decay(gradient, parameters, self.segments, self.decay)
        velocity.mul_(self.momentum).add_(gradient)
        if self.nesterov:
            gradient.add_(velocity, alpha=self.momentum)
            step_along(parameters, gradient, self.segments, rate)
        else:
            step_along(parameters, velocity, self.segments, rate)

    def predict(self, parameters: torch.Tensor, begin: int, rate: float, steps: float) -> None:
        """See :class:`UpdateRule`: p <- p - eta v (mu + mu**2 + ... + mu**steps)."""
        mu = self.momentum
        ahead = mu * (1.0 - mu**steps) / (1.0 - mu)
        if ahead > 0.0:
            velocity = self.slots["momentum"]
            step_along(parameters, velocity, self.segments, rate * ahead, begin=begin)


@dataclass
class FusedMomentum(Momentum):
    """The same update in one pass over memory, by torch's fused kernel.

    It reads three vectors and writes two, 20 bytes a parameter; it differs from the elementwise
    kernels in the last place.
    """

    def apply(self, parameters: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """See :class:`UpdateRule`."""
        velocity = self.slots["momentum"]
        by_kind: dict[tuple[float, float], list[slice]] = {}
        for s in self.segments:
            by_kind.setdefault((s.rate, s.decay), []).append(slice(s.begin, s.end))
        for (rate_multiplier, decay_multiplier), ranges in by_kind.items():
            torch._fused_sgd_(
                [parameters[r] for r in ranges],
                [gradient[r] for r in ranges],
                [velocity[r] for r in ranges],
                weight_decay=self.decay * decay_multiplier,
                momentum=self.momentum,
                lr=rate * rate_multiplier,
                dampening=0.0,
                nesterov=self.nesterov,
                maximize=False,
                is_first_step=False,
            )


@dataclass
class Adagrad:
    """Adagrad as in DistBelief."""

    n: int
    segments: tuple[Segment, ...]
    decay: float
    slots: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.slots = {"sum_of_squares": torch.zeros(self.n)}

    def apply(self, parameters: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """See :class:`UpdateRule`."""
        squares = self.slots["sum_of_squares"]
        add_decay(gradient, parameters, self.segments, self.decay)
        squares.addcmul_(gradient, gradient)
        gradient.div_(squares.sqrt().add_(ADAGRAD_EPSILON))
        step_along(parameters, gradient, self.segments, rate)

    def predict(self, parameters: torch.Tensor, begin: int, rate: float, steps: float) -> None:
        """See :class:`UpdateRule`; without momentum nothing is known of what will come."""


def make_rule(config: OptimizerConfig, n: int, segments: tuple[Segment, ...]) -> UpdateRule:
    """The rule that the configuration names, with fresh state for ``n`` parameters."""
    if config.rule == "adagrad":
        return Adagrad(n, segments, config.weight_decay)
    # Torch's fused kernel takes a momentum of 0 for a caller's mistake.
    kind = FusedMomentum if config.kernel == "fused" and config.momentum else Momentum
    nesterov = config.rule == "nesterov"
    return kind(n, segments, config.momentum, config.weight_decay, nesterov)
