"""Snapshots: what a manifest says, when one is due, which to keep, which to go on from.

A snapshot is a folder ``snapshots/000017`` with each shard's state and, written last,
``manifest.json``; without a manifest it is none. One is even if all shards have applied and set
aside the same items, and only an even one fits another number of shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from distbelief.server.account import accounted_by, intervals_of
from distbelief.types import ShardFile, ShardState

FORMAT = 1
MANIFEST = "manifest.json"
DIGEST = "sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a snapshot holds.

    Attributes:
        number: The snapshot's, never used twice in a run.
        even: Whether all shards have applied and set aside the same items.
        examples_applied: Examples of the items that every shard has applied.
        layout: Fingerprint of the layout.
        n_parameters: Elements of the flat vector.
        elapsed_s: Seconds that the run had lasted.
        losses: Smoothed losses by name.
        validation: The newest evaluation, or None.
        files: Each shard's, in the order of their ranges.
    """

    number: int
    even: bool
    examples_applied: int
    layout: str
    n_parameters: int
    elapsed_s: float
    losses: dict[str, float] = field(default_factory=dict)
    validation: dict[str, Any] | None = None
    files: tuple[ShardFile, ...]

    @property
    def n_shards(self) -> int:
        """Shards of the run that wrote it."""
        return len(self.files)

    def fits(self, n_shards: int) -> bool:
        """Whether so many shards can go on from it."""
        return self.even or self.n_shards == n_shards

    def overlapping(self, begin: int, end: int) -> tuple[ShardFile, ...]:
        """The files that have a part of the range ``[begin, end)``."""
        return tuple(f for f in self.files if f.state.begin < end and f.state.end > begin)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with a digest of them."""
        values = {"format": FORMAT, **asdict(self)}
        return {**values, DIGEST: _digest(values)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Manifest:
        """The inverse of :meth:`to_dict`, after JSON.

        Raises:
            ValueError: it is no manifest, or one of a later version.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"it is not a manifest of format {FORMAT}")
        digest = values.get(DIGEST)
        values = {k: v for k, v in values.items() if k != DIGEST}
        # One that was written before there were digests has none.
        if digest is not None and digest != _digest(values):
            raise ValueError("it does not have the SHA-256 that it says")
        try:
            rest = {k: v for k, v in values.items() if k not in ("format", "files")}
            if not values["files"]:
                raise ValueError("it names no files")
            return cls(**rest, files=tuple(_file(f) for f in values["files"]))
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"it is not a manifest: {error!r}") from error


def _digest(values: dict[str, Any]) -> str:
    """Of the values as they will be once they have been through JSON, whose keys are strings."""
    canonical = json.dumps(json.loads(json.dumps(values)), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _file(values: dict[str, Any]) -> ShardFile:
    state = dict(values["state"])
    return ShardFile(
        **{k: v for k, v in values.items() if k != "state"},
        state=ShardState(
            **state
            | {
                "applied": intervals_of(state["applied"]),
                "set_aside": {int(i): why for i, why in state["set_aside"].items()},
                "staleness": {int(s): n for s, n in state["staleness"].items()},
            }
        ),
    )


def is_even(files: Sequence[ShardFile]) -> bool:
    """Whether the shards' applied and set-aside items are together the same."""
    first, *rest = (accounted_by(file.state) for file in files)
    return all(other == first for other in rest)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often snapshots are taken: ``examples`` apart, and at the latest after ``seconds``."""

    examples: int
    seconds: float

    def due(self, examples_since: int, seconds_since: float) -> bool:
        """Whether the next one is due; never without an example since the last."""
        if examples_since <= 0:
            return False
        return examples_since >= self.examples or seconds_since >= self.seconds


def abandoned_snapshots(record: Mapping[str, Any]) -> list[int]:
    """Numbers of those that came after one to which the run went back, by its ``config.json``."""
    return [n for resumption in record.get("resumed", []) for n in resumption.get("abandoned", [])]


def superfluous(
    manifests: Sequence[Manifest], keep: int, abandoned: Container[int] = ()
) -> list[int]:
    """Numbers of the snapshots that may go: all but the newest ``keep`` and the newest even one.

    Those that were abandoned go as soon as there is a newer one.
    """
    newest = max((m.number for m in manifests), default=0)
    left = [m.number for m in manifests if m.number in abandoned and m.number < newest]
    ordered = sorted((m for m in manifests if m.number not in left), key=lambda m: m.number)
    kept = {m.number for m in ordered[-keep:]}
    even = [m.number for m in ordered if m.even]
    return left + [m.number for m in ordered if m.number not in {*kept, *even[-1:]}]


def newest_fit(manifests: Sequence[Manifest], n_shards: int) -> Manifest | None:
    """The newest snapshot that so many shards can go on from."""
    fitting = [m for m in manifests if m.fits(n_shards)]
    return max(fitting, key=lambda m: m.number, default=None)
