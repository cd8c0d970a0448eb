"""The commands: parsing and printing."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence

from distbelief import __version__
from distbelief.errors import DistBeliefError, UsageError
from distbelief.observe.lasting import Lasting

INTERRUPTED = 130
"""The exit code of a command that was interrupted."""

HELP = """\
Asynchronous, parameter-server training on Ray, after DistBelief.

usage: distbelief COMMAND ...

  train [RECIPE] [OPTIONS]   train; without a recipe: quickstart, which needs no data
  plan stages [RECIPE]       divide a network into stages, and tell what to expect of them
  evaluate RUN...            top-1, top-5 and loss of trained models, alone or averaged
  export RUN                 a trained model as safetensors or ONNX
  attach [RUN]               watch a run that goes on in another process, until it ends
  stop [RUN]                 ask such a run to end in order
  status [RUN]               how a run stands, from its folder; by default the newest of runs/
  report RUN...              one page with plots of one run, or of several compared
  audit RUN                  prove from a run's logs that every example was applied once
  chaos --minutes M          kill and stop processes of a run at random, then audit it
  bench recovery|heartbeats  how soon what dies serves again; false alarms at full load
  recipes                    the recipes, a line each

distbelief COMMAND --help tells the options of a command."""


def _train(arguments: Sequence[str]) -> int:
    from distbelief.cli.train import main

    return main(arguments)


def _plan(arguments: Sequence[str]) -> int:
    from distbelief.cli.plan import main

    return main(arguments)


def _evaluate(arguments: Sequence[str]) -> int:
    from distbelief.cli.evaluate import main

    return main(arguments)


def _export(arguments: Sequence[str]) -> int:
    from distbelief.cli.export import main

    return main(arguments)


def _attach(arguments: Sequence[str]) -> int:
    from distbelief.cli.attach import main

    return main(arguments)


def _stop(arguments: Sequence[str]) -> int:
    from distbelief.cli.stop import main

    return main(arguments)


def _status(arguments: Sequence[str]) -> int:
    from distbelief.cli.status import main

    return main(arguments)


def _report(arguments: Sequence[str]) -> int:
    from distbelief.cli.report import main

    return main(arguments)


def _audit(arguments: Sequence[str]) -> int:
    from distbelief.cli.audit import main

    return main(arguments)


def _chaos(arguments: Sequence[str]) -> int:
    from distbelief.cli.chaos import main

    return main(arguments)


def _bench(arguments: Sequence[str]) -> int:
    from distbelief.cli.bench import main

    return main(arguments)


def _recipes(arguments: Sequence[str]) -> int:
    from distbelief.recipes import RECIPES

    if arguments:
        raise UsageError("distbelief recipes takes no arguments")
    for name, make in RECIPES.items():
        print(f"{name:12} {(make.__doc__ or '').strip()}")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "plan": _plan,
    "evaluate": _evaluate,
    "export": _export,
    "attach": _attach,
    "stop": _stop,
    "status": _status,
    "report": _report,
    "audit": _audit,
    "chaos": _chaos,
    "bench": _bench,
    "recipes": _recipes,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 done, 1 failed, 2 bad usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"distbelief {__version__}")
        return 0
    if os.getcwd() not in sys.path:  # for --model mine:Net, as `python -m` would have it
        sys.path.append(os.getcwd())
    try:
        command, *rest = arguments
        if command not in COMMANDS:
            close = difflib.get_close_matches(command, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else "see distbelief --help"
            raise UsageError(f"there is no command {command!r}; {hint}")
        return COMMANDS[command](rest)
    except DistBeliefError as error:
        Lasting(sys.stderr).say(f"distbelief: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        Lasting(sys.stderr).say("distbelief: stopped")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
