"""Puts together what a plan says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from distbelief.config import TrainConfig
from distbelief.models.stages import HOST, StagePlan
from distbelief.planner.costs import Costs, Link, in_mb, spans
from distbelief.planner.devices import available_memory, here
from distbelief.planner.explain import Explanation, StageReport
from distbelief.planner.predict import predict
from distbelief.planner.profile import Profile
from distbelief.replication import ReplicaConfig


def explained(
    model: nn.Module,
    config: TrainConfig,
    slot: ReplicaConfig,
    plan: StagePlan,
    costs: Costs,
    cuts: Sequence[int],
    threads: int,
    profiles: Mapping[torch.device, Profile],
) -> Explanation:
    """The explanation of a plan.

    Args:
        model: The network.
        config: The run.
        slot: What the replica is.
        plan: The division.
        costs: What it rests on; without times nothing is predicted.
        cuts: The division by the blocks' positions.
        threads: Of each stage.
        profiles: What was measured, by device; the first has the whole network, if that was.
    """
    explanation = Explanation(
        model=config.model.model,
        batch_size=plan.batch_size,
        micro_batches=costs.flow.micro_batches,
        micro_batch_size=plan.micro_batch_size,
        pipeline=costs.flow.pipeline,
        precision=plan.precision,
        threads=threads,
        chosen_by="hand" if slot.boundaries is not None else slot.divide_by,
        stages=_stages(costs, cuts),
        one_process_memory_bytes=costs.memory_of_one(
            next(iter(profiles), here(costs.devices[0].name)) == HOST
        ),
        notes=tuple(_notes(slot, costs, profiles)),
    )
    if profiles:
        stages, flow = costs.stages(cuts), costs.flow
        at_once = replace(flow, link=Link(bytes_per_s=float("inf"), latency_s=0.0))
        whole = next(iter(profiles.values())).whole
        explanation = replace(
            explanation,
            step_seconds=predict(stages, flow).step_s,
            without_communication_seconds=predict(stages, at_once).step_s,
            busiest_seconds=flow.micro_batches * max(stage.total_s for stage in stages),
            one_process_seconds=None if whole is None else whole.total_s,
        )
    return replace(explanation, warnings=tuple(_warnings(model, costs, explanation)))


def _stages(costs: Costs, cuts: Sequence[int]) -> tuple[StageReport, ...]:
    stages, measured = costs.stages(cuts), all(device.times for device in costs.devices)
    busy = predict(stages, costs.flow).busy
    total_s = sum(stage.total_s for stage in stages)
    reports = []
    for index, (begin, end) in enumerate(spans(cuts, len(costs.blocks))):
        sent = stages[index].bytes_out + (stages[index - 1].bytes_out if index else 0)
        report = StageReport(
            stage=index,
            first=costs.blocks[begin].name,
            last=costs.blocks[end - 1].name,
            device=costs.devices[index].name,
            parameters=costs.n_parameters(begin, end),
            bytes_sent=costs.flow.micro_batches * sent,
            memory_bytes=costs.memory(index, begin, end),
        )
        if measured:
            report = replace(
                report,
                forward_seconds=stages[index].forward_s,
                backward_seconds=stages[index].backward_s,
                share=stages[index].total_s / total_s if total_s else 0.0,
                busy=busy[index],
            )
        reports.append(report)
    return tuple(reports)


def _notes(
    slot: ReplicaConfig, costs: Costs, profiles: Mapping[torch.device, Profile]
) -> Iterator[str]:
    """What the figures rest on."""
    names = dict.fromkeys(device.name for device in costs.devices)
    if profiles:
        link = costs.flow.link
        yield (
            f"stages are taken to send {link.bytes_per_s / 1e9:g} GB/s, as within a host; a "
            f"network between them may be slower"
        )
        first = next(iter(profiles))
        for name in names:
            if here(name) is None:
                yield f"this host has no {name}: it is taken to be as fast as {first} here"
        if next(iter(profiles.values())).whole is None:
            yield "one process with the whole batch was not measured: no speed-up is told"
    else:
        yield "nothing was measured: times are not told"
    if "cpu" in names and slot.device_memory_gb is None:
        memory = next(device.memory for device in costs.devices if device.name == "cpu")
        if memory is not None:
            yield (
                f"each stage on a cpu may take what this host has free, {in_mb(memory)}; "
                f"--device-memory-gb sets another limit"
            )


def _warnings(model: nn.Module, costs: Costs, explanation: Explanation) -> Iterator[str]:
    speed_up = explanation.speed_up
    if speed_up is not None and speed_up < 1:
        yield (
            f"{len(explanation.stages)} stages would be slower than one process, "
            f"{speed_up:.2f} x its speed: take fewer stages, or a larger batch"
        )
    parts = explanation.micro_batches > 1
    if parts and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        yield (
            f"batch normalisation takes its statistics of each micro-batch of "
            f"{explanation.micro_batch_size}, not of the batch of {explanation.batch_size}: what "
            f"is learned differs from one process's; --micro-batches sets how many there are"
        )
    has = {device.name: device.memory for device in costs.devices if device.memory is not None}
    for name, memory in has.items():
        together = [s.memory_bytes for s in explanation.stages if s.device == name]
        free = available_memory() if name == "cpu" else memory
        if len(together) > 1 and free is not None and sum(together) > free:
            yield (
                f"the {len(together)} stages on {name} take {in_mb(sum(together))} together, more "
                f"than the {in_mb(free)} that one such device has here: give them several"
            )
