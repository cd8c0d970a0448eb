"""What a run trains: what its configuration names, or a user's own objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from distbelief.config import TrainConfig
from distbelief.data.dataset import Dataset, dataset_of, open_data
from distbelief.models.registry import build
from distbelief.replica.criterion import Loss


@dataclass(frozen=True, kw_only=True)
class Task:
    """A user's own objects, in place of what the configuration names; all must pickle for Ray.

    Attributes:
        model: A factory, or a module whose values are the initial ones.
        dataset: A data set to train on, or a pair of one to train on and one to evaluate on.
        loss: What is minimised; by default the cross entropy of classes.
    """

    model: Callable[..., nn.Module] | nn.Module | None = None
    dataset: Any = None
    loss: Loss | None = None

    def open_data(self, config: TrainConfig) -> Dataset:
        """The data; see :func:`~distbelief.data.dataset.open_data`."""
        if self.dataset is None:
            return open_data(config.data, config.seed)
        train, val = self.dataset if isinstance(self.dataset, tuple) else (self.dataset, None)
        return dataset_of(train, val, config.data.classes)

    def build_model(self, config: TrainConfig, n_outputs: int) -> nn.Module:
        """The network with the values that it is built with, the same in every process.

        Raises:
            ConfigError: it cannot be built.
        """
        seed = config.seed if config.init_seed is None else config.init_seed
        size = config.data.image_size
        return build(config.model, classes=n_outputs, image_size=size, seed=seed, given=self.model)
