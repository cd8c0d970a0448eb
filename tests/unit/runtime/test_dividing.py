"""How a run's replicas are divided before any of them starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from distbelief.config import TrainConfig
from distbelief.data.dataset import Dataset, open_data
from distbelief.errors import ConfigError
from distbelief.layout import Layout
from distbelief.runtime import dividing as module
from distbelief.runtime.dividing import Division, _threads_set, divide, example_input
from distbelief.runtime.task import Task


def divided(config: TrainConfig) -> Division:
    dataset, model = parts(config)
    return divide(config, model, Layout.of(model.named_parameters()), dataset)


def parts(config: TrainConfig) -> tuple[Dataset, nn.Module]:
    dataset = open_data(config.data, config.seed)
    return dataset, Task().build_model(config, dataset.n_outputs)


def test_replicas_that_are_whole_need_no_division(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_blocks(model: nn.Module) -> None:
        raise AssertionError("the network was looked into")

    monkeypatch.setattr(module, "Blocks", no_blocks)
    assert divided(tiny(replicas=3)) == Division(plans=(None, None, None), n_ports=3)


def test_given_boundaries_are_taken_and_told(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(
        replicas=2, stages=3, boundaries="inception4a,inception5a", micro_batches=4, batch_size=8
    )
    found = divided(config)
    first, second = found.plans
    assert first is not None
    assert first == second
    assert first.boundaries == ("inception4a", "inception5a")
    assert (first.batch_size, first.micro_batches, first.pipeline) == (8, 4, "1f1b")
    assert (first.input_shape, first.input_dtype) == ((3, 16, 16), "float32")
    assert (first.precision, first.channels_last) == ("fp32", True)
    assert found.n_ports == 6
    assert found.notes[0] == "3 stages, divided before inception4a, inception5a (given)"
    assert len(found.notes) == len(set(found.notes))


def test_like_slots_are_divided_once(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    plan_stages = module.plan_stages

    def noted(*args: Any, **options: Any) -> Any:
        asked.append(options)
        return plan_stages(*args, **options)

    monkeypatch.setattr(module, "plan_stages", noted)
    groups = (
        "2x stages=2,boundaries=inception4a,threads=2",
        "1x",
        "1x stages=2,boundaries=inception4b",
        "1x stages=2,boundaries=inception4a,threads=2",
    )
    found = divided(tiny(replica_group=groups, threads=None))
    assert [plan and plan.boundaries for plan in found.plans] == [
        ("inception4a",),
        ("inception4a",),
        None,
        ("inception4b",),
        ("inception4a",),
    ]
    assert [options["threads"] for options in asked] == [2, 1]
    assert not any(options["measure"] or options["compare"] for options in asked)
    assert found.n_ports == 2 + 2 + 1 + 2 + 2
    assert [note for note in found.notes if "given" in note] == [
        "2 stages, divided before inception4a (given)",
        "2 stages, divided before inception4b (given)",
    ]


def test_without_boundaries_blocks_are_measured(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    plan_stages = module.plan_stages

    def noted(model: Any, config: Any, slot: Any, **options: Any) -> Any:
        asked.append({**options, "threads here": torch.get_num_threads()})
        assert slot.boundaries is None
        slot = module.ReplicaConfig(stages=2, batch_size=8, boundaries="inception4a")
        return plan_stages(model, config, slot, **{**options, "measure": False})

    monkeypatch.setattr(module, "plan_stages", noted)
    before = torch.get_num_threads()
    found = divided(tiny(replicas=1, stages=2, threads=1))
    assert torch.get_num_threads() == before
    ((options),) = asked
    assert (options["measure"], options["compare"]) == (True, False)
    assert options["threads"] == options["threads here"] == 1
    assert found.notes[0] == (
        "2 stages, divided before inception4a (chosen; distbelief plan stages explains)"
    )


@pytest.mark.parametrize(
    ("boundaries", "problem"),
    [
        ("inception9", "the network has no block 'inception9'; did you mean"),
        ("stem.conv1", "stem.conv1: each must come behind the one before"),
        ("classifier.fc,classifier", "classifier.fc,classifier: each must come behind"),
        ("pool4,inception5a", "stage 1 (pool4 to pool4) has nothing to train"),
    ],
)
def test_a_division_that_cannot_be_is_refused(
    boundaries: str, problem: str, tiny: Callable[..., TrainConfig]
) -> None:
    stages = 2 + boundaries.count(",")
    with pytest.raises(ConfigError) as caught:
        divided(tiny(replicas=1, stages=stages, boundaries=boundaries))
    assert caught.value.field == "boundaries"
    assert caught.value.problem.startswith(problem)


def test_parts_of_a_stage_are_counted_where_it_has_several_ranges(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters need not be registered in the order in which they are used."""

    class Interleaved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c, self.b, self.d = (nn.Linear(4, 4) for _ in range(4))
            self.flat, self.begin, self.out = nn.Flatten(), nn.Linear(768, 4), nn.Linear(4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.b(self.a(self.begin(self.flat(x))))
            found: torch.Tensor = self.out(self.d(self.c(x)))
            return found

    config = tiny(replicas=1, stages=2, boundaries="c")
    dataset, _ = parts(config)
    model = Interleaved()
    layout = Layout.of(model.named_parameters())
    found = divide(config, model, layout, dataset)
    # The first has a, b and begin, which are not neighbours; the second c, d and out.
    assert found.n_ports == 3 + 3


def test_an_example_is_what_the_network_takes(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(image_size=20)
    found = example_input(config, open_data(config.data, config.seed))
    assert (found.shape, found.dtype) == ((1, 3, 20, 20), torch.float32)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_threads_are_set_for_a_time() -> None:
    before = torch.get_num_threads()
    with _threads_set(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(ConfigError), _threads_set(before + 1):
        raise ConfigError("stages", "a network that cannot be divided")
    assert torch.get_num_threads() == before
