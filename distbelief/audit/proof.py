"""Holds a run's evidence against what it promises.

What counts is the surviving history of each shard (:mod:`distbelief.audit.lineage`). There: no gap
in the clock, no item applied twice, each rate as scheduled, each push with all its item's examples
but those it skipped; and every item of each finished epoch applied, or set aside with a reason.
Twins have done what their primaries have. Snapshots that are there hold what the history says.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from distbelief.audit.evidence import Evidence, read_evidence
from distbelief.audit.history import ContradictionError, CounterExample, Log, contradiction
from distbelief.audit.lineage import Histories, History, Key, final_logs
from distbelief.audit.promises import promised
from distbelief.audit.redone import Redone, Told, redone, survivors
from distbelief.audit.twins import as_far_as_known, check_twins, check_versions, following, pairs_of
from distbelief.coordinator.snapshots import Manifest, is_even
from distbelief.server.applied import ItemSet, intersection


@dataclass(frozen=True, slots=True)
class ItemAside:
    """An item that was set aside, why, and the names of its examples as far as they were told."""

    item: int
    reason: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result of an audit; clean if ``counter_example`` is None.

    Attributes:
        counter_example: The first contradiction.
        n_shards: Shards of the run.
        pushes: Of all surviving histories.
        items: Applied on every shard.
        examples: That went into them; ``skipped`` those of them that could not be read.
        set_aside: Items that are accounted for and not applied on every shard: :attr:`aside`.
        epochs_finished: Whole epochs that are accounted for on every shard.
        forgotten: Pushes that no surviving history has, and that were done again: :attr:`redone`.
        snapshots: That were held against the logs.
        twins: That follow a shard, and were held against it.
    """

    counter_example: CounterExample | None
    n_shards: int = 0
    pushes: int = 0
    items: int = 0
    examples: int = 0
    skipped: int = 0
    set_aside: int = 0
    epochs_finished: int = 0
    forgotten: int = 0
    snapshots: int = 0
    twins: int = 0
    redone: tuple[Redone, ...] = ()
    aside: tuple[ItemAside, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing contradicts the promise."""
        return self.counter_example is None


def audit(run: str | os.PathLike[str]) -> Audit:
    """Audits the run in a folder, by path or URL, which may be going on.

    Raises:
        DataError: the folder holds no run, or a file of it cannot be read.
    """
    try:
        return _prove(read_evidence(run))
    except ContradictionError as error:
        return Audit(counter_example=error.found)


def _prove(evidence: Evidence) -> Audit:
    logs, serving, status = evidence.logs, evidence.serving, evidence.status
    histories, told = Histories(logs), Told.by(evidence.events)
    final = final_logs(evidence.url, logs, evidence.n_parameters, serving)
    kept = survivors(final, histories)
    beside = following(serving, final, histories)
    for log in (*final, *beside):
        histories.at(log, log.end)
    pairs, twins = pairs_of(logs, histories), {log.key for log in beside}
    killed = {log.key for log in logs if (log.header.shard, log.header.incarnation) in told.lost}
    check_twins(
        [pair for pair in pairs if pair.twin.key in kept.keys() | twins],
        status,
        serving={log.key for log in final},
        following=twins - killed,
    )
    for log in logs:
        if log.key in kept or log.key in twins:
            check_versions(log, logs, histories, killed, evidence.plan.n_items)
    _check_snapshots(evidence.manifests, histories)
    if not status:  # a twin that has just taken its primary's place may have more than its log says
        final = [as_far_as_known(log, pairs) for log in final]
        kept = survivors(final, histories)
    shards = [_Shard.of(log, histories, kept) for log in final]
    start = None if serving is None else serving.run
    must = promised(evidence.plan, evidence.events, status, final, histories, start)
    again = redone(logs, kept, pairs, twins, told)
    return replace(
        _check_items(shards, evidence, must),
        forgotten=sum(one.pushes for one in again),
        snapshots=len(evidence.manifests),
        twins=len(twins),
        redone=again,
    )


@dataclass(frozen=True)
class _Shard:
    """What has become of one shard: the logs of its history, the history, each item's examples."""

    logs: list[Log]
    history: History
    examples: dict[int, int]

    @classmethod
    def of(cls, last: Log, histories: Histories, kept: dict[Key, int]) -> _Shard:
        """From its last log; ``kept`` are the clocks up to which logs survive."""
        logs, examples = histories.ancestry(last), dict[int, int]()
        for log in logs:
            n_kept = kept[log.key] - log.header.clock
            examples.update(zip(log.items[:n_kept], log.examples[:n_kept], strict=True))
        return cls(logs, histories.at(last, last.end), examples)

    @property
    def name(self) -> str:
        """Of its last log."""
        return self.logs[-1].name

    def contradiction(self, item: int, problem: str) -> ContradictionError:
        """What is wrong with an item that it has applied."""
        log = next(log for log in reversed(self.logs) if item in log.items)
        line = log.line_of(log.header.clock + 1 + log.items.index(item))
        return contradiction(log.name, line, problem)


def _check_snapshots(manifests: dict[str, Manifest], histories: Histories) -> None:
    """Every snapshot has done what the logs say, and is even if it says so."""
    for name, manifest in manifests.items():
        for file in manifest.files:
            state = file.state
            log = histories.of(state.shard, file.n_shards, state.incarnation)
            if log is None:
                raise contradiction(name, 0, f"there is no push log of {file.name}")
            if not log.header.clock <= state.clock <= log.end:
                goes = f"{log.name} goes from {log.header.clock} to {log.end}"
                raise contradiction(name, 0, f"{file.name} is of clock {state.clock}, {goes}")
            history = histories.at(log, state.clock)
            if history.applied != ItemSet(state.applied):
                problem = f"{file.name} has other items applied than {log.name} says"
                raise contradiction(name, 0, problem)
            for item in sorted(state.set_aside):
                if item not in history.set_aside:
                    problem = f"{file.name} has item {item} set aside, {log.name} has not"
                    raise contradiction(name, 0, problem)
            for item in sorted(log.settled(state.clock) - state.set_aside.keys()):
                problem = f"{log.name} has item {item} set aside, {file.name} has not"
                raise contradiction(name, 0, problem)
        if manifest.even != is_even(manifest.files):
            raise contradiction(name, 0, f"says even: {manifest.even}, which it is not")


def _check_items(shards: Sequence[_Shard], evidence: Evidence, must: range) -> Audit:
    plan, accounted = evidence.plan, [shard.history.accounted for shard in shards]
    missing = [
        (begin, shard.name)
        for items, shard in zip(accounted, shards, strict=True)
        for begin, _ in items.gaps(must.stop)[:1]
    ]
    if missing:
        item, name = min(missing)
        raise contradiction(name, 0, f"item {item} was not applied, though it must have been")
    first, *rest = shards
    for shard in rest:
        for item, there in first.examples.items():
            if (here := shard.examples.get(item, there)) != there:
                problem = f"item {item} has {here} examples here, {there} in {first.name}"
                raise shard.contradiction(item, problem)
    everywhere = intersection(accounted)
    applied = intersection(shard.history.applied for shard in shards)
    covered = sum(plan.item(item).n_examples for item in applied)
    used = sum(first.examples[item] for item in applied)
    said = evidence.ended.get("examples_applied", covered)
    # A run that was cut off may have applied more than it had heard of.
    if said > covered or (said < covered and evidence.status == "finished"):
        problem = f"says {said} examples, the logs say {covered}"
        raise contradiction("summary.json", 0, problem)
    aside = _aside(shards, everywhere, applied, evidence)
    return Audit(
        counter_example=None,
        n_shards=len(shards),
        pushes=sum(len(shard.history.applied) for shard in shards),
        items=len(applied),
        examples=used,
        skipped=covered - used,
        set_aside=len(aside),
        epochs_finished=min(everywhere.below // plan.items_per_epoch, plan.n_epochs),
        aside=aside,
    )


def _aside(
    shards: Sequence[_Shard], everywhere: ItemSet, applied: ItemSet, evidence: Evidence
) -> tuple[ItemAside, ...]:
    reasons = {
        entry.item: entry.reason
        for shard in shards
        for log in shard.logs
        for entry in log.set_aside
        if entry.item in everywhere and entry.item not in applied
    }
    files: dict[Any, tuple[str, ...]] = {}
    for event in evidence.events:
        if event["kind"] == "set_aside" and isinstance(event.get("files"), list):
            files[event.get("item")] = tuple(map(str, event["files"]))
    return tuple(ItemAside(i, why, files.get(i, ())) for i, why in sorted(reasons.items()))
