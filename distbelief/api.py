"""Training from Python: the same that ``distbelief train`` does, with objects of one's own."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from distbelief.config import TrainConfig
from distbelief.errors import ConfigError, RunError
from distbelief.models.registry import GIVEN
from distbelief.observe.events import read_events
from distbelief.observe.record import newest_run
from distbelief.observe.view import View
from distbelief.recipes import recipe
from distbelief.replica.criterion import Loss
from distbelief.runtime import train as runtime
from distbelief.runtime.runs import Resume, recorded
from distbelief.runtime.signals import Stop
from distbelief.runtime.task import Task
from distbelief.storage import storage_at

Model = str | nn.Module | Callable[..., nn.Module]


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Attributes:
        folder: Its folder, a path or URL.
        summary: The contents of ``summary.json``.
        config: What it was.
        task: The objects that it was given.
    """

    folder: str
    summary: dict[str, Any]
    config: TrainConfig
    task: Task

    @property
    def status(self) -> str:
        """``finished`` or ``interrupted``."""
        return str(self.summary["status"])

    @property
    def validation(self) -> dict[str, Any] | None:
        """How the averaged weights did at the end: ``loss``, ``top1``, ``top5`` as far as known."""
        found: dict[str, Any] | None = self.summary["validation"]
        return found

    def weights(self) -> dict[str, torch.Tensor]:
        """The averaged weights: parameters and buffers by name, on the CPU."""
        found: dict[str, torch.Tensor] = load(storage_at(self.folder).read("model.safetensors"))
        return found

    def model(self) -> nn.Module:
        """The network with the averaged weights, in evaluation mode, on the CPU."""
        record = recorded(self.folder)[1]
        model = self.task.build_model(self.config, int(record["n_outputs"]))
        model.load_state_dict(self.weights())
        return model.eval()

    def events(self) -> list[dict[str, Any]]:
        """What happened, in order: the contents of ``events.jsonl``."""
        return read_events(storage_at(self.folder))


def train(
    model: Model | None = None,
    dataset: Any = None,
    *,
    loss: Loss | None = None,
    config: TrainConfig | str | None = None,
    resume: bool | str | os.PathLike[str] = False,
    view: View | None = None,
    stop: Stop | None = None,
    **options: Any,
) -> Run:
    """Trains, and returns the run once it has ended; blocks until then.

    The run goes to the Ray cluster of this host, or a local one that is started for it;
    ``address="inprocess"`` runs replicas and shards as threads of this process. What is given as an
    object must pickle, except there; classes and functions of a notebook do.

    Args:
        model: The network: a factory of modules, which takes ``num_classes`` if it likes, a module
            whose values are the initial ones, a name or an import path.
        dataset: Map-style data sets in the manner of ``torch.utils.data.Dataset``: one to train on,
            or a pair of one to train on and one to evaluate on; or a folder's path, or an import
            path. Their items are pairs of input and target.
        loss: What is minimised: from what the model returns for a batch and the batch's targets to
            a scalar, the mean over the batch, or to a mapping that has it as ``"loss"``. By default
            the cross entropy of classes.
        config: The run, or the name of a recipe; by default :class:`TrainConfig`'s own values.
        resume: Go on with a run: its folder, or True for the one of ``run_dir`` or the newest one.
        view: Where it is shown; by default lines on the standard output.
        stop: Ends the run in order once it is set; by default SIGINT and SIGTERM do.
        options: Changes of the configuration, by the names of the command's options: ``lr=0.1``,
            ``replicas=4``.

    Raises:
        UsageError: the configuration, the data, the model or the cluster cannot work as they are.
        RunError: the run failed.

    Example::

        run = distbelief.train(Net, (train_set, val_set), epochs=5, replicas=4)
        print(run.validation["top1"], run.folder)
    """
    resumed = _resume(resume, options.get("run_dir"))
    start = _start(config, resumed)
    task, named = _task(model, dataset, loss)
    if resumed is None and config is None:
        named.setdefault("recipe", "custom")
    final = start.changed(**named | options)
    result = runtime.train(final, view, stop, task=task, resume=resumed)
    folder = str(result.pop("run_dir"))
    if result["status"] not in ("finished", "interrupted"):
        raise RunError(str(result.get("cause", "the run failed")))
    return Run(folder, result, recorded(folder)[0], task)


def _start(config: TrainConfig | str | None, resumed: Resume | None) -> TrainConfig:
    if isinstance(config, str):
        return recipe(config)
    if config is not None:
        return config
    return TrainConfig() if resumed is None else recorded(resumed.run)[0]


def _resume(resume: bool | str | os.PathLike[str], run_dir: str | None) -> Resume | None:
    if resume is False:
        return None
    if resume is True:
        return Resume(run_dir or newest_run("runs"))
    return Resume(os.fspath(resume))


def _task(model: Model | None, dataset: Any, loss: Loss | None) -> tuple[Task, dict[str, Any]]:
    """The objects, and what the configuration shall say of them."""
    named: dict[str, Any] = {}
    if model is not None:
        named["model"] = model if isinstance(model, str) else _name(model)
    given = None if isinstance(model, str) else model
    if given is not None and not callable(given):
        kind = type(given).__name__
        raise ConfigError("model", f"must be a module, a factory of one or a name, not {kind}")
    data = dataset
    if isinstance(dataset, str | os.PathLike):
        text = os.fspath(dataset)
        is_import = ":" in text and "://" not in text and not os.path.exists(text)
        named["dataset" if is_import else "data"] = text
        data = None
    if loss is not None and not callable(loss):
        raise ConfigError("loss", f"must be a function, not {type(loss).__name__}")
    return Task(model=given, dataset=data, loss=loss), named


def _name(model: nn.Module | Callable[..., nn.Module]) -> str:
    """An import path if the object can be found by it again, else one that says what it was."""
    target = type(model) if isinstance(model, nn.Module) else model
    module = getattr(target, "__module__", "")
    name = getattr(target, "__qualname__", type(target).__qualname__)
    if not isinstance(model, nn.Module) and module not in ("", "__main__"):
        found: object = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is model:
            return f"{module}:{name}"
    return f"{GIVEN}:{module}.{name}"
