"""``distbelief train [RECIPE] [OPTIONS]``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from distbelief.config import TrainConfig
from distbelief.errors import UsageError
from distbelief.recipes import RECIPES, recipe

DESCRIPTION = """\
Trains asynchronously on a Ray cluster: the one that runs on this host, or one that is started for
the run. Recipes: {recipes}. Options change what the recipe says; --json prints
the summary as JSON to the standard output, and progress to the error output."""


def parse(arguments: Sequence[str]) -> TrainConfig:
    """The configuration that a command line means: its recipe's, changed by its options.

    Raises:
        UsageError: an unknown recipe, or an impossible value.
        SystemExit: an unknown option (2), or ``--help`` (0); the text has been printed.
    """
    rest = list(arguments)
    name = "quickstart"
    if rest and not rest[0].startswith("-"):
        name = rest.pop(0)
    if any(a == "--recipe" or a.startswith("--recipe=") for a in rest):
        raise UsageError("the recipe is the first argument: distbelief train NAME ...")
    start = recipe(name)
    return tyro.cli(
        Annotated[TrainConfig, tyro.conf.arg(name="")],
        default=start,
        args=rest,
        prog=f"distbelief train {name}",
        description=DESCRIPTION.format(recipes=", ".join(RECIPES)),
        config=(tyro.conf.OmitArgPrefixes,),  # --batch-size, not --replica.batch-size
    )


def main(arguments: Sequence[str]) -> int:
    """Trains; prints how it goes and, with --json, the summary alone to the standard output."""
    rest = list(arguments)
    as_json = "--json" in rest
    if as_json:
        rest.remove("--json")
    config = parse(rest)
    from distbelief.runtime.train import train

    result = train(config, say=_to_stderr if as_json else _to_stdout)
    print(json.dumps(result) if as_json else _closing(result), flush=True)
    return {"finished": 0, "interrupted": 130}.get(result["status"], 1)


def _to_stdout(line: str) -> None:
    print(line, flush=True)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _closing(result: dict[str, Any]) -> str:
    lines = [
        f"{result['status']}: {result['examples_applied']:,} images in "
        f"{result['wall_seconds']:.0f} s, {result['images_per_second']:,.0f} images/s"
    ]
    if found := result["validation"]:
        lines.append(
            f"averaged weights: top-1 {found['top1']:.2%}, top-5 {found['top5']:.2%} of "
            f"{found['n_examples']:,} validation images"
        )
    lines.append(f"weights and record: {result['run_dir']}")
    return "\n".join(lines)
