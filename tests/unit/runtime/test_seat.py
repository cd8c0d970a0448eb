"""What one process has of its replica."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

from distbelief.config import TrainConfig
from distbelief.errors import ConfigError
from distbelief.layout import Layout
from distbelief.models.stages import StagePlan
from distbelief.replica.group import Alone, Meeting
from distbelief.replica.pipeline import PipelineStep
from distbelief.replica.step import Step
from distbelief.replication import ReplicaConfig
from distbelief.runtime import seat as module
from distbelief.runtime.seat import Seat, Seated, take_seat

MEETING = Meeting("127.0.0.1", 1234)


class FakeStages:
    """Stages that have met."""

    def __init__(self, meeting: Meeting, **options: Any) -> None:
        self.meeting = meeting
        self.options = options
        self.stage, self.n_stages = options["stage"], options["n_stages"]
        self.entered = self.left = False

    def __enter__(self) -> FakeStages:
        self.entered = True
        return self

    def __exit__(self, *of_an_error: object) -> None:
        self.left = True


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 4))


def plan_of(*boundaries: str) -> StagePlan:
    return StagePlan(
        boundaries=boundaries,
        batch_size=8,
        micro_batches=4,
        pipeline="1f1b",
        input_shape=(3, 2, 2),
    )


def part(
    config: TrainConfig, seat: Seat, plan: StagePlan | None, stack: ExitStack
) -> tuple[Seated, Layout]:
    model = network()
    layout = Layout.of(model.named_parameters())
    return take_seat(config, None, plan, seat, model, layout, stack), layout


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize("plan", [None, plan_of()])
def test_a_whole_replica_has_all(plan: StagePlan | None, tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(batch_size=8, micro_batches=3, aux_weight=0.7)
    with ExitStack() as stack:
        found, layout = part(config, Seat(5, 1), plan, stack)
    assert isinstance(found.group, Alone)
    assert found.layout == layout
    assert list(found.ranges) == [(0, layout.size)]
    assert found.flat.parameters.numel() == layout.size
    step = found.step
    assert isinstance(step, Step)
    assert step.model is found.flat.model
    assert (step.micro_batch_size, step.precision) == (3, "fp32")
    assert step.criterion.aux_weight == 0.7
    assert step.watch is not None


@pytest.mark.parametrize(
    ("stage", "ranges"), [(0, [(0, 78)]), (1, [(78, 106)])], ids=["first", "last"]
)
def test_a_stage_has_its_own(
    stage: int,
    ranges: list[tuple[int, int]],
    tiny: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "Stages", FakeStages)
    config = tiny(batch_size=8, stages=2, patience_s=5.0, rpc_timeout_s=60.0)
    seat = Seat(5, 1, stage=stage, meeting=MEETING, address="127.0.0.2")
    with ExitStack() as stack:
        found, _ = part(config, seat, plan_of("3"), stack)
        group: Any = found.group
        assert (group.entered, group.left) == (True, False)
    assert group.left
    assert group.meeting == MEETING
    timeout_s = group.options.pop("timeout_s")
    assert group.options == {"replica": 5, "stage": stage, "n_stages": 2, "address": "127.0.0.2"}
    # Longer than a stage that waits for its shards may take.
    assert timeout_s > config.cluster.patience_s + config.cluster.rpc_timeout_s
    assert isinstance(found.step, PipelineStep)
    assert found.ranges == ranges
    names = [p.name for p in found.layout.parameters]
    assert names == (["1.weight", "1.bias"] if stage == 0 else ["3.weight", "3.bias"])
    size = ranges[0][1] - ranges[0][0]
    assert found.layout.size == found.flat.parameters.numel() == size
    # The values are those of the whole network, in their place.
    whole = torch.cat([p.detach().flatten() for p in network().parameters()])
    begin, end = ranges[0]
    assert torch.equal(found.flat.parameters, whole[begin:end])
    there = dict(found.flat.model.named_parameters())
    assert there.keys() == set(names)
    for p in found.layout.parameters:
        assert there[p.name].data_ptr() == found.flat.parameters.data_ptr() + 4 * p.begin


def test_a_stage_keeps_no_memory_of_what_the_others_have(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Stages", FakeStages)
    model, seat = network(), Seat(5, 0, stage=1, meeting=MEETING)
    layout = Layout.of(model.named_parameters())
    with ExitStack() as stack:
        config = tiny(batch_size=8, stages=2)
        found = take_seat(config, None, plan_of("3"), seat, model, layout, stack)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert sizes == {"1.weight": 0, "1.bias": 0, "3.weight": 24, "3.bias": 4}
    assert found.flat.parameters.numel() == 28


def test_each_replica_is_what_its_slot_says(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(batch_size=8, replica_group=("1x micro_batches=2", "1x micro_batches=8"))
    sizes = []
    for slot in range(2):
        with ExitStack() as stack:
            found, _ = part(config, Seat(9, slot), None, stack)
        assert isinstance(found.step, Step)
        sizes.append(found.step.micro_batch_size)
    assert sizes == [4, 1]


def test_a_device_that_is_not_there_is_told(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(batch_size=8, stages=2, device="cpu+cuda")
    with ExitStack() as stack, pytest.raises(ConfigError) as caught:
        part(config, Seat(5, 0, stage=1, meeting=MEETING), plan_of("3"), stack)
    assert caught.value.field == "device"


@pytest.mark.parametrize(
    ("device", "stages", "n_devices", "expected"),
    [
        ("cuda", 3, 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("auto", 2, 2, ["cuda:0", "cuda:1"]),
        ("cuda", 2, 1, ["cuda", "cuda"]),
        ("auto", 2, 0, ["auto", "auto"]),
        ("cpu", 2, 2, ["cpu", "cpu"]),
        ("cuda:1", 2, 2, ["cuda:1", "cuda:1"]),
        ("cpu+cuda", 2, 2, ["cpu", "cuda:1"]),
        ("cuda", 1, 2, ["cuda"]),
    ],
)
def test_stages_take_a_hosts_accelerators_in_turn(
    device: str,
    stages: int,
    n_devices: int,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_devices)
    slot = ReplicaConfig(device=device, stages=stages)
    found = [module._device_word(slot, Seat(0, 0, stage=stage)) for stage in range(stages)]
    assert found == expected
