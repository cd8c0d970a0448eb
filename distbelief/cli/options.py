"""Command lines into values; an unknown option is told in one sentence, with the nearest name."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from distbelief.errors import UsageError

T = TypeVar("T")

SYNONYMS = {
    "--batch": "--batch-size",
    "--gpu": "--device",
    "--learning-rate": "--lr",
    "--max-steps": "--max-examples",
    "--num-workers": "--loaders",
    "--out": "--output",
    "--output-dir": "--run-dir",
    "--servers": "--shards",
    "--workers": "--replicas",
}
"""What other programs call some options."""


def parsed(make: Callable[..., T], arguments: Sequence[str], command: str) -> T:
    """What a command line makes of a function's or a dataclass's arguments, switches all off.

    Raises:
        UsageError: an unknown option.
        SystemExit: a value that is none (2), or ``--help`` (0); the text has been printed.
    """
    known = ["--help"]
    for parameter in inspect.signature(make).parameters.values():
        known += option_names(parameter.name, switch=False)
    require_known(arguments, known, command)
    return tyro.cli(
        make,
        args=list(arguments),
        prog=f"distbelief {command}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def option_names(name: str, *, switch: bool) -> list[str]:
    """A field's option, and of a switch its opposite."""
    option = name.replace("_", "-")
    return [f"--{option}"] + ([f"--no-{option}"] if switch else [])


def options_of(config: type[Any]) -> list[str]:
    """The options of a dataclass and of the dataclasses in it."""
    found: list[str] = []
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(field.default_factory):
            found += options_of(field.default_factory)
        else:
            found += option_names(field.name, switch=field.type in (bool, "bool"))
    return found


def require_known(words: Sequence[str], known: Sequence[str], command: str) -> None:
    """Refuses an option that the command does not have.

    Raises:
        UsageError: with the nearest name.
    """
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name != "--" and name.replace("_", "-") not in known:
            known_as = SYNONYMS.get(name)
            if known_as in known:
                raise UsageError(f"there is no option {name}; it is called {known_as}")
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"see distbelief {command} --help"
            raise UsageError(f"there is no option {name}; {hint}")
