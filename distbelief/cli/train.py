"""``distbelief train [RECIPE] [OPTIONS]``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Annotated, cast

import tyro
from rich.console import Console

from distbelief.cli.ending import CODES, closing
from distbelief.cli.options import options_of, require_known
from distbelief.config import TrainConfig
from distbelief.errors import ConfigError, UsageError
from distbelief.observe.lasting import Lasting
from distbelief.observe.record import newest_run
from distbelief.observe.view import Lines, View
from distbelief.recipes import NEED_DATA, RECIPES, recipe
from distbelief.runtime.runs import Resume, recorded
from distbelief.storage import storage_at

OWN = ("--help", "--resume", "--resume-snapshot", "--json", "--no-live", "--detach")
"""Options that are of the command, and not of the configuration."""

DESCRIPTION = """\
Trains asynchronously on a Ray cluster: the one that runs on this host, or one that is started for
the run. Recipes: {recipes}. Options change what the recipe says; most used are
--data DIR, --replicas N, --shards M, --epochs E, --batch-size B, --lr R, --seed S, --run-dir DIR,
--address auto|local|inprocess|HOST:PORT and --model package.module:function.

--resume [RUN] goes on with a run from its newest snapshot, by default with the newest run of runs/;
its recipe and options are those it was started with, and --replicas, --shards and others may
change. --resume-snapshot N takes an older one. --json prints the summary as JSON to the standard
output, and progress to the error output. --no-live prints lines where there is a terminal too.

--detach returns when the run has begun, which goes on when this terminal is closed; see it with
distbelief attach, end it with distbelief stop."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a command line means."""

    config: TrainConfig
    resume: Resume | None = None
    as_json: bool = False
    live: bool = True
    detached: tuple[str, ...] | None = None
    """Of a run that is to be detached: the arguments of the command in its own process, but for
    those that name its folder."""


def parse(arguments: Sequence[str]) -> Command:
    """The run that a command line means: its recipe's, or the resumed run's, changed by options.

    Raises:
        UsageError: an unknown recipe or option, an impossible value, or no run to resume.
        SystemExit: a value that is none (2), or ``--help`` (0); the text has been printed.
    """
    rest = list(arguments)
    as_json, no_live = taken("--json", rest), taken("--no-live", rest)
    detached = taken("--detach", rest)
    name = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if any(a == "--recipe" or a.startswith("--recipe=") for a in rest):
        raise UsageError("the recipe is the first argument: distbelief train NAME ...")
    resume = _resume(rest)
    require_known(rest, [*OWN, *options_of(TrainConfig)], "train")
    if resume is None:
        start = recipe(name or "quickstart")
    else:
        start, _ = recorded(resume.run)
        if name not in (None, start.recipe):
            raise UsageError(
                f"{resume.run} is a run of {start.recipe}, not of {name}; leave it out"
            )
    words = list(rest)
    config = configured(
        start,
        rest,
        prog=f"distbelief train {start.recipe}",
        description=DESCRIPTION.format(recipes=", ".join(RECIPES)),
    )
    if not detached:
        return Command(config, resume, as_json, not no_live)
    _value("--run-dir", words)
    return Command(config, resume, as_json, detached=(*([name] if name else []), *words))


def configured(start: TrainConfig, rest: list[str], *, prog: str, description: str) -> TrainConfig:
    """A configuration, changed by the options of a command line, which are all of it.

    Raises:
        ConfigError: an impossible value.
        SystemExit: a value that is none (2), or ``--help`` (0); the text has been printed.
    """
    groups = _values("--replica-group", rest)
    if any(word.partition("=")[0] == "--replicas" for word in rest):
        if groups:
            raise ConfigError("replicas", "is told by --replica-group; leave one of them out")
        start = start.changed(replica_group=())  # of a run that is resumed
    config = tyro.cli(
        Annotated[TrainConfig, tyro.conf.arg(name="")],
        default=start,
        args=rest,
        prog=prog,
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),  # --batch-size, not --replica.batch-size
    )
    # Last, since a group rests on what the other options say of all replicas.
    return config.changed(replica_group=tuple(groups)) if groups else config


