"""Twins in a run's push logs: each does what its primary does, and rests on versions of both."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from distbelief.audit.history import Log, contradiction
from distbelief.audit.lineage import Histories, Key
from distbelief.serving import Serving


@dataclass(frozen=True, slots=True)
class Pair:
    """A twin's log and its primary's, which did the same up to the clock ``agreed``."""

    twin: Log
    primary: Log
    agreed: int


def pairs_of(logs: Iterable[Log], histories: Histories) -> list[Pair]:
    """All twins and their primaries, whether they survived or not, in the order of their starts."""
    found = []
    for log in sorted(logs, key=lambda log: log.header.incarnation):
        if log.is_twin:
            shard, n_shards, incarnation, clock = log.header.sources[0]
            primary = histories.of(shard, n_shards, incarnation)
            if primary is not None and primary.header.clock <= clock <= primary.end:
                found.append(Pair(log, primary, _agreed(log, primary)))
    return found


def following(serving: Serving | None, final: Sequence[Log], histories: Histories) -> list[Log]:
    """The logs of the twins that would take their primaries' places.

    Raises:
        ContradictionError: one follows a shard that does not serve.
    """
    found = []
    for endpoint in () if serving is None else serving.twins:
        log = histories.of(endpoint.shard, len(final), endpoint.incarnation)
        if log is None:  # it was never fed
            continue
        primary = final[endpoint.shard]
        if not log.is_twin or [source.key for source, _ in histories.sources(log)] != [primary.key]:
            raise contradiction(log.name, 1, f"is a twin's, and does not follow {primary.name}")
        found.append(log)
    return found


def as_far_as_known(log: Log, pairs: Sequence[Pair]) -> Log:
    """The log, or its primary's if that goes further: the twin has done the same."""
    primary = next((pair.primary for pair in pairs if pair.twin is log), log)
    return primary if primary.end > log.end else log


def check_twins(
    pairs: Sequence[Pair], status: str, *, serving: Collection[Key], following: Collection[Key]
) -> None:
    """Twins have done what their primaries have.

    Args:
        pairs: Twins that survive, or follow a shard that serves.
        status: ``finished``, ``interrupted``, or empty for a run whose logs are not at their ends.
        serving: Logs of the shards that serve.
        following: Logs of the twins that have followed one to the end.

    Raises:
        ContradictionError: one has not.
    """
    for pair in pairs:
        _check_same(pair)
        if not status:
            continue
        if pair.twin.key in serving or pair.twin.key in following:
            _check_none_missing(pair)
        if pair.twin.key in following:
            # A twin has each push first: if a run is cut off, perhaps one that no one else has.
            _check_none_more(pair, 0 if status == "finished" else 1)


def _check_same(pair: Pair) -> None:
    twin, primary, clock = pair.twin, pair.primary, pair.agreed + 1
    if clock > min(twin.end, primary.end):
        return
    here, there = twin.item_at(clock), primary.item_at(clock)
    problem = f"item {here} at clock {clock}, where its primary in {primary.name} has item {there}"
    if here == there:
        problem = f"before item {here} it set other items aside than its primary in {primary.name}"
        if twin.examples_at(clock) != primary.examples_at(clock):
            problem = f"item {here} has other examples than at its primary in {primary.name}"
    raise contradiction(twin.name, twin.line_of(clock), problem)


def _check_none_missing(pair: Pair) -> None:
    twin, primary = pair.twin, pair.primary
    if primary.end > twin.end:
        item = primary.item_at(twin.end + 1)
        problem = f"item {item} was applied, and its twin in {twin.name} has not got it"
        raise contradiction(primary.name, primary.line_of(twin.end + 1), problem)


def _check_none_more(pair: Pair, n_tolerated: int) -> None:
    twin, primary = pair.twin, pair.primary
    if twin.end > primary.end + n_tolerated:
        item = twin.item_at(primary.end + 1)
        problem = f"item {item} was never applied by its primary in {primary.name}"
        raise contradiction(twin.name, twin.line_of(primary.end + 1), problem)


def check_versions(
    log: Log, logs: Sequence[Log], histories: Histories, cut_short: Collection[Key], n_items: int
) -> None:
    """Versions of other starts on which the log's pushes rest are such as these could have had.

    Args:
        log: One that survives.
        logs: All of the run.
        histories: How they rest on one another.
        cut_short: Logs of starts that were killed, whose last lines may be missing.
        n_items: No clock goes further.

    Raises:
        ContradictionError: one is not.
    """
    if not log.foreign:
        return
    followed = {other.header.incarnation: other for other in histories.followed(log)[1:]}
    for now, (incarnation, clock) in log.foreign:
        if incarnation in followed:  # their clock is one and the same
            possible = followed[incarnation].header.clock <= clock <= now
        else:
            possible = any(
                other.header.clock <= clock <= (n_items if other.key in cut_short else other.end)
                for other in logs
                if other.header.incarnation == incarnation and other.overlaps(log)
            )
        if not possible:
            problem = f"rests on version ({incarnation}, {clock}), which no log has"
            raise contradiction(
                log.name, log.line_of(now + 1), f"item {log.item_at(now + 1)} {problem}"
            )


def _agreed(twin: Log, primary: Log) -> int:
    first = twin.header.clock
    skip, n_both = first - primary.header.clock, min(twin.end, primary.end) - first
    ends = [first + n_both]
    for mine, theirs in ((twin.items, primary.items), (twin.examples, primary.examples)):
        if mine[:n_both] != theirs[skip : skip + n_both]:
            ends.append(first + next(i for i in range(n_both) if mine[i] != theirs[skip + i]))
    handed = set(twin.header.set_aside)
    mine_aside = {(a.clock, a.item) for a in twin.set_aside}
    their_aside = {
        (a.clock, a.item)
        for a in primary.set_aside
        if a.clock > first or (a.clock == first and a.item not in handed)
    }
    # After its last push one of them may not have been told yet.
    return min([*ends, *(clock for clock, _ in mine_aside ^ their_aside)])
