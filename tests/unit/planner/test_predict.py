"""The predicted time of a step, against closed forms and torch's own schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed import pipelining
from torch.distributed.pipelining import schedules

from distbelief.planner import predict as module
from distbelief.planner.costs import Flow, Link, StageCost
from distbelief.planner.predict import predict

AT_ONCE = Link(bytes_per_s=float("inf"), latency_s=0.0)


@pytest.mark.parametrize("pipeline", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("n_stages", "micro_batches"), [(1, 1), (1, 5), (2, 2), (2, 8), (4, 16)])
def test_even_stages_take_the_closed_form(pipeline: Any, n_stages: int, micro_batches: int) -> None:
    flow = Flow(micro_batches=micro_batches, pipeline=pipeline, link=AT_ONCE)
    found = predict([StageCost(2.0, 4.0, 0)] * n_stages, flow)
    step_s = (micro_batches + n_stages - 1) * 6.0
    assert found.step_s == step_s
    assert found.busy == (micro_batches * 6.0 / step_s,) * n_stages


def test_without_micro_batches_stages_take_turns() -> None:
    flow = Flow(micro_batches=1, pipeline="gpipe", link=Link(bytes_per_s=10.0, latency_s=0.5))
    stages = [StageCost(1.0, 2.0, 20), StageCost(3.0, 4.0, 30), StageCost(5.0, 6.0, 0)]
    assert predict(stages, flow).step_s == 21.0 + 2 * (0.5 + 2.0) + 2 * (0.5 + 3.0)


@pytest.mark.parametrize("pipeline", ["gpipe", "1f1b"])
def test_the_busiest_stage_is_the_bound(pipeline: Any) -> None:
    flow = Flow(micro_batches=50, pipeline=pipeline, link=AT_ONCE)
    found = predict([StageCost(1.0, 1.0, 0), StageCost(3.0, 3.0, 0)], flow)
    assert found.step_s == 50 * 6.0 + 2.0
    assert found.busy[1] > 0.99


@pytest.mark.parametrize(("pipeline", "step_s"), [("gpipe", 18.0), ("1f1b", 15.0)])
def test_a_message_moves_when_both_sides_are_ready(pipeline: Any, step_s: float) -> None:
    # Passes and messages of one second each. With gpipe the second stage asks for each of four
    # micro-batches when it has computed the one before, and so does the first on the way back:
    # 1 + 4 x 2 + 1 + 4 x 2. With 1f1b what comes and what goes pass each other.
    stages = [StageCost(1.0, 1.0, 1), StageCost(1.0, 1.0, 0)]
    flow = Flow(micro_batches=4, pipeline=pipeline, link=Link(bytes_per_s=1.0, latency_s=0.0))
    assert predict(stages, flow).step_s == step_s


def test_too_few_micro_batches_do_not_hang() -> None:
    flow = Flow(micro_batches=1, link=AT_ONCE)
    assert predict([StageCost(1.0, 1.0, 0)] * 3, flow).step_s == 6.0


class _Recorder:
    """Stands for a stage of torch's, and notes down what a schedule asks of it."""

    def __init__(self, index: int, n_stages: int) -> None:
        self.stage_index, self.num_stages = index, n_stages
        self.is_first, self.is_last = index == 0, index == n_stages - 1
        self.has_backward = True
        self.group = None
        self.log: list[str] = []

    def forward_one_chunk(self, n: int, *_: Any, **__: Any) -> torch.Tensor:
        self.log.append("forward")
        return torch.zeros(())

    def backward_one_chunk(self, n: int, **_: Any) -> None:
        self.log.append("backward")

    def _ops(self, target: int, sends: bool, n: int) -> list[tuple[str, int, int, int]]:
        if not 0 <= target < self.num_stages:
            return []
        pair = (self.stage_index, target) if sends else (target, self.stage_index)
        return [("message", *pair, n)]

    def get_fwd_recv_ops(self, n: int) -> list[Any]:
        return self._ops(self.stage_index - 1, False, n)

    def get_fwd_send_ops(self, n: int) -> list[Any]:
        return self._ops(self.stage_index + 1, True, n)

    def get_bwd_recv_ops(self, n: int) -> list[Any]:
        return self._ops(self.stage_index + 1, False, n)

    def get_bwd_send_ops(self, n: int) -> list[Any]:
        return self._ops(self.stage_index - 1, True, n)

    def perform_reduce_grad(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    ("pipeline", "kind"), [("gpipe", "ScheduleGPipe"), ("1f1b", "Schedule1F1B")]
)
@pytest.mark.parametrize(("n_stages", "micro_batches"), [(2, 2), (2, 5), (3, 3), (3, 8), (4, 6)])
def test_the_programs_are_those_of_torch(
    pipeline: str, kind: str, n_stages: int, micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(n_stages):
        stage = _Recorder(index, n_stages)

        def post(ops: list[Any], desc: str | None = None, stage: _Recorder = stage) -> list[Any]:
            stage.log += [f"post {source} {target} {n}" for _, source, target, n in ops]
            return list(ops)

        def sorted_post(
            ops: list[Any], desc: str | None = None, post: Any = post
        ) -> dict[int, Any]:
            return {0: post(ops)} if ops else {}

        def wait(works: list[Any], stage: _Recorder = stage) -> None:
            stage.log += [f"wait {source} {target} {n}" for _, source, target, n in works]

        monkeypatch.setattr(schedules, "_batch_p2p", post)
        monkeypatch.setattr(schedules, "_sorted_batch_p2p", sorted_post)
        monkeypatch.setattr(schedules, "_wait_batch_p2p", wait)
        schedule: Any = object.__new__(getattr(pipelining, kind))
        schedule.__dict__ |= {
            "_stage": stage,
            "_n_microbatches": micro_batches,
            "_num_stages": n_stages,
            "scale_grads": False,
            "_check_inputs": lambda *a: ([()] * micro_batches, [{}] * micro_batches),
            "_initialize_stage": lambda *a: None,
            "_maybe_compute_loss": lambda *a: None,
            "_maybe_get_loss": lambda *a: None,
            "_update_losses": lambda *a: None,
        }
        schedule._step_microbatches()

        make = module._gpipe if pipeline == "gpipe" else module._one_forward_one_backward
        side = module._Side(index, n_stages, StageCost(1.0, 2.0, 0))
        ours: list[str] = []
        for action in make(side, micro_batches):
            if isinstance(action, module._Compute):
                ours.append("forward" if action.seconds == 1.0 else "backward")
                continue
            if isinstance(action, module._Post):
                messages: tuple[Any, ...] = (action.message,)
            else:
                messages = action.messages
            word = "post" if isinstance(action, module._Post) else "wait"
            ours += [f"{word} {m.source} {m.target} {m.micro_batch}" for m in messages]
        assert _once(ours) == _once(stage.log)


def _once(log: list[str]) -> list[str]:
    """Without waiting again for what has been waited for, which costs no time."""
    waited: set[str] = set()
    found = []
    for line in log:
        if line.startswith("wait"):
            if line in waited:
                continue
            waited.add(line)
        found.append(line)
    return found
