"""``distbelief chaos``."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distbelief.chaos.background import words
from distbelief.chaos.outcome import Outcome
from distbelief.chaos.run import Plan, Result, deed_of, run_chaos, who
from distbelief.chaos.schedule import schedule
from distbelief.cli.options import parsed
from distbelief.errors import ConfigError
from distbelief.observe.lasting import Lasting

SHOWN = 5
"""So many of the processes that have grown most are told."""

WIDE = 160


def main(arguments: Sequence[str]) -> int:
    """Kills and stops processes of a run at random; 0 if it kept its promises, else 1."""

    def read(
        minutes: float,
        seed: int = 0,
        every_s: float = 20.0,
        replicas: int = 3,
        shards: int = 2,
        shard_replication: int = 2,
        run_dir: str | None = None,
        json: bool = False,
    ) -> tuple[Plan, str | None, bool]:
        """Trains a small network, kills or stops one of its processes now and then, and audits it.

        Everything runs on this host, on a local Ray. What is done depends on the seed alone; what
        becomes of it does not.

        Args:
            minutes: How long it trains.
            seed: Of what is done, when and to whom.
            every_s: Seconds from one action to the next.
            replicas: Copies of the model that compute gradients.
            shards: Parameter servers.
            shard_replication: Copies of each shard; with 2 each has a twin.
            run_dir: The run's folder; by default one below the system's temporary folder.
            json: Print what was found as JSON, and progress to the error output.
        """
        for name, value in (("minutes", minutes), ("every_s", every_s)):
            if not value > 0:
                raise ConfigError(name, f"must be greater than 0, not {value:g}")
        if not schedule(seed, total_s=60 * minutes, every_s=every_s, twins=shard_replication > 1):
            what = f"leaves no time to do anything in {minutes:g} minutes; take more, or a smaller"
            raise ConfigError("minutes", f"{what} --every-s")
        options = {
            "replicas": replicas,
            "shards": shards,
            "shard_replication": shard_replication,
            "address": "local",
        }
        plan = Plan(seconds=60 * minutes, seed=seed, every_s=every_s, options=options)
        return plan, run_dir, json

    plan, run_dir, as_json = parsed(read, arguments, "chaos")
    folder = Path(run_dir or tempfile.mkdtemp(prefix="distbelief-chaos-"))
    result = run_chaos(plan, folder, Lasting(sys.stderr if as_json else sys.stdout).say)
    if as_json:
        print(json.dumps(figures(plan, folder, result)))
    else:
        _show(_console(), plan, folder, result)
    return 1 if result.findings.problems else 0


def figures(plan: Plan, folder: Path, result: Result) -> dict[str, Any]:
    """What was found, as plain values."""
    found = result.findings
    return {
        "clean": not found.problems,
        "problems": found.problems,
        "seed": plan.seed,
        "run_dir": str(folder),
        "trained_seconds": round(result.seen.trained_s, 1),
        "actions": [
            {
                "t": round(o.done.at, 2),
                "what": deed_of(o.done.action),
                "kind": o.done.action.kind,
                "whom": None if o.done.whom is None else asdict(o.done.whom),
                "how": o.how,
                "seconds": None if o.seconds is None else round(o.seconds, 2),
                "items": o.items,
                "ok": o.ok,
            }
            for o in found.outcomes
        ],
        "items": found.audit.items,
        "redone": found.audit.forgotten,
        "set_aside": found.audit.set_aside,
        "driver_growth_bytes": found.growth_nbytes,
        "recoveries": result.summary.get("recoveries", []),
    }


def _console() -> Console:
    console = Console()
    if not console.is_terminal:  # a file has room
        console.width = WIDE
    return console


def _show(console: Console, plan: Plan, folder: Path, result: Result) -> None:
    found = result.findings
    table = Table(box=None, pad_edge=False)
    for title in ("when", "what", "whom", "how it went on", "after", "items again"):
        table.add_column(title, justify="right" if title in ("when", "after") else "left")
    for outcome in found.outcomes:
        table.add_row(*_row(outcome))
    console.print(table)
    for line in (*_totals(result), *_verdict(plan, folder, result)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _verdict(plan: Plan, folder: Path, result: Result) -> Iterator[str]:
    problems = result.findings.problems
    yield from (f"problem     {problem}" for problem in problems)
    if not problems:
        yield "clean       nothing lost, nothing left behind"
        return
    options = " ".join(words({k: v for k, v in plan.options.items() if k != "address"}))
    again = f"--minutes {plan.seconds / 60:g} --seed {plan.seed} --every-s {plan.every_s:g}"
    yield f"not clean   the run is kept in {folder}"
    yield f"again       distbelief chaos {again} {options}"


def _row(outcome: Outcome) -> tuple[str, ...]:
    done = outcome.done
    return (
        f"{done.at:.0f}s",
        deed_of(done.action),
        done.action.kind if done.whom is None else who(done.whom),
        outcome.how,
        "" if outcome.seconds is None else f"{outcome.seconds:.1f}s",
        "" if outcome.items is None else f"{outcome.items:,}",
    )


def _totals(result: Result) -> Iterator[str]:
    found, seen, summary = result.findings, result.seen, result.summary
    audited = found.audit
    pushes = summary.get("pushes", {})
    yield (
        f"items       {audited.items:,} applied on each of {audited.n_shards} shards, "
        f"{audited.examples:,} examples; {pushes.get('repeated', 0):,} pushes repeated, "
        f"{sum(pushes.get('refused', {}).values()):,} refused, {audited.set_aside:,} set aside"
    )
    yield f"redone      {audited.forgotten:,} pushes"
    for one in audited.redone:
        yield f"            {one}"
    yield f"audit       {'clean' if audited.clean else audited.counter_example}"
    n_first, n_last = seen.memory.n_processes()
    yield f"processes   {n_first} at first, {n_last} before the end, {len(found.processes)} after"
    grown = sorted(((seen.memory.growth(i), i) for i in seen.memory.survivors()), reverse=True)
    yield f"memory      the driver has grown by {_mib(found.growth_nbytes)}"
    for growth, identity in grown[:SHOWN]:
        yield f"            {_mib(growth):>10}  {seen.commands[identity]}"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:+.1f} MiB"
