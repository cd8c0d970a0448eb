"""From a network to its stages and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distbelief.config import TrainConfig
from distbelief.errors import ConfigError
from distbelief.planner import Explanation, Measured, Planned, plan_stages, planning
from distbelief.planner import devices as devices_module
from distbelief.planner import reports as reports_module
from distbelief.planner.costs import BlockTime
from distbelief.planner.devices import available_memory, devices_of, here
from distbelief.planner.profile import Profile
from distbelief.replication import ReplicaConfig

FREE = 10**9


@pytest.fixture(autouse=True)
def free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices_module, "available_memory", lambda: FREE)
    monkeypatch.setattr(reports_module, "available_memory", lambda: FREE)


def network(n: int = 4, *, width: int = 8) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(n)))


def plan(model: nn.Module | None = None, **options: Any) -> Planned:
    own = ("measure", "compare", "precision", "link", "input_dtype")
    apart = {name: options.pop(name) for name in own if name in options}
    slot = ReplicaConfig(**{"batch_size": 8, "stages": 2, "device": "cpu", **options})
    return plan_stages(model or network(), TrainConfig(), slot, input_shape=(8,), **apart)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Blocks take a second forwards and three backwards, a whole batch 20 and 44; who is asked."""
    asked: list[tuple[Any, ...]] = []

    def profiled(model: nn.Module, example: Any, device: torch.device, *, whole: Any) -> Profile:
        asked.append((example.shape, device, whole and whole.shape))
        blocks = (BlockTime(1.0, 3.0),) * len(list(model.children()))
        return Profile(blocks, None if whole is None else BlockTime(20.0, 44.0))

    monkeypatch.setattr(planning, "profile", profiled)
    return asked


def test_a_plan_from_a_real_profile() -> None:
    planned = plan()
    assert planned.plan.n_stages == 2
    assert planned.plan.boundaries == planned.explanation.boundaries
    assert (planned.plan.batch_size, planned.plan.micro_batches) == (8, 8)
    assert (planned.plan.input_shape, planned.plan.input_dtype) == ((8,), "float32")
    explanation = planned.explanation
    for value in (explanation.step_seconds, explanation.one_process_seconds, explanation.speed_up):
        assert value is not None
        assert value > 0
    busiest, bare = explanation.busiest_seconds, explanation.without_communication_seconds
    assert busiest is not None
    assert bare is not None
    assert busiest < bare < explanation.step_seconds  # type: ignore[operator]


def test_the_figures(times: list[tuple[Any, ...]]) -> None:
    explanation = plan(micro_batches=4).explanation
    assert times == [((2, 8), torch.device("cpu"), (8, 8))]
    assert explanation.boundaries == ("2",)
    first, second = explanation.stages
    assert (first.first, first.last, first.device) == ("0", "1", "cpu")
    assert (second.first, second.last, second.stage) == ("2", "3", 1)
    assert (first.forward_seconds, first.backward_seconds, first.share) == (2.0, 6.0, 0.5)
    assert first.parameters == second.parameters == 2 * (64 + 8)
    # Activations of two examples, forwards by one and backwards by the other, four times.
    assert first.bytes_sent == second.bytes_sent == 4 * (2 * 8 * 4)
    assert explanation.without_communication_seconds == (4 + 1) * 8.0
    assert explanation.busiest_seconds == 4 * 8.0
    assert explanation.step_seconds is not None
    assert 40.0 < explanation.step_seconds < 40.01
    assert explanation.one_process_seconds == 64.0
    assert explanation.speed_up_at_best == 2.0
    assert explanation.images_per_second == 8 / explanation.step_seconds
    assert first.busy == 32.0 / explanation.step_seconds
    assert explanation.warnings == ()


def test_micro_batches_differ_by_one_example_at_most(times: list[tuple[Any, ...]]) -> None:
    explanation = plan(micro_batches=3).explanation  # of 8 examples: 3, 3, 2
    assert (explanation.micro_batches, explanation.micro_batch_size) == (3, 3)


