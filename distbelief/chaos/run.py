"""Chaos: trains for some minutes, does something to a process now and then, and looks at it all."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distbelief.audit import audit
from distbelief.chaos.background import POLL_S, Background
from distbelief.chaos.members import Member, chosen
from distbelief.chaos.outcome import Done, Findings, leftovers, outcomes
from distbelief.chaos.processes import Process, resident_nbytes, send
from distbelief.chaos.schedule import Action, schedule
from distbelief.chaos.watch import Changes, Memory

MEMORY_EVERY_S = 1.0
RECOVER_S = 60.0
"""So long the last recoveries are waited for."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run.

    Attributes:
        seconds: How long it trains.
        seed: Of the schedule.
        every_s: Seconds from one action to the next.
        options: Of the run, by their names.
    """

    seconds: float
    seed: int
    every_s: float
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def replicas(self) -> int:
        """Of the run."""
        return int(str(self.options.get("replicas", 2)))

    @property
    def twins(self) -> int:
        """Of the run."""
        copies = int(str(self.options.get("shard_replication", 1)))
        return (copies - 1) * int(str(self.options.get("shards", 2)))

    @property
    def actions(self) -> tuple[Action, ...]:
        """What is done."""
        return schedule(self.seed, total_s=self.seconds, every_s=self.every_s, twins=self.twins > 0)


@dataclass
class Seen:
    """What was seen of a run."""

    done: list[Done] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)
    memory: Memory = field(default_factory=Memory)
    commands: dict[tuple[int, int], str] = field(default_factory=dict)
    driver: tuple[int, int] = (0, 0)
    trained_s: float = 0.0


@dataclass(frozen=True)
class Result:
    """How it went: what was found, and what was seen."""

    findings: Findings
    seen: Seen
    summary: dict[str, Any]


def run_chaos(plan: Plan, run_dir: Path, say: Callable[[str], None]) -> Result:
    """Runs it to the end; blocks for its minutes and about one more.

    Args:
        plan: What to run.
        run_dir: The run's folder, which must hold no run.
        say: Tells the user.

    Raises:
        RunError: the run did not begin. One that ends by itself later is among the findings.
        DataError: the folder holds a run.
    """
    seen = Seen()
    with Background(run_dir, plan.options) as run:
        say(f"run folder  {run.storage.url}")
        run.await_work(plan.replicas, twins=plan.twins)
        say("all serve and have worked: it begins")
        _Watcher(run, seen, say).go(plan)
        code = run.stop()
        left = run.await_no_process()
        said = run.said()
        results = outcomes(seen.done, run.recoveries(), seen.changes)
    summary = _summary(run_dir)
    say("the run has ended, and is audited")
    findings = Findings(
        code=code,
        status=str(summary.get("status", "")),
        examples_applied=int(summary.get("examples_applied", 0)),
        audit=audit(run_dir),
        outcomes=results,
        processes=[f"{p.pid} {p.command}" for p in left],
        files=leftovers(run_dir),
        growth_nbytes=seen.memory.growth(seen.driver),
        said=said,
    )
    return Result(findings, seen, summary)


class _Watcher:
    """Does what is due, and takes note of what is to be seen; has one caller, and no thread."""

    def __init__(self, run: Background, seen: Seen, say: Callable[[str], None]) -> None:
        self._run = run
        self._seen = seen
        self._say = say
        self._started_at = run.started_at
        self._waking: list[tuple[float, Process, Member]] = []
        self._measured_at = 0.0

    def go(self, plan: Plan) -> None:
        """Blocks until all is done, and what was lost has been replaced; or the run has ended."""
        began = time.monotonic()
        due = list(plan.actions)
        try:
            while self._run.runs and time.monotonic() - began < plan.seconds:
                self._look()
                if due and time.monotonic() - began >= due[0].at_s:
                    self._do(due.pop(0))
                time.sleep(POLL_S)
            give_up_at = time.monotonic() + RECOVER_S
            while self._run.runs and not self._settled() and time.monotonic() < give_up_at:
                self._look()
                time.sleep(POLL_S)
        finally:
            self._wake(math.inf)
            self._seen.trained_s = time.monotonic() - began

    def _look(self) -> None:
        self._wake(time.monotonic())
        self._seen.changes.look(self._t(), self._run.serving())
        if time.monotonic() - self._measured_at >= MEMORY_EVERY_S:
            self._measured_at = time.monotonic()
            self._measure()

    def _measure(self) -> None:
        at = self._t()
        for process in self._run.processes().values():
            nbytes = resident_nbytes(process.pid)
            if nbytes is not None:
                self._seen.memory.add(process.identity, at, nbytes)
                self._seen.commands[process.identity] = process.command
                if process.pid == self._run.pid:
                    self._seen.driver = process.identity

    def _do(self, action: Action) -> None:
        there = dict(self._run.members())
        whom = chosen(list(there), action.kind, action.choice)
        if whom is None:
            self._say(f"{self._t():6.0f}s  there is no {action.kind}, which is let be")
            self._seen.done.append(Done(action, self._t(), None))
            return
        at = self._t()
        if action.deed == "kill":
            send(there[whom], signal.SIGKILL)
        else:
            send(there[whom], signal.SIGSTOP)
            self._waking.append((time.monotonic() + action.stopped_s, there[whom], whom))
        self._seen.done.append(Done(action, at, whom))
        self._say(f"{at:6.0f}s  {deed_of(action)} {who(whom)}, process {whom.pid}")

    def _wake(self, now: float) -> None:
        for entry in list(self._waking):
            at, process, whom = entry
            if at <= now:
                self._waking.remove(entry)
                if send(process, signal.SIGCONT):
                    self._say(f"{self._t():6.0f}s  woke {who(whom)}")

    def _settled(self) -> bool:
        found = outcomes(self._seen.done, self._run.recoveries(), self._seen.changes)
        return not self._waking and all(outcome.ok for outcome in found)

    def _t(self) -> float:
        return time.time() - self._started_at


def deed_of(action: Action) -> str:
    """An action as a verb."""
    return "killed" if action.deed == "kill" else f"stopped for {action.stopped_s:g} s"


def who(member: Member) -> str:
    """A member for people."""
    return f"the twin of {member.name}" if member.kind == "twin" else member.name


def _summary(run_dir: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    except FileNotFoundError:
        return {}
    return found
