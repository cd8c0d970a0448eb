"""The recipes."""

import json

import pytest

from distbelief.config import TrainConfig
from distbelief.errors import UsageError
from distbelief.recipes import RECIPES, recipe


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_bears_its_name_and_survives_json(name: str) -> None:
    config = recipe(name)
    assert config.recipe == name
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_quickstart_needs_nothing() -> None:
    config = recipe("quickstart")
    assert config.data.data is None
    assert config.cluster.address is None
    assert config.replica.device == "auto"


def test_ilsvrc14_is_the_papers() -> None:
    config = recipe("ilsvrc14")
    assert config.init_seed == 0
    assert (config.model.width, config.model.lrn, config.model.heads) == (1.0, True, True)
    assert (config.model.aux_weight, config.optimizer.momentum) == (0.3, 0.9)
    assert (config.data.image_size, config.data.classes) == (224, 1000)
    assert (config.data.photometric, config.data.interpolation) == (True, "random")
    schedule = config.schedule
    assert (schedule.schedule, schedule.step_epochs, schedule.step_factor) == ("step", 8, 0.96)
    assert config.optimizer.bias_rate == 2.0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cifar", "there is no recipe 'cifar'; did you mean cifar10?"),
        ("quickstrat", "there is no recipe 'quickstrat'; did you mean quickstart?"),
        ("xyz", "there is no recipe 'xyz'; there are quickstart, cifar10, ilsvrc14"),
    ],
)
def test_an_unknown_recipe_is_answered_with_the_nearest(name: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe(name)
    assert str(caught.value) == text