def test_boundaries_by_hand_are_taken() -> None:
    planned = plan(boundaries="3", measure=False)
    assert planned.plan.boundaries == ("3",)
    explanation = planned.explanation
    assert explanation.chosen_by == "hand"
    assert explanation.step_seconds is explanation.speed_up is explanation.speed_up_at_best is None
    assert explanation.stages[0].forward_seconds is explanation.stages[0].busy is None
    assert explanation.stages[0].parameters == 3 * 72
    text = explanation.text()
    assert "predicted" not in text
    assert "forward" not in text
    assert "note: nothing was measured" in text


@pytest.mark.parametrize(
    ("boundaries", "problem"),
    [
        ("nowhere", "no block 'nowhere'"),
        ("0", "none is the first block"),
    ],
)
def test_boundaries_that_cannot_be(boundaries: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        plan(boundaries=boundaries, measure=False)


def test_a_stage_that_trains_nothing_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Tanh())
    with pytest.raises(ConfigError, match=r"stage 1 \(1 to 2\) has nothing to train"):
        plan(model, boundaries="1", measure=False)


def test_what_is_not_measured_is_not_divided_by_time() -> None:
    with pytest.raises(ConfigError, match="must be given where the network is not measured"):
        plan(measure=False)


def test_by_memory_nothing_need_be_measured() -> None:
    planned = plan(divide_by="memory", measure=False)
    assert planned.plan.boundaries == ("2",)
    assert planned.explanation.chosen_by == "memory"


def test_a_network_that_cannot_be_divided() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) if x.sum() > 0 else self.a(-x)

    with pytest.raises(ConfigError, match="Odd cannot be divided") as caught:
        plan(Odd())
    assert caught.value.field == "stages"


@pytest.mark.parametrize("by_hand", [None, "2"])
def test_a_stage_that_does_not_fit(by_hand: str | None, times: list[tuple[Any, ...]]) -> None:
    with pytest.raises(ConfigError, match=r"needs 0.0\d+ MB, and cpu has 0.002 MB") as caught:
        plan(device_memory_gb=2e-6, boundaries=by_hand)
    assert caught.value.field == "device_memory_gb"


def test_the_hosts_free_memory_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices_module, "available_memory", lambda: 2000)
    with pytest.raises(ConfigError, match=r"and cpu has 0.002 MB") as caught:
        plan(divide_by="memory", measure=False)
    assert caught.value.field == "stages"


def test_one_process_that_has_no_room_is_not_measured(times: list[tuple[Any, ...]]) -> None:
    needed = plan().explanation.one_process_memory_bytes
    explanation = plan(device_memory_gb=(needed - 1) / 1e9).explanation
    assert explanation.one_process_seconds is explanation.speed_up is None
    assert any("one process with the whole batch was not" in note for note in explanation.notes)
    assert [whole for _, _, whole in times] == [(8, 8), None]


def test_devices_that_are_not_here_are_said(
    times: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    explanation = plan(device="cuda+cpu").explanation
    assert [stage.device for stage in explanation.stages] == ["cuda", "cpu"]
    assert any("this host has no cuda" in note for note in explanation.notes)
    assert len(times) == 1


def test_stages_that_would_be_slower_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, times: list[tuple[Any, ...]]
) -> None:
    slow = Profile((BlockTime(10.0, 30.0),) * 4, BlockTime(20.0, 44.0))
    monkeypatch.setattr(planning, "profile", lambda *a, **k: slow)
    explanation = plan().explanation
    assert explanation.speed_up is not None
    assert explanation.speed_up < 1
    assert any("slower than one process" in warning for warning in explanation.warnings)
    assert "WARNING: 2 stages would be slower than one process" in explanation.text()


