"""How a run's replicas are divided into stages, settled before any of them starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from distbelief.config import TrainConfig
from distbelief.data.dataset import Dataset
from distbelief.data.loader import Batch, BatchLoader, BatchRequest
from distbelief.data.transforms import TrainTransform
from distbelief.errors import ConfigError, DistBeliefError, as_distbelief_error
from distbelief.layout import Layout
from distbelief.models.blocks import Blocks
from distbelief.models.stages import StagePlan
from distbelief.planner import Planned, plan_stages
from distbelief.replica.step import ImageInput, resolve_device, resolve_precision
from distbelief.replication import ReplicaConfig


@dataclass(frozen=True, kw_only=True)
class Division:
    """The stages of all replicas.

    Attributes:
        plans: By slot; None where a replica is whole.
        n_ports: Parts of pushes that may come to a shard at once, from all replicas together.
        notes: What the user should know.
    """

    plans: tuple[StagePlan | None, ...]
    n_ports: int
    notes: tuple[str, ...] = ()


def divide(config: TrainConfig, model: nn.Module, layout: Layout, dataset: Dataset) -> Division:
    """Divides the replicas of each slot; like slots are divided alike.

    Raises:
        ConfigError: the network cannot be divided, or a stage does not fit its device.
    """
    if config.cluster.address == "inprocess":
        for word in {slot.device_of(k) for slot in config.slots for k in range(slot.stages)}:
            resolve_device(word)  # rather now than in each replica
    if all(slot.stages == 1 for slot in config.slots):
        return Division(plans=(None,) * len(config.slots), n_ports=len(config.slots))
    blocks = Blocks(model)
    example = example_input(config, dataset)
    known: dict[ReplicaConfig, StagePlan | None] = {}
    notes: dict[str, None] = {}
    for slot in config.slots:
        if slot in known:
            continue
        if slot.stages == 1:
            known[slot] = None
            continue
        found = planned(config, slot, model, example, threads=slot.threads or 1)
        known[slot] = found.plan
        chosen = "given" if slot.boundaries else "chosen; distbelief plan stages explains"
        notes[
            f"{slot.stages} stages, divided before {', '.join(found.plan.boundaries)} ({chosen})"
        ] = None
        notes |= dict.fromkeys(found.explanation.warnings)
    plans = tuple(known[slot] for slot in config.slots)
    return Division(
        plans=plans,
        n_ports=sum(_n_ports(blocks, plan, layout) for plan in plans),
        notes=tuple(notes),
    )


def example_input(config: TrainConfig, dataset: Dataset) -> torch.Tensor:
    """One example as the network takes it, ``(1, ...)`` on the CPU."""
    batch = first_batch(config, dataset, 1)
    to_input = ImageInput(config.data.normalize, torch.device("cpu"), config.model.channels_last)
    return to_input(batch.images)


def first_batch(config: TrainConfig, dataset: Dataset, n: int) -> Batch:
    """The run's first ``n`` examples."""
    first = dataset.train.epoch_order(config.seed, 0)[:n]
    with BatchLoader(dataset.train, TrainTransform.of(config.data), config.seed, 0) as loader:
        return loader.submit(BatchRequest(0, first)).result()


def planned(
    config: TrainConfig,
    slot: ReplicaConfig,
    model: nn.Module,
    example: torch.Tensor,
    *,
    threads: int,
    compare: bool = False,
) -> Planned:
    """A replica's division; blocks are measured unless its boundaries are given.

    Args:
        config: The run.
        slot: What the replica is to be.
        model: The network, which is left as it was.
        example: One example as the network takes it, ``(1, ...)``.
        threads: Threads of each stage.
        compare: Whether to measure one process too, and to predict with boundaries that are given.

    Raises:
        ConfigError: the network cannot be divided like that, or a stage does not fit its device.
    """
    try:
        with _threads_set(threads):
            return plan_stages(
                model,
                config,
                slot,
                input_shape=tuple(example.shape[1:]),
                input_dtype=str(example.dtype).removeprefix("torch."),
                precision=resolve_precision(slot.precision, _first_device(slot)),
                threads=threads,
                measure=compare or slot.boundaries is None,
                compare=compare,
            )
    except DistBeliefError:
        raise
    except Exception as error:  # of the network's own code, with the place where it stands
        raise as_distbelief_error(error) from error


@contextmanager
def _threads_set(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _first_device(slot: ReplicaConfig) -> torch.device:
    """Of the first stage, or this host's processor if there is none such here."""
    try:
        return resolve_device(slot.device_of(0))
    except ConfigError:
        return torch.device("cpu")


def _n_ports(blocks: Blocks, plan: StagePlan | None, layout: Layout) -> int:
    if plan is None:
        return 1
    owned = (blocks.parameters(begin, end) for begin, end in plan.cuts(blocks))
    return sum(len(layout.ranges(names)) for names in owned)
