"""One replica's whole life, wherever it runs: data, model, buffers, loop."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from distbelief.config import TrainConfig
from distbelief.data.dataset import Dataset
from distbelief.data.loader import BatchLoader
from distbelief.data.transforms import TrainTransform
from distbelief.errors import ConfigError, DataError
from distbelief.faults.points import Fault, Injector
from distbelief.items import ItemPlan
from distbelief.layout import Layout
from distbelief.models.stages import StagePlan
from distbelief.product.frozen import load_frozen
from distbelief.replica.downpour import Downpour
from distbelief.replica.exchange import Exchange, ShardPort, ports_of
from distbelief.replica.feed import Feed
from distbelief.replica.group import Stages
from distbelief.replica.reporter import Progress, Reporter
from distbelief.replica.stagefeed import FollowingFeed, LeadingFeed, Source
from distbelief.runtime.folder import Probe
from distbelief.runtime.prepare import Prepared, digests_of
from distbelief.runtime.seat import Seat, take_seat
from distbelief.runtime.task import Task
from distbelief.services import CoordinatorService
from distbelief.storage import storage_at
from distbelief.types import Weights

BATCHES_AHEAD = 2
"""Batches that each loader process has before it: one at work, one next."""


@dataclass(frozen=True, slots=True)
class Threads:
    """Threads that torch may take: ``fixed``, or a fair part of the host's cores."""

    fixed: int | None
    neighbours: int = 1

    def here(self) -> int:
        """How many that is on this host."""
        return self.fixed or max(1, len(os.sched_getaffinity(0)) // self.neighbours)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a process needs to build the run's model and data as all others do."""

    config: TrainConfig
    task: Task
    plan: ItemPlan
    layout: str
    n_outputs: int
    digests: tuple[str, ...]
    probe: Probe | None = None
    stage_plans: tuple[StagePlan | None, ...] = ()
    """How each slot's replicas are divided; None for those that are not."""
    faults: tuple[Fault, ...] = ()
    """Faults to be injected, for tests."""

    @classmethod
    def of(cls, prepared: Prepared) -> ModelSpec:
        """What a replica or an evaluator of the run must know."""
        return cls(
            config=prepared.config,
            task=prepared.task,
            probe=prepared.probe,
            plan=prepared.plan,
            layout=prepared.layout.fingerprint,
            n_outputs=prepared.n_outputs,
            digests=prepared.digests,
            stage_plans=prepared.stage_plans,
            faults=prepared.faults,
        )

    def open(self) -> tuple[Dataset, torch.nn.Module, Layout]:
        """Opens the data and builds the model.

        Raises:
            UsageError: this host sees other images, or builds another model, than the run's start.
        """
        if self.probe is not None:
            self.probe.check()
        dataset = self.task.open_data(self.config)
        if digests_of(dataset) != self.digests:
            raise DataError(
                self.config.data.source,
                f"host {os.uname().nodename} sees other images there than the host that started "
                f"the run; give a path that is the same on every host",
            )
        model = self.task.build_model(self.config, self.n_outputs)
        if self.config.init_from is not None:
            load_frozen(model, storage_at(str(self.config.run_dir)))
        layout = Layout.of(model.named_parameters(), bias_rate=self.config.optimizer.bias_rate)
        if layout.fingerprint != self.layout:
            raise ConfigError(
                "model",
                f"host {os.uname().nodename} builds another network than the host that started "
                f"the run; install the same versions everywhere",
            )
        return dataset, model, layout


def run_replica(
    spec: ModelSpec,
    seat: Seat,
    ports: Sequence[ShardPort],
    coordinator: CoordinatorService,
    *,
    n_loaders: int,
) -> None:
    """Computes and pushes leased items until the coordinator says that it is over. Blocks.

    Args:
        spec: The run.
        seat: Which replica this is, or which stage of which.
        ports: The shards, in order.
        coordinator: Where leases come from; the first stage alone asks it.
        n_loaders: Loader processes of the first stage; 0 decodes in a thread.
    """
    dataset, model, layout = spec.open()
    injector = Injector(spec.faults, f"replica {seat.replica}")
    with ExitStack() as stack:
        config = spec.config
        plan = spec.stage_plans[seat.slot] if spec.stage_plans else None
        part = take_seat(config, spec.task.loss, plan, seat, model, layout, stack)
        del model  # of which a stage has only its own
        exchange = stack.enter_context(
            Exchange(
                ports_of(ports, part.ranges),
                layout=layout.fingerprint,
                replica=seat.replica,
                patience_s=config.cluster.patience_s,
                weights=Weights.PREDICTED if config.optimizer.predict_weights else Weights.LATEST,
                injector=injector,
            )
        )
        progress = Progress()
        feed: Feed | None = None
        source: Source
        if isinstance(part.group, Stages) and seat.stage > 0:
            source = FollowingFeed(part.group, seat.replica)
        else:
            transform = TrainTransform.of(config.data)
            loader = BatchLoader(dataset.train, transform, config.seed, n_loaders)
            ahead = BATCHES_AHEAD * max(1, n_loaders)
            order = partial(dataset.train.epoch_order, config.seed)
            stack.enter_context(loader)
            feed = Feed(spec.plan, order, loader.submit, batches_ahead=ahead)
            source = LeadingFeed(feed, part.group) if isinstance(part.group, Stages) else feed
        loop = Downpour(
            replica=seat.replica,
            flat=part.flat,
            layout=part.layout,
            step=part.step,
            exchange=exchange,
            feed=source,
            progress=progress,
            config=config.slots[seat.slot],
            seed=config.seed,
            max_norm=config.optimizer.max_norm,
            clip_norm=config.optimizer.clip_norm,
            name_of=dataset.train.name,
            group=part.group,
            injector=injector,
        )
        if feed is None:
            loop.run(None)
            return
        with Reporter(
            coordinator,
            feed,
            progress,
            seat.replica,
            n_stages=part.group.n_stages,
            injector=injector,
        ) as reporter:
            loop.run(reporter)
