"""A user's own objects in place of what the configuration names."""

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from distbelief.config import TrainConfig
from distbelief.models import GoogLeNet
from distbelief.runtime.task import Task


def network(num_classes: int) -> nn.Module:
    return nn.Linear(3, num_classes)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.sum(1) - targets).square().mean()


def test_without_objects_the_configuration_is_built(tiny: Callable[..., TrainConfig]) -> None:
    task = Task()
    assert isinstance(task.build_model(tiny(), 5), GoogLeNet)
    dataset = task.open_data(tiny())
    assert dataset.train.n_examples == 90
    assert dataset.val is not None
    assert dataset.val.n_examples == 20


@pytest.mark.parametrize("model", [network, nn.Linear(3, 5)])
def test_a_model_is_the_same_in_every_process(
    model: Callable[..., nn.Module] | nn.Module, tiny: Callable[..., TrainConfig]
) -> None:
    task = Task(model=model, loss=loss)
    other = pickle.loads(pickle.dumps(task))
    models = [t.build_model(tiny(), 5) for t in (task, task, other)]
    assert models[0].weight.shape == (5, 3)
    assert all(torch.equal(m.weight, models[0].weight) for m in models)
    assert other.loss is loss


def test_the_seed_of_the_initial_values(tiny: Callable[..., TrainConfig]) -> None:
    def weight(**changes: object) -> Tensor:
        found: Tensor = Task(model=network).build_model(tiny(**changes), 5).weight
        return found

    assert torch.equal(weight(seed=3), weight(seed=3))
    assert torch.equal(weight(seed=4, init_seed=3), weight(seed=3))
    assert not torch.equal(weight(seed=4), weight(seed=3))


def test_data_of_ones_own(tiny: Callable[..., TrainConfig]) -> None:
    train = TensorDataset(torch.zeros(12, 3), torch.arange(12) % 4)
    val = TensorDataset(torch.zeros(6, 3), torch.arange(6) % 4)
    both = Task(dataset=(train, val)).open_data(tiny())
    assert both.train.n_examples == 12
    assert both.val is not None
    assert both.val.n_examples == 6
    assert Task(dataset=train).open_data(tiny()).val is None
