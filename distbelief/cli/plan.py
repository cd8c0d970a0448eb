"""``distbelief plan stages [RECIPE] [OPTIONS]``."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distbelief.cli.options import options_of, require_known
from distbelief.cli.train import configured, taken
from distbelief.config import TrainConfig
from distbelief.errors import ConfigError, UsageError
from distbelief.planner import Measured
from distbelief.recipes import NEED_DATA, RECIPES, recipe
from distbelief.runtime import measuring
from distbelief.runtime.dividing import example_input, first_batch, planned
from distbelief.runtime.task import Task

OWN = ("--help", "--json", "--measure")
"""Options that are of the command, and not of the configuration."""

USAGE = "distbelief plan stages [RECIPE] [OPTIONS]"

DESCRIPTION = """\
Divides a replica's layers into stages, from what each block of the network takes when it is
measured on this host, and tells what to expect: time, memory and traffic of each stage, the time of
a step, and how that compares with one process. Recipes: {recipes}. Options are those of distbelief
train; most used are --stages K (2 by default), --batch-size B, --micro-batches M,
--pipeline 1f1b|gpipe, --divide-by time|memory, --boundaries BLOCK,..., --device cpu+cuda,
--device-memory-gb G, --threads N (1 by default) and --model package.module:function. Without --data
drawn images are taken.

--measure runs the stages, and one process beside them, and prints what they took. --json prints the
plan as JSON."""

Measure = Callable[..., Measured]
"""See :func:`~distbelief.runtime.measuring.measure`."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a command line means."""

    config: TrainConfig
    measure: bool = False
    as_json: bool = False


def parse(arguments: Sequence[str]) -> Command:
    """The plan that a command line asks for.

    Raises:
        UsageError: an unknown recipe or option, or an impossible value.
        SystemExit: a value that is none (2), or ``--help`` (0); the text has been printed.
    """
    what, *rest = arguments or ("",)
    if what != "stages":
        said = f"there is no plan of {what!r}" if what else "say what to plan"
        close = "did you mean stages? " if difflib.get_close_matches(what, ["stages"]) else ""
        raise UsageError(f"{said}; {close}{USAGE}")
    as_json, measure = taken("--json", rest), taken("--measure", rest)
    name = rest.pop(0) if rest and not rest[0].startswith("-") else "quickstart"
    require_known(rest, [*OWN, *options_of(TrainConfig)], "plan stages")
    config = configured(
        recipe(name).changed(stages=2),
        rest,
        prog=f"distbelief plan stages {name}",
        description=DESCRIPTION.format(recipes=", ".join(RECIPES)),
    )
    if all(slot.stages == 1 for slot in config.slots):
        raise ConfigError("stages", "one stage is not divided; take 2 or more")
    return Command(config, measure, as_json)


def main(arguments: Sequence[str], measure: Measure = measuring.measure) -> int:
    """Plans; prints a table or, with --json, everything as JSON."""
    if list(arguments) in (["-h"], ["--help"]):
        arguments = ["stages", "--help"]
    command = parse(arguments)
    config = command.config
    counts = Counter(slot for slot in config.slots if slot.stages > 1)
    task = Task()
    dataset = task.open_data(config)
    model = task.build_model(config, dataset.n_outputs)
    example = example_input(config, dataset)
    plans: list[dict[str, Any]] = []
    for slot, n_replicas in counts.items():
        threads = slot.threads or 1
        plan = planned(config, slot, model, example, threads=threads, compare=True)
        found = None
        if command.measure:
            found = measure(
                config,
                task,
                plan.plan,
                first_batch(config, dataset, slot.batch_size),
                n_outputs=dataset.n_outputs,
                slot=config.slots.index(slot),
                n_threads=threads,
            )
        plans.append({"replicas": n_replicas, **plan.explanation.to_dict(found)})
        if not command.as_json:
            before = "\n" if len(plans) > 1 else ""
            whose = f"{n_replicas} of {len(config.slots)} replicas: " if len(counts) > 1 else ""
            print(before + whose + plan.explanation.text(found), flush=True)
            if config.recipe in NEED_DATA and config.data.data is config.data.dataset is None:
                print("note: drawn images stand for those of --data")
    if command.as_json:
        print(json.dumps({"recipe": config.recipe, "plans": plans}), flush=True)
    return 0
