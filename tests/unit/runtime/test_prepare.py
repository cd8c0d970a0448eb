"""What is settled before a run begins."""

import pytest

from distbelief.config import DataConfig, ReplicaConfig, TrainConfig
from distbelief.data.dataset import open_data
from distbelief.errors import ConfigError
from distbelief.items import ItemPlan
from distbelief.runtime.prepare import plan_of

DATA = open_data(DataConfig(image_size=16, drawn_train=100, drawn_val=10), 0)


def config(batch_size: int = 10, epochs: float = 1.0, **changes: int) -> TrainConfig:
    return TrainConfig(replica=ReplicaConfig(batch_size=batch_size), epochs=epochs, **changes)


def test_the_plan_is_the_configurations() -> None:
    assert plan_of(config(32, 1.5, max_examples=120), DATA) == ItemPlan(
        n_examples=100, batch_size=32, n_push=1, n_items=5
    )


@pytest.mark.parametrize("max_examples", [None, 50])
def test_a_run_of_no_items_is_refused(max_examples: int | None) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(config(epochs=0.004, max_examples=max_examples), DATA)
    assert caught.value.field == "epochs"
    assert str(caught.value) == "--epochs: 0.004 of 100 images is not one image"


def test_a_run_of_one_image_is_a_run() -> None:
    assert plan_of(config(epochs=0.01), DATA).n_items == 1


def test_a_batch_of_more_than_all_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="101 is more than the 100 training images") as caught:
        plan_of(config(101), DATA)
    assert caught.value.field == "batch_size"