def _resume(rest: list[str]) -> Resume | None:
    """Takes --resume and --resume-snapshot off the command line; either may have no value."""
    snapshot = _value("--resume-snapshot", rest)
    if snapshot is not None and not snapshot.isdigit():
        raise ConfigError("resume_snapshot", f"must be the number of a snapshot, not {snapshot!r}")
    run = _value("--resume", rest)
    if run is None:
        if snapshot is not None:
            raise ConfigError("resume_snapshot", "goes with --resume RUN")
        return None
    folder = _value("--run-dir", rest)
    if run and folder and storage_at(run).url != storage_at(folder).url:
        raise ConfigError("run_dir", f"differs from --resume {run}; leave one of them out")
    number = int(snapshot) if snapshot else None
    return Resume(run or folder or newest_run("runs"), number)


def _value(option: str, rest: list[str]) -> str | None:
    """Takes an option off; its value, "" if it has none, None if it is not there."""
    for at, word in enumerate(rest):
        if word.startswith(f"{option}="):
            del rest[at]
            return word.partition("=")[2]
        if word == option:
            has_value = at + 1 < len(rest) and not rest[at + 1].startswith("-")
            value = rest[at + 1] if has_value else ""
            del rest[at : at + 1 + has_value]
            return value
    return None


def _values(option: str, rest: list[str]) -> list[str]:
    """Takes every occurrence of an option off, each with one value or several."""
    found: list[str] = []
    while True:
        at = next(
            (i for i, w in enumerate(rest) if w == option or w.startswith(f"{option}=")), None
        )
        if at is None:
            return found
        _, equals, value = rest[at].partition("=")
        end = at + 1
        values = [value] if equals else []
        while not equals and end < len(rest) and not rest[end].startswith("-"):
            values.append(rest[end])
            end += 1
        if not any(values):
            raise ConfigError(option.lstrip("-"), "has no value")
        found += values
        del rest[at:end]


def main(arguments: Sequence[str]) -> int:
    """Trains; prints how it goes and, with --json, the summary alone to the standard output."""
    command = parse(arguments)
    data = command.config.data
    if command.config.recipe in NEED_DATA and data.data is None and data.dataset is None:
        raise ConfigError(
            "data", f"{command.config.recipe} needs it: a folder with train/ and val/"
        )
    if command.detached is not None:
        return _detach(command, command.detached)
    from distbelief.runtime.train import train

    with _view(command) as view:
        result = train(command.config, view, resume=command.resume)
    Lasting(sys.stdout).say(json.dumps(result) if command.as_json else closing(result))
    return CODES.get(result["status"], 1)


def _detach(command: Command, words: tuple[str, ...]) -> int:
    from distbelief.cli.detach import detach
    from distbelief.runtime.folder import folder_of

    if command.resume is None:
        storage = folder_of(command.config, time.time())
        words += ("--run-dir", storage.url)
    else:
        storage = storage_at(command.resume.run)
        words += ("--resume", storage.url)
        if command.resume.snapshot is not None:
            words += ("--resume-snapshot", str(command.resume.snapshot))
    return detach(words, storage, as_json=command.as_json)


def taken(flag: str, rest: list[str]) -> bool:
    """Takes a switch off the command line; whether it was there."""
    present = flag in rest
    if present:
        rest.remove(flag)
    return present


def _view(command: Command) -> View:
    from distbelief.observe.live import Live, suits

    if command.as_json:
        return Lines(Lasting(sys.stderr).say)
    if not command.live or not suits(sys.stdout):
        return Lines()
    return Live(command.config.recipe, Console(file=cast(IO[str], Lasting(sys.stdout))))
