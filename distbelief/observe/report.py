"""How a run stands at one moment, for a person and for ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run at one moment, as plain values that can be sent.

    Attributes:
        elapsed_s: Seconds since the start of the run.
        finished: Every item is applied or set aside.
        failure: Why the run cannot go on, or empty.
        epoch: Epochs begun, from 1; ``n_epochs`` in all.
        examples_applied: Examples of the items that every shard has applied, of ``total_examples``.
        examples_skipped: Those among them that could not be read.
        images_per_second: Over the last seconds.
        mean_images_per_second: From the first applied push to the last.
        left_s: Estimate of the seconds left, or None before there is one.
        losses: Smoothed losses by name; ``loss`` is what is minimised.
        learning_rate: Of the item pushed last.
        staleness: Applied pushes by staleness.
        applied: Applied pushes, all shards together; ``repeated`` and ``refused`` likewise.
        replicas: Of each its number (``replica``), ``host``, ``pid``, ``state`` (working, silent,
            leaving), ``items``, ``examples``, ``seconds_per_item``, ``images_per_second``, and
            ``parameters_age_s``, the seconds since its last fetch, and ``waiting``, the share of
            its time that it waited for data; the last four may be None.
        shards: Of each its number (``shard``), ``incarnation``, ``clock``, ``queued``, ``applied``,
            ``repeated``, ``refused`` (a count), ``mb_per_second`` (both ways together).
        snapshot: ``number``, ``examples_applied`` and ``t`` of the newest snapshot, or None.
        validation: The newest evaluation, or None.
        mean_waiting: The share of the replicas' time that was spent waiting for data.
        run_dir: The run's folder, path or URL.
        trouble: Why events or push logs cannot be written just now, or empty.
        looks: How often the shards have been asked how they stand.
    """

    elapsed_s: float
    finished: bool
    failure: str
    epoch: int
    n_epochs: int
    examples_applied: int
    examples_skipped: int
    examples_set_aside: int
    total_examples: int
    images_per_second: float
    mean_images_per_second: float
    left_s: float | None
    losses: dict[str, float]
    learning_rate: float
    staleness: dict[int, int]
    applied: int
    repeated: int
    refused: dict[str, int]
    replicas: tuple[dict[str, Any], ...]
    shards: tuple[dict[str, Any], ...]
    snapshot: dict[str, Any] | None
    validation: dict[str, Any] | None
    mean_waiting: float
    run_dir: str = ""
    trouble: str = ""
    looks: int = 0


def staleness_summary(counts: Mapping[int, int]) -> dict[str, float]:
    """Mean, median, 99th percentile and maximum of a histogram; zeros if it is empty."""
    total = sum(counts.values())
    if not total:
        return {"mean": 0.0, "p50": 0, "p99": 0, "max": 0}

    def percentile(share: float) -> int:
        seen = 0
        for value in sorted(counts):
            seen += counts[value]
            if seen >= share * total:
                return value
        return max(counts)

    mean = sum(value * n for value, n in counts.items()) / total
    return {
        "mean": round(mean, 4),
        "p50": percentile(0.5),
        "p99": percentile(0.99),
        "max": max(counts),
    }


def duration(seconds: float) -> str:
    """Seconds for a person: 42s, 3m05s, 2h07m.

    Example:
        >>> duration(185.4)
        '3m05s'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def progress_line(r: Report) -> str:
    """One line that says how the run stands."""
    share = r.examples_applied / r.total_examples if r.total_examples else 0.0
    stale = staleness_summary(r.staleness)
    parts = [
        f"{duration(r.elapsed_s):>6}",
        f"epoch {r.epoch}/{r.n_epochs}",
        f"{r.examples_applied:,}/{r.total_examples:,} ({share:.0%})",
        f"{r.images_per_second:,.0f} images/s",
        f"left {duration(r.left_s)}" if r.left_s is not None else "left ?",
        f"loss {r.losses['loss']:.4f}" if "loss" in r.losses else "loss ?",
        f"rate {r.learning_rate:.4g}",
        f"staleness {stale['mean']:.2f} (max {stale['max']})",
        f"{len(r.replicas)} replica{'s' if len(r.replicas) != 1 else ''}",
    ]
    if r.validation and "top1" in r.validation:
        parts.append(f"top-1 {r.validation['top1']:.1%}")
    if r.mean_waiting > 0.1:
        parts.append(f"waiting for data {r.mean_waiting:.0%}")
    return "  ".join(parts)


def staleness_since(now: Mapping[int, int], before: Mapping[int, int]) -> dict[int, int]:
    """What has been added to a histogram; a shard that was started anew counts from zero."""
    added = {value: n - before.get(value, 0) for value, n in sorted(now.items())}
    return {value: n for value, n in added.items() if n > 0}


def progress_event(r: Report, staleness: Mapping[int, int]) -> dict[str, Any]:
    """The fields of a ``progress`` event.

    Args:
        r: How the run stands.
        staleness: Pushes applied since the last such event, by staleness.
    """
    return {
        "examples_applied": r.examples_applied,
        "examples_skipped": r.examples_skipped,
        "examples_set_aside": r.examples_set_aside,
        "images_per_second": round(r.images_per_second, 2),
        "mean_images_per_second": round(r.mean_images_per_second, 2),
        "left_s": _rounded(r.left_s, 1),
        "losses": {name: round(value, 5) for name, value in r.losses.items()},
        "learning_rate": r.learning_rate,
        "staleness": {str(value): n for value, n in staleness.items()},
        "pushes": {"applied": r.applied, "repeated": r.repeated, "refused": r.refused},
        "waiting": round(r.mean_waiting, 4),
        "replicas": [m["replica"] for m in r.replicas],
        "members": [
            {
                "replica": m["replica"],
                "stages": m.get("stages", 1),
                "state": m["state"],
                "items": m["items"],
                "images_per_second": _rounded(m["images_per_second"], 2),
                "parameters_age_s": _rounded(m["parameters_age_s"], 2),
                "waiting": _rounded(m["waiting"], 4),
            }
            for m in r.replicas
        ],
        "shards": [{**s, "mb_per_second": round(s["mb_per_second"], 3)} for s in r.shards],
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def summary(
    r: Report | None,
    *,
    status: str,
    stages: Sequence[int],
    shards: int,
    recoveries: list[dict[str, Any]],
) -> dict[str, Any]:
    """The contents of ``summary.json``.

    Args:
        r: The last report; None if the run ended before there was one.
        status: How it stands.
        stages: Stages of each replica.
        shards: How many there are.
        recoveries: What died, and when it served again.
    """
    if r is None:
        return {"status": status, "examples_applied": 0, "recoveries": recoveries}
    return {
        "status": status,
        "wall_seconds": round(r.elapsed_s, 2),
        "examples_applied": r.examples_applied,
        "examples_skipped": r.examples_skipped,
        "examples_set_aside": r.examples_set_aside,
        "images_per_second": round(r.mean_images_per_second, 2),
        "pushes": {"applied": r.applied, "repeated": r.repeated, "refused": r.refused},
        "staleness": staleness_summary(r.staleness),
        "replicas": len(stages),
        "stages": stages[0] if len(set(stages)) == 1 else list(stages),
        "shards": shards,
        "learning_rate": r.learning_rate,
        "train_loss": r.losses.get("loss"),
        "validation": r.validation,
        "snapshot": r.snapshot,
        "waiting_for_data": round(r.mean_waiting, 4),
        "recoveries": recoveries,
    }
