"""Whole configurations by name, for a command to start from."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from distbelief.config import (
    AveragingConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from distbelief.errors import UsageError
from distbelief.replication import ClusterConfig, ReplicaConfig


def quickstart() -> TrainConfig:
    """Drawn shapes, a small GoogLeNet, two replicas and two shards: a minute, nothing needed."""
    return TrainConfig(
        recipe="quickstart",
        epochs=12,
        model=ModelConfig(width=0.125, lrn=False, heads=True, init="he"),
        data=DataConfig(image_size=32, normalize="unit"),
        # Asynchrony acts as momentum itself (Mitliagkas et al. 2016), so that less is asked for.
        optimizer=OptimizerConfig(bias_rate=1.0, weight_decay=1e-4, momentum=0.7),
        schedule=ScheduleConfig(lr=0.01, schedule="polynomial", power=1.0, warmup_examples=2000),
        averaging=AveragingConfig(average_decay=0.98),
        # A small network's exchange takes little beside its step: waiting for it costs less than
        # the staleness of going on without.
        replica=ReplicaConfig(batch_size=32, precision="auto", overlap=False),
        cluster=ClusterConfig(replicas=2, shards=2),
    )


def cifar10() -> TrainConfig:
    """CIFAR-10 with the nine modules at a quarter of their width."""
    return TrainConfig(
        recipe="cifar10",
        epochs=8,
        model=ModelConfig(width=0.25, lrn=False, heads=False, init="he"),
        data=DataConfig(image_size=32, normalize="unit"),
        # At this rate and momentum two replicas learn what one does only if the parameters that
        # they are given make up for their staleness and no single gradient throws them off.
        optimizer=OptimizerConfig(
            bias_rate=1.0, weight_decay=2e-4, predict_weights=True, clip_norm=1.0
        ),
        schedule=ScheduleConfig(lr=0.02),
        averaging=AveragingConfig(average="exponential", average_decay=0.998),
        replica=ReplicaConfig(batch_size=64, precision="auto", overlap=False),
        cluster=ClusterConfig(replicas=2, shards=2),
    )


def ilsvrc14() -> TrainConfig:
    """GoogLeNet on ImageNet as in the paper; Caffe's rate, batch size and initial values."""
    return TrainConfig(
        recipe="ilsvrc14",
        epochs=250,
        # The paper's seven models began with the same weights: --seed changes the rest alone.
        init_seed=0,
        model=ModelConfig(),
        data=DataConfig(
            image_size=224,
            classes=1000,
            normalize="caffe",
            photometric=True,
            interpolation="random",
        ),
        optimizer=OptimizerConfig(weight_decay=2e-4, bias_rate=2.0),
        schedule=ScheduleConfig(lr=0.01, schedule="step", step_epochs=8, step_factor=0.96),
        averaging=AveragingConfig(average="exponential", average_decay=0.9999),
        replica=ReplicaConfig(batch_size=32),
        cluster=ClusterConfig(replicas=2, shards=2),
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "quickstart": quickstart,
    "cifar10": cifar10,
    "ilsvrc14": ilsvrc14,
}


NEED_DATA = ("cifar10", "ilsvrc14")
"""Recipes that are meaningless on drawn shapes."""


def recipe(name: str) -> TrainConfig:
    """The configuration of that name.

    Raises:
        UsageError: there is none; the nearest name is offered.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(RECIPES)}"
        raise UsageError(f"there is no recipe {name!r}; {hint}")
    return RECIPES[name]()
