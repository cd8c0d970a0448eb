"""Admission: whether a push may be applied, decided before any state is touched."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from distbelief.types import Push, Refusal, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionRules:
    """What a shard asks of a push."""

    layout: str
    incarnation: int
    begin: int
    end: int
    max_norm: float | None = None
    max_staleness: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A refusal with the figures that explain it."""

    reason: Refusal
    detail: str


def is_part(push: Push, rules: AdmissionRules) -> bool:
    """Whether the push covers some of the shard's range, and not all of it."""
    end = push.begin + push.gradient.numel()
    within = rules.begin <= push.begin < end <= rules.end
    return within and end - push.begin < rules.end - rules.begin


def check_header(push: Push, rules: AdmissionRules) -> Verdict | None:
    """Refuses what this shard will never take, whatever the gradient's values."""
    if push.incarnation != rules.incarnation:
        return Verdict(
            Refusal.INCARNATION,
            f"meant for incarnation {push.incarnation}, this shard is of {rules.incarnation}",
        )
    if push.layout != rules.layout:
        return Verdict(Refusal.LAYOUT, f"layout {push.layout}, this shard has {rules.layout}")
    end = push.begin + push.gradient.numel()
    if not rules.begin <= push.begin < end <= rules.end:
        got = f"[{push.begin}, {end})"
        return Verdict(Refusal.SIZE, f"range {got}, this shard has [{rules.begin}, {rules.end})")
    if not (math.isfinite(push.rate) and push.rate >= 0.0):
        return Verdict(Refusal.RATE, f"learning rate {push.rate}")
    return None


def norm_of(gradient: torch.Tensor) -> float:
    """The Euclidean norm, not finite if any element is not: one read of the vector, no copy."""
    return float(torch.linalg.vector_norm(gradient))


def check_norm(norm: float, rules: AdmissionRules) -> Verdict | None:
    """Refuses a gradient by its norm; one whose part is refused would be, too."""
    if not math.isfinite(norm):
        return Verdict(Refusal.NOT_FINITE, f"gradient of norm {norm}")
    if rules.max_norm is not None and norm > rules.max_norm:
        return Verdict(
            Refusal.NORM, f"gradient of norm {norm:.4g}, the limit is {rules.max_norm:g}"
        )
    return None


def check_content(push: Push, rules: AdmissionRules) -> Verdict | None:
    """Both checks: one pass over the gradient, whole or a part, before it is queued."""
    return check_header(push, rules) or check_norm(norm_of(push.gradient), rules)


def staleness(base: Version, now: Version) -> int | None:
    """Items applied since ``base``; None across incarnations, where the clock counts again."""
    return now.clock - base.clock if base.incarnation == now.incarnation else None


def check_version(base: Version, now: Version, rules: AdmissionRules) -> Verdict | None:
    """Refuses a base that the shard never had, and one that is too old."""
    if base.incarnation > now.incarnation or (
        base.incarnation == now.incarnation and base.clock > now.clock
    ):
        return Verdict(
            Refusal.INCARNATION,
            f"rests on version ({base.incarnation}, {base.clock}), "
            f"this shard is at ({now.incarnation}, {now.clock})",
        )
    stale = staleness(base, now)
    if rules.max_staleness is not None and stale is not None and stale > rules.max_staleness:
        return Verdict(Refusal.STALE, f"staleness {stale}, the limit is {rules.max_staleness}")
    return None


def oldest(bases: Iterable[Version], incarnation: int) -> Version:
    """The one to count staleness from: one of another incarnation is older than all of its own."""
    return min(bases, key=lambda base: (base.incarnation == incarnation, base))
