"""Admission: whether a push may be applied, decided before any state is touched."""

from __future__ import annotations

import math
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


def check_content(push: Push, rules: AdmissionRules) -> Verdict | None:
    """Refuses what this shard will never take: one pass over the gradient, before it is queued."""
    if push.incarnation != rules.incarnation:
        return Verdict(
            Refusal.INCARNATION,
            f"meant for incarnation {push.incarnation}, this shard is of {rules.incarnation}",
        )
    if push.layout != rules.layout:
        return Verdict(Refusal.LAYOUT, f"layout {push.layout}, this shard has {rules.layout}")
    size = rules.end - rules.begin
    if push.begin != rules.begin or push.gradient.numel() != size:
        got = f"[{push.begin}, {push.begin + push.gradient.numel()})"
        return Verdict(Refusal.SIZE, f"range {got}, this shard has [{rules.begin}, {rules.end})")
    if not (math.isfinite(push.rate) and push.rate >= 0.0):
        return Verdict(Refusal.RATE, f"learning rate {push.rate}")
    # A norm is not finite if any element is not: one read of the vector, no temporary.
    norm = float(torch.linalg.vector_norm(push.gradient))
    if not math.isfinite(norm):
        return Verdict(Refusal.NOT_FINITE, f"gradient of norm {norm}")
    if rules.max_norm is not None and norm > rules.max_norm:
        return Verdict(
            Refusal.NORM, f"gradient of norm {norm:.4g}, the limit is {rules.max_norm:g}"
        )
    return None


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
