"""From a network and what a replica is to be, to its stages and what they are expected to do."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from distbelief.config import TrainConfig
from distbelief.errors import ConfigError
from distbelief.models.blocks import Blocks
from distbelief.models.stages import HOST, StagePlan
from distbelief.planner.costs import Costs, Cuts, Flow, Link
from distbelief.planner.devices import devices_of, here
from distbelief.planner.divide import divide, refuse_too_large
from distbelief.planner.example import Example
from distbelief.planner.explain import Explanation
from distbelief.planner.faithful import require_faithful
from distbelief.planner.profile import Profile, apart, profile
from distbelief.planner.reports import explained
from distbelief.planner.sizes import sizes
from distbelief.replication import ReplicaConfig

HERE = (None, "local", "inprocess")
"""Addresses that mean this host; a cluster's hosts may have another memory."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A division, and what is to be said of it."""

    plan: StagePlan
    explanation: Explanation


def plan_stages(
    model: nn.Module,
    config: TrainConfig,
    slot: ReplicaConfig,
    *,
    input_shape: tuple[int, ...],
    input_dtype: str = "float32",
    precision: Literal["fp32", "bf16"] = "fp32",
    threads: int = 1,
    measure: bool = True,
    compare: bool = True,
    link: Link | None = None,
) -> Planned:
    """Divides a replica's layers into stages; boundaries by hand are taken as they are.

    Blocks for some passes through the network while it measures. The network is left as it was.

    Args:
        model: The network, on the host.
        config: The run that it is for.
        slot: What the replica is to be; ``slot.stages`` is 2 or more.
        input_shape: Of one example, as the network takes it.
        input_dtype: Its type, a name of torch.
        precision: Arithmetic.
        threads: That torch has in this process, and that each stage will have.
        measure: Whether to measure what the blocks take. Without it a division by time has to be
            given by hand, and nothing is predicted.
        compare: Whether to measure one process with the whole batch beside them, which takes
            several steps of it.
        link: What connects the stages; by default what gloo does within a host.

    Raises:
        ConfigError: the network cannot be divided like that, or a stage does not fit its device.
    """
    by_hand = None if slot.boundaries is None else tuple(slot.boundaries.split(","))
    if by_hand is None and slot.divide_by == "time" and not measure:
        raise ConfigError("boundaries", "must be given where the network is not measured")
    plan = StagePlan(
        boundaries=by_hand or ("",) * (slot.stages - 1),  # as many as there will be
        batch_size=slot.batch_size,
        micro_batches=slot.n_micro_batches,
        pipeline=slot.pipeline,
        input_shape=input_shape,
        input_dtype=input_dtype,
        precision=precision,
        channels_last=config.model.channels_last,
    )
    require_faithful(model, Example.of(plan, 2))
    example = Example.of(plan, plan.micro_batch_size)
    cuts: Cuts = ()
    with apart(model, HOST) as own:
        blocks = Blocks(own)
        if by_hand is not None:
            plan.check(blocks)
            cuts = tuple(begin for begin, _ in plan.cuts(blocks)[1:])
        weighed = sizes(blocks, example)
    micro_batches = len(plan.parts_of(plan.batch_size))
    costs = Costs(
        blocks=weighed,
        devices=devices_of(slot, elsewhere=config.cluster.address not in HERE),
        flow=Flow(
            micro_batches=micro_batches,
            pipeline="1f1b" if plan.in_turn(micro_batches) else "gpipe",
            link=link or Link(),
        ),
        batch=math.prod((plan.batch_size, *input_shape)) * getattr(torch, input_dtype).itemsize,
    )
    limit = "stages" if slot.device_memory_gb is None else "device_memory_gb"
    if by_hand is not None:
        refuse_too_large(costs, cuts, limit)
    profiles: dict[torch.device, Profile] = {}
    if measure:
        whole = Example.of(plan, plan.batch_size) if compare else None
        profiles = _profiles(model, costs, example, whole)
        costs = _timed(costs, profiles)
    if by_hand is None:
        cuts = divide(costs, slot.divide_by, limit)
        plan = replace(plan, boundaries=tuple(weighed[begin].name for begin in cuts))
    return Planned(plan, explained(model, config, slot, plan, costs, cuts, threads, profiles))


def _profiles(
    model: nn.Module, costs: Costs, example: Example, whole: Example | None
) -> dict[torch.device, Profile]:
    """What was measured on each of the devices that are here, the fastest kind first.

    One process is measured on the first alone, and only if it has the room.
    """
    found = [here(device.name) for device in costs.devices]
    devices = sorted({d for d in found if d is not None} or {HOST}, key=lambda d: d.type == "cpu")
    memory = next((d.memory for d in costs.devices if here(d.name) == devices[0]), None)
    fits = memory is None or costs.memory_of_one(devices[0] == HOST) <= memory
    return {
        device: profile(
            model, example, device, whole=whole if fits and device == devices[0] else None
        )
        for device in devices
    }


def _timed(costs: Costs, profiles: dict[torch.device, Profile]) -> Costs:
    """With the times of each device; those that are not here are taken to be like the first."""
    first = next(iter(profiles.values()))
    devices = []
    for device in costs.devices:
        at = here(device.name)
        times = (profiles[at] if at is not None else first).blocks
        devices.append(replace(device, times=times))
    return replace(costs, devices=tuple(devices))
