"""Which process of which replica this is, and what it computes of it: all, or a stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from distbelief.config import TrainConfig
from distbelief.layout import Layout
from distbelief.models.blocks import Blocks
from distbelief.models.stages import Stage, StagePlan, Travels
from distbelief.replica.buffers import FlatModel
from distbelief.replica.criterion import Criterion, Loss
from distbelief.replica.group import Alone, Meeting, Stages
from distbelief.replica.step import (
    BufferWatch,
    ImageInput,
    Step,
    StepOf,
    resolve_device,
    resolve_precision,
)
from distbelief.replication import ReplicaConfig


@dataclass(frozen=True, slots=True)
class Seat:
    """Which process of which replica this is.

    Attributes:
        replica: The replica's number, never used twice.
        slot: Its place in ``TrainConfig.slots``, which tells what it is.
        stage: Which of its stages.
        meeting: Where its stages meet; None for a replica of one.
        address: By which the other stages reach this host.
    """

    replica: int
    slot: int
    stage: int = 0
    meeting: Meeting | None = None
    address: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Seated:
    """What one process has of its replica: all of it, or a stage.

    Attributes:
        flat: Its network, bound to its own vectors.
        layout: Of these vectors.
        ranges: Where they lie in the flat vector, in their order.
        step: Computes a batch's gradient.
        group: The replica's stages.
    """

    flat: FlatModel
    layout: Layout
    ranges: Sequence[tuple[int, int]]
    step: StepOf
    group: Alone | Stages


def take_seat(
    config: TrainConfig,
    loss: Loss | None,
    plan: StagePlan | None,
    seat: Seat,
    model: torch.nn.Module,
    layout: Layout,
    stack: ExitStack,
) -> Seated:
    """What this process computes, and the group that it does so in, which ``stack`` ends.

    Args:
        config: The run.
        loss: A user's own.
        plan: The replica's division, or None if it is whole.
        seat: Which process of which replica this is.
        model: The whole network, on the CPU; of a stage, the rest of it is emptied.
        layout: Of its parameters.
        stack: Where the group is entered.

    Raises:
        UsageError: the device or the division cannot be.
        StageLostError: the other stages did not come.
    """
    slot = config.slots[seat.slot]
    device = resolve_device(_device_word(slot, seat))
    images = ImageInput(config.data.normalize, device, config.model.channels_last)
    criterion = Criterion(config.model.aux_weight, loss)
    if plan is None or plan.n_stages == 1:
        flat = FlatModel(model, layout, device)
        step = Step(
            flat.model,
            images,
            criterion,
            device,
            resolve_precision(slot.precision, device),
            BufferWatch(flat.model),
            math.ceil(slot.batch_size / slot.n_micro_batches),
        )
        return Seated(flat, layout, [(0, layout.size)], step, Alone())
    assert seat.meeting is not None
    group = stack.enter_context(
        Stages(
            seat.meeting,
            replica=seat.replica,
            stage=seat.stage,
            n_stages=plan.n_stages,
            address=seat.address,
            timeout_s=_longest_wait_s(config),
        )
    )
    # It brings torch's compiler along: a second, and 150 MB, that whole replicas do without.
    from distbelief.replica.pipeline import PipelineStep

    blocks = Blocks(model)
    travels = Travels.of(blocks, plan, seat.stage)
    kinds = [of_two.dtype for of_two, _ in travels.handed_on]
    stage = Stage(blocks, plan, seat.stage, device, kinds)
    for name, parameter in model.named_parameters():
        if name not in stage.owned:
            parameter.data = parameter.data.new_empty(0)  # another stage's, and its memory
    own = layout.part(stage.owned)
    flat = FlatModel(stage.graph, own, device, stage.owned)
    pipeline = PipelineStep(
        stage, plan, group, travels, images=images, criterion=criterion, device=device
    )
    return Seated(flat, own, layout.ranges(stage.owned), pipeline, group)


def _longest_wait_s(config: TrainConfig) -> float:
    """How long the other stages wait for one, which may be waiting for its shards.

    Twice, where a push is answered without parameters; the last try may be begun at the very end.
    """
    cluster = config.cluster
    return 2 * (cluster.patience_s + cluster.rpc_timeout_s) + 30.0


def _device_word(slot: ReplicaConfig, seat: Seat) -> str:
    """Stages of one process each that share a host's accelerators take them in turn."""
    word = slot.device_of(seat.stage)
    if word in ("auto", "cuda") and slot.stages > 1 and torch.cuda.device_count() > 1:
        return f"cuda:{seat.stage % torch.cuda.device_count()}"
    return word