def test_batch_normalisation_is_warned_of(times: list[tuple[Any, ...]]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
    explanation = plan(model, micro_batches=4).explanation
    assert any("micro-batch of 2, not of the batch of 8" in w for w in explanation.warnings)
    one = plan(model, micro_batches=1, pipeline="gpipe").explanation
    assert not any("normalisation" in warning for warning in one.warnings)


def test_memory_that_stages_share_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    need = sum(stage.memory_bytes for stage in plan(boundaries="2").explanation.stages)
    monkeypatch.setattr(devices_module, "available_memory", lambda: need - 1)
    monkeypatch.setattr(reports_module, "available_memory", lambda: need - 1)
    found = plan(boundaries="2", measure=False).explanation.warnings
    assert any("give them several" in warning for warning in found)


def test_the_text(times: list[tuple[Any, ...]]) -> None:
    measured = Measured(
        step_seconds=50.0,
        one_process_seconds=75.0,
        memory_bytes=(3 * 10**6, 30 * 10**6),
        one_process_memory_bytes=1234 * 10**6,
    )
    lines = plan(micro_batches=4).explanation.text(measured).splitlines()
    assert lines[0] == (
        "2 stages of googlenet: batch 8 in 4 micro-batches of 2, 1f1b, fp32, 1 thread each, by time"
    )
    head, first, second = (line.split() for line in lines[2:5])
    assert head == [
        *("stage", "device", "blocks", "share", "busy", "forward", "backward", "sent"),
        *("parameters", "memory"),
    ]
    assert first[:8] == ["0", "cpu", "0", "to", "1", "50%", "80%", "2.00"]
    assert second[:5] == ["1", "cpu", "2", "to", "3"]
    text = "\n".join(lines)
    for part in (
        "boundaries   --boundaries 2",
        "predicted    40.00 s a step, 0.2 images/s, 1.60 x one process",
        "at best      32.00 s a step, 0.2 images/s, 2.00 x one process, if the busiest stage never",
        "one process  64.00 s a step",
        "measured     50.00 s a step, 0.2 images/s, 1.50 x one process; predicted 20.0% too fast",
        "             memory of the stages 3 MB, 30 MB, one process 1,234 MB",
        "note: stages are taken to send 1 GB/s",
        "note: each stage on a cpu may take what this host has free, 1,000 MB",
    ):
        assert part in text


def test_everything_becomes_json(times: list[tuple[Any, ...]]) -> None:
    explanation = plan(micro_batches=4).explanation
    measured = Measured(step_seconds=16.0, one_process_seconds=64.0)
    found = json.loads(json.dumps(explanation.to_dict(measured)))
    assert found["boundaries"] == ["2"]
    assert found["speed_up"] == explanation.speed_up
    assert found["stages"][1]["forward_seconds"] == 2.0
    assert found["measured"]["speed_up"] == 4.0
    assert found["measured"]["images_per_second"] == 0.5
    assert "measured" not in explanation.to_dict()


def test_the_devices_of_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    first, second = devices_of(ReplicaConfig(stages=2, device="cuda:1+auto"))
    assert (first.name, first.is_host, first.memory) == ("cuda:1", False, None)
    assert (second.name, second.is_host, second.memory) == ("cpu", True, FREE)
    limited = devices_of(ReplicaConfig(stages=2, device="cuda", device_memory_gb=0.5))
    assert [device.memory for device in limited] == [5 * 10**8] * 2
    assert here("cuda") is None
    assert here("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert here("cuda:1") == torch.device("cuda", 1)
    assert here("cuda:2") is None


def test_free_memory(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    assert available_memory(file) is None
    file.write_text("MemTotal:  10 kB\n")
    assert available_memory(file) is None
    file.write_text("MemTotal:  10 kB\nMemAvailable:    3 kB\n")
    assert available_memory(file) == 3 * 1024


def test_a_stage_alone_has_one_name() -> None:
    explanation = plan(boundaries="3", measure=False).explanation
    assert isinstance(explanation, Explanation)
    assert explanation.text().splitlines()[4].split()[:3] == ["1", "cpu", "3"]
