"""What became of each action, and whether the run kept its promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distbelief.audit import Audit
from distbelief.chaos.members import Member
from distbelief.chaos.schedule import Action
from distbelief.chaos.watch import Changes
from distbelief.coordinator.snapshots import MANIFEST

MOST_GROWTH_NBYTES = 64 << 20
"""By so much the driver may grow."""


@dataclass(frozen=True, slots=True)
class Done:
    """An action as it was done: to whom, and when.

    Attributes:
        action: What was to be done.
        at: Seconds since the run's start, on the clock of its events.
        whom: To whom; None if there was nobody.
    """

    action: Action
    at: float
    whom: Member | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it.

    Attributes:
        done: What was done.
        how: In words.
        seconds: From the deed until it served again; None if nothing had to recover, or nothing
            has recovered.
        items: Items that went to others, or were forgotten and are done again; None if unknown.
        ok: Whether all is as it should be.
    """

    done: Done
    how: str
    seconds: float | None = None
    items: int | None = None
    ok: bool = True


def outcomes(
    done: Sequence[Done], recoveries: Sequence[Mapping[str, Any]], changes: Changes
) -> list[Outcome]:
    """What became of each action, in order; a recovery belongs to one of them at most.

    Args:
        done: What was done, in order of time.
        recoveries: The run's, in order.
        changes: Who served.
    """
    left = list(recoveries)
    found = []
    for one in done:
        if one.whom is None:
            found.append(Outcome(one, f"there was no {one.action.kind}"))
        elif one.action.kind == "twin":
            found.append(_of_twin(one, one.whom, changes))
        else:
            found.append(_of_other(one, one.whom, left))
    return found


def _of_twin(one: Done, twin: Member, changes: Changes) -> Outcome:
    again = changes.another_twin(twin.number, twin.start, one.at)
    if again is not None:
        return Outcome(one, "another twin follows", again - one.at, 0)
    if one.action.deed == "stop":
        return Outcome(one, "went on when it was woken")
    return Outcome(one, "no other twin followed", ok=False)


def _of_other(one: Done, whom: Member, left: list[Mapping[str, Any]]) -> Outcome:
    # The driver may notice in the very moment, and rounds its seconds.
    mine = next((r for r in left if r["what"] == whom.name and r["t"] >= one.at - 0.1), None)
    stopped = one.action.deed == "stop"
    if mine is None or (stopped and mine["t"] > one.at + one.action.stopped_s + 10.0):
        if stopped:
            return Outcome(one, "went on when it was woken")
        return Outcome(one, "was never missed", ok=False)
    left.remove(mine)
    how = {"snapshot": f"from snapshot {mine.get('snapshot')}", "twin": "its twin serves"}.get(
        mine.get("how", "anew"), "another serves"
    )
    if mine["seconds"] is None:
        return Outcome(one, "nothing took its place", items=mine["items_leased_again"], ok=False)
    seconds = mine["t"] + mine["seconds"] - one.at
    return Outcome(one, how, seconds, mine["items_leased_again"])


def leftovers(run_dir: Path) -> list[str]:
    """Files that a run which has ended in order must not have left."""
    found = [str(path.relative_to(run_dir)) for path in sorted(run_dir.rglob("*.tmp"))]
    snapshots = run_dir / "snapshots"
    if snapshots.is_dir():
        found += [
            f"snapshots/{folder.name}"
            for folder in sorted(snapshots.iterdir())
            if not (folder / MANIFEST).is_file()
        ]
    found += [name for name in (".probe", "stop") if (run_dir / name).exists()]
    return found


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that was found of a run after its end.

    Attributes:
        code: The command's exit code, None if it had to be killed.
        status: How it says that it ended.
        examples_applied: As it says.
        audit: What its logs prove.
        outcomes: Of every action.
        processes: Those that are left.
        files: Those that are left.
        growth_nbytes: Of the driver's memory.
        said: All that the command printed.
    """

    code: int | None
    status: str
    examples_applied: int
    audit: Audit
    outcomes: Sequence[Outcome] = ()
    processes: Sequence[str] = ()
    files: Sequence[str] = ()
    growth_nbytes: int = 0
    said: str = field(default="", repr=False)

    @property
    def problems(self) -> list[str]:
        """What is not as it should be, a sentence each; none of a run that kept its promises."""
        found = []
        if self.status != "interrupted":
            found.append(f"the run did not end in order: {self.status or 'it said nothing'}")
        if self.code is None:
            found.append("the run had to be killed")
        if not self.audit.clean:
            found.append(f"the audit is not clean: {self.audit.counter_example}")
        elif self.audit.examples + self.audit.skipped != self.examples_applied:
            there = self.audit.examples + self.audit.skipped
            found.append(f"the summary has {self.examples_applied} examples, the logs {there}")
        found += [
            f"{o.done.action.deed} of {o.done.whom.name} at {o.done.at:.0f} s: {o.how}"
            for o in self.outcomes
            if not o.ok and o.done.whom is not None
        ]
        found += [f"a process is left: {process}" for process in self.processes]
        found += [f"a file is left: {name}" for name in self.files]
        if self.growth_nbytes > MOST_GROWTH_NBYTES:
            found.append(f"the driver has grown by {self.growth_nbytes / 2**20:.0f} MiB")
        if "Traceback (most recent call last)" in self.said:
            found.append("the command printed a traceback")
        if "(raylet)" in self.said:
            found.append("the command printed words of Ray's")
        return found
