"""A shard's account of what it has applied: counts and sets, apart from the vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distbelief.server.applied import ItemSet, intersection, union
from distbelief.types import Intervals, Push, ShardState

MAX_MISSING = 1 << 18
"""Items that a snapshot can wait for; meanwhile each of them takes memory."""

STALENESS_SMOOTHING = 0.02
"""Weight of each push in the staleness that the next ones are expected to have."""


@dataclass(slots=True, kw_only=True)
class Account:
    """What one shard has done; one writer, not thread-safe.

    Attributes:
        clock: Items applied.
        examples: Examples that went into them; ``skipped`` those that could not be read.
        rate: Learning rate of the last push.
        expected_staleness: Of the next push, from those of late.
        applied: The applied set.
        set_aside: Items that will never be applied, with the reason.
        repeated: Pushes of items that were there already.
        refused: Refusals by reason.
        staleness: Applied pushes by staleness.
    """

    clock: int = 0
    examples: int = 0
    skipped: int = 0
    rate: float = 0.0
    expected_staleness: float = 0.0
    applied: ItemSet = field(default_factory=ItemSet)
    set_aside: dict[int, str] = field(default_factory=dict)
    repeated: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    staleness: Counter[int] = field(default_factory=Counter)

    def __contains__(self, item: int) -> bool:
        """Whether the item is applied or set aside."""
        return item in self.applied or item in self.set_aside

    def add(self, push: Push, stale: int | None) -> None:
        """Takes note of a push that has just been applied."""
        self.clock += 1
        self.examples += push.examples
        self.skipped += len(push.skipped)
        self.applied.add(push.item)
        self.rate = push.rate
        if stale is not None:
            self.staleness[stale] += 1
            self.expected_staleness += STALENESS_SMOOTHING * (stale - self.expected_staleness)

    def missing(self, items: Intervals) -> set[int]:
        """Those of ``items`` that are neither applied nor set aside.

        Raises:
            OverflowError: there are more than anybody can be waiting for.
        """
        end = max((end for _, end in items), default=0)
        gaps = accounted(self.applied, self.set_aside).gaps(end)
        lacking = intersection([ItemSet(items), ItemSet(gaps)])
        n_lacking = sum(high - low for low, high in lacking.intervals)
        if n_lacking > MAX_MISSING:
            raise OverflowError(f"{n_lacking} items are missing; at most {MAX_MISSING} can be")
        return set(lacking)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "clock": self.clock,
            "examples": self.examples,
            "skipped": self.skipped,
            "rate": self.rate,
            "expected_staleness": self.expected_staleness,
            "applied": self.applied.intervals,
            "set_aside": self.set_aside,
            "repeated": self.repeated,
            "refused": self.refused,
            "staleness": self.staleness,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Account:
        """The inverse of :meth:`to_dict`, after JSON has turned the keys into text."""
        return cls(
            clock=int(values["clock"]),
            examples=int(values["examples"]),
            skipped=int(values["skipped"]),
            rate=float(values["rate"]),
            expected_staleness=float(values["expected_staleness"]),
            applied=ItemSet(intervals_of(values["applied"])),
            set_aside={int(item): str(reason) for item, reason in values["set_aside"].items()},
            repeated=int(values["repeated"]),
            refused=Counter({str(k): int(n) for k, n in values["refused"].items()}),
            staleness=Counter({int(k): int(n) for k, n in values["staleness"].items()}),
        )


def intervals_of(values: Any) -> Intervals:
    """Intervals from JSON."""
    return tuple((int(begin), int(end)) for begin, end in values)


def accounted(applied: ItemSet, set_aside: Mapping[int, str]) -> ItemSet:
    """Items that are applied or set aside."""
    return union([applied, ItemSet(tuple((i, i + 1) for i in sorted(set_aside)))])


def accounted_by(state: ShardState) -> ItemSet:
    """Items that a shard has applied or set aside."""
    return accounted(ItemSet(state.applied), state.set_aside)


def merged(accounts: Sequence[Account], counted: Sequence[bool]) -> Account:
    """The account of a shard that takes over ranges of several, all of them accounting alike.

    Args:
        accounts: Of the shards whose ranges are taken, the one with the largest part first.
        counted: Whose counts of repeats, refusals and staleness go with its range.
    """
    first = accounts[0]
    applied = union(account.applied for account in accounts)
    found = Account(
        clock=len(applied),
        examples=max(account.examples for account in accounts),
        skipped=max(account.skipped for account in accounts),
        rate=first.rate,
        expected_staleness=first.expected_staleness,
        applied=applied,
    )
    for account, counts in zip(accounts, counted, strict=True):
        found.set_aside |= {i: why for i, why in account.set_aside.items() if i not in applied}
        if counts:
            found.repeated += account.repeated
            found.refused += account.refused
            found.staleness += account.staleness
    return found
