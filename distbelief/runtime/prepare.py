"""From a configuration to all that is settled before anything starts."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distbelief.config import TrainConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.data.dataset import Dataset, open_data
from distbelief.errors import ConfigError
from distbelief.items import ItemPlan
from distbelief.layout import Layout
from distbelief.models.registry import build
from distbelief.server.shard import ShardSpec
from distbelief.storage import write_json

WRITTEN = ("config.json", "events.jsonl", "pushes", "summary.json", "model.safetensors")
"""What a run writes into its folder, which must hold none of it at the start."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that can start.

    Attributes:
        config: With absolute paths.
        plan: How the examples are divided.
        layout: Of the model's parameters.
        initial: ``(layout.size,) float32``, the initial values.
        n_outputs: Outputs of the network.
        classes: Class names in index order.
        digests: Of the listings of the training and validation images.
        run_dir: The run's folder, which exists.
        started_at: Start of the run, in seconds since the epoch.
    """

    config: TrainConfig
    plan: ItemPlan
    layout: Layout
    initial: torch.Tensor
    n_outputs: int
    classes: tuple[str, ...]
    digests: tuple[str, ...]
    run_dir: Path
    started_at: float

    @property
    def schedule(self) -> Schedule:
        """The learning rate of each item."""
        return Schedule(self.config.schedule, self.plan)

    def shard_spec(self, index: int, incarnation: int = 1) -> ShardSpec:
        """What one shard must know."""
        n_shards = self.config.cluster.shards
        begin, end = self.layout.shard_ranges(n_shards)[index]
        return ShardSpec(
            index=index,
            n_shards=n_shards,
            begin=begin,
            end=end,
            segments=self.layout.segments(begin, end),
            layout=self.layout.fingerprint,
            incarnation=incarnation,
            examples_per_item=self.plan.examples_per_item,
            total_examples=self.plan.total_examples,
            n_replicas=self.config.cluster.replicas,
            optimizer=self.config.optimizer,
            averaging=self.config.averaging,
            log_folder=self.run_dir / "pushes",
        )


def build_model(config: TrainConfig, n_outputs: int) -> torch.nn.Module:
    """The run's network with its initial values, the same in every process."""
    return build(
        config.model, classes=n_outputs, image_size=config.data.image_size, seed=config.seed
    )


def plan_of(config: TrainConfig, dataset: Dataset) -> ItemPlan:
    """How the run's examples are divided into items."""
    if config.replica.batch_size > dataset.train.n_examples:
        raise ConfigError(
            "batch_size",
            f"{config.replica.batch_size} is more than the {dataset.train.n_examples} training "
            f"images; take a smaller one",
        )
    plan = ItemPlan.of_run(
        n_examples=dataset.train.n_examples,
        batch_size=config.replica.batch_size,
        n_push=config.replica.n_push,
        epochs=config.epochs,
        max_examples=config.max_examples,
    )
    if plan.n_items == 0:
        raise ConfigError("epochs", f"{config.epochs} of {plan.n_examples} images is not one image")
    return plan


def prepare(config: TrainConfig, started_at: float | None = None) -> Prepared:
    """Opens the data, builds the model once, and makes the run's folder with ``config.json``.

    Raises:
        UsageError: something that the user can mend; nothing has been written then.
    """
    started_at = time.time() if started_at is None else started_at
    config = _absolute(config)
    dataset = open_data(config.data, config.seed)
    plan = plan_of(config, dataset)
    model = build_model(config, dataset.n_outputs)
    layout = Layout.of(model.named_parameters(), bias_rate=config.optimizer.bias_rate)
    layout.shard_ranges(config.cluster.shards)
    initial = torch.empty(layout.size)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, view in layout.views(initial).items():
            view.copy_(named[name])
    run_dir = _make_folder(config, started_at)
    config = replace(config, run_dir=str(run_dir))
    prepared = Prepared(
        config=config,
        plan=plan,
        layout=layout,
        initial=initial,
        n_outputs=dataset.n_outputs,
        classes=dataset.classes,
        digests=digests_of(dataset),
        run_dir=run_dir,
        started_at=started_at,
    )
    try:
        write_json(run_dir / "config.json", _record(prepared))
    except OSError as error:
        raise ConfigError("run_dir", f"cannot write to {run_dir}: {error.strerror}") from error
    return prepared


def discard(run_dir: Path) -> None:
    """Takes back what a run has written that never began to train."""
    for name in WRITTEN:
        if (run_dir / name).is_dir():
            shutil.rmtree(run_dir / name)
        else:
            (run_dir / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else lies there
        run_dir.rmdir()


def digests_of(dataset: Dataset) -> tuple[str, ...]:
    """Digests of the listings, by which hosts find out whether they see the same images."""
    val = () if dataset.val is None else (dataset.val.digest,)
    return (dataset.train.digest, *val)


def _absolute(config: TrainConfig) -> TrainConfig:
    if config.data.data is None:
        return config
    data = os.path.abspath(os.path.expanduser(config.data.data))
    return replace(config, data=replace(config.data, data=data))


def _make_folder(config: TrainConfig, started_at: float) -> Path:
    if config.run_dir is None:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(started_at))
        path = Path("runs") / f"{config.recipe}-{stamp}"
        number = 2
        while path.exists():
            path = Path("runs") / f"{config.recipe}-{stamp}-{number}"
            number += 1
    else:
        path = Path(config.run_dir).expanduser()
    path = path.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("run_dir", f"cannot make {path}: {error.strerror}") from error
    if any((path / name).exists() for name in WRITTEN):
        raise ConfigError("run_dir", f"{path} holds a run already; take another folder")
    return path


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a run inside one process needs no ray
        return None


def _record(prepared: Prepared) -> dict[str, Any]:
    names = ("distbelief", "torch", "ray", "grpcio", "protobuf", "numpy")
    plan = prepared.plan
    return {
        "config": prepared.config.to_dict(),
        "started_at": prepared.started_at,
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "versions": {name: version for name in names if (version := _version(name))},
        "classes": list(prepared.classes),
        "n_outputs": prepared.n_outputs,
        "parameters": prepared.layout.size,
        "layout": prepared.layout.fingerprint,
        "data_digests": list(prepared.digests),
        "plan": {
            "n_examples": plan.n_examples,
            "batch_size": plan.batch_size,
            "n_push": plan.n_push,
            "n_items": plan.n_items,
        },
    }
