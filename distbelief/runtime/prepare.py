"""From a configuration to all that is settled before anything starts."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, field, replace

import torch

from distbelief.config import TrainConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.coordinator.snapshots import Manifest, abandoned_snapshots
from distbelief.data.dataset import Dataset
from distbelief.errors import ConfigError
from distbelief.faults.points import Fault
from distbelief.items import ItemPlan
from distbelief.layout import Layout
from distbelief.models.stages import StagePlan
from distbelief.product.frozen import frozen_state, load_frozen
from distbelief.runtime.dividing import divide
from distbelief.runtime.folder import Probe, folder_of, require_free, require_room
from distbelief.runtime.resume import Resumed, resumed_run
from distbelief.runtime.runs import Resume
from distbelief.runtime.snapshots import numbers
from distbelief.runtime.task import Task
from distbelief.runtime.transfer import take_weights
from distbelief.server.restore import Restore
from distbelief.server.spec import ShardSpec
from distbelief.storage import Storage
from distbelief.transport.security import Tls


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that can start.

    Attributes:
        config: With absolute paths.
        task: The user's own objects, if there are any.
        plan: How the examples are divided.
        layout: Of the model's parameters.
        initial: ``(layout.size,) float32``, the initial values.
        n_outputs: Outputs of the network.
        classes: Class names in index order.
        digests: Of the listings of the training and validation images.
        storage: The run's folder, which exists.
        started_at: Start of the run, in seconds since the epoch; for a run that is resumed, as much
            before now as it had lasted.
        probe: What every process must see in the folder.
        incarnation: Of the shards when they start.
        first_replica: Number of the first replica.
        before: The run as it was left, if it is resumed.
        notes: What the user should know.
        frozen: What of the initial values no shard holds, if they came from elsewhere.
        stage_plans: How the replicas of each slot are divided, None where they are not.
        n_ports: Parts of pushes that may come to a shard at once.
        faults: Faults to be injected, for tests.
        abandoned: Snapshots of a history that did not survive, this resumption's own included.
    """

    config: TrainConfig
    plan: ItemPlan
    layout: Layout
    initial: torch.Tensor
    n_outputs: int
    classes: tuple[str, ...]
    digests: tuple[str, ...]
    storage: Storage
    started_at: float
    probe: Probe
    task: Task = field(default_factory=Task)
    incarnation: int = 1
    first_replica: int = 0
    before: Resumed | None = None
    notes: tuple[str, ...] = ()
    frozen: bytes | None = None
    stage_plans: tuple[StagePlan | None, ...] = ()
    n_ports: int = 0
    faults: tuple[Fault, ...] = ()
    abandoned: tuple[int, ...] = ()

    @property
    def resumed(self) -> Manifest | None:
        """The snapshot that the run goes on from."""
        return None if self.before is None else self.before.manifest

    @property
    def schedule(self) -> Schedule:
        """The learning rate of each item."""
        return Schedule(self.config.schedule, self.plan)

    def shard_spec(
        self, index: int, *, incarnation: int | None = None, snapshot: Manifest | None = None
    ) -> ShardSpec:
        """What one shard must know.

        Args:
            index: Which shard.
            incarnation: Which start of it; by default that of the run's start.
            snapshot: Where it begins; by default where the run does.
        """
        n_shards = self.config.cluster.shards
        begin, end = self.layout.shard_ranges(n_shards)[index]
        snapshot = snapshot or self.resumed
        restore = (
            None if snapshot is None else Restore(snapshot.number, snapshot.overlapping(begin, end))
        )
        return ShardSpec(
            index=index,
            n_shards=n_shards,
            begin=begin,
            end=end,
            segments=self.layout.segments(begin, end),
            layout=self.layout.fingerprint,
            incarnation=self.incarnation if incarnation is None else incarnation,
            examples_per_item=self.plan.examples_per_item,
            total_examples=self.plan.total_examples,
            n_ports=self.n_ports,
            # A call is to be answered before its caller gives it up.
            parts_wait_s=self.config.cluster.rpc_timeout_s / 2,
            optimizer=self.config.optimizer,
            averaging=self.config.averaging,
            storage=self.storage,
            restore=restore,
            faults=self.faults,
        )

    def twin_spec(self, index: int, incarnation: int) -> ShardSpec:
        """What the twin of a shard must know: it gets its state from that shard."""
        spec = self.shard_spec(index, incarnation=incarnation)
        return replace(spec, restore=None, twin=True)


def plan_of(config: TrainConfig, dataset: Dataset) -> ItemPlan:
    """How the run's examples are divided into items."""
    if config.replica.batch_size > dataset.train.n_examples:
        raise ConfigError(
            "batch_size",
            f"{config.replica.batch_size} is more than the {dataset.train.n_examples} training "
            f"images; take a smaller one",
        )
    plan = ItemPlan.of_run(
        n_examples=dataset.train.n_examples,
        batch_size=config.replica.batch_size,
        n_push=config.replica.n_push,
        epochs=config.epochs,
        max_examples=config.max_examples,
    )
    if plan.n_items == 0:
        raise ConfigError("epochs", f"{config.epochs} of {plan.n_examples} images is not one image")
    return plan


def prepare(
    config: TrainConfig,
    started_at: float | None = None,
    *,
    task: Task | None = None,
    resume: Resume | None = None,
    storage: Storage | None = None,
) -> Prepared:
    """Opens the data, builds the model once, and looks at the run's folder; writes nothing.

    Args:
        config: The run.
        started_at: When it began, in seconds since the epoch; by default now.
        task: The user's own objects.
        resume: The run to go on with, whose configuration ``config`` must agree with.
        storage: The run's folder; by default what the configuration means.

    Raises:
        UsageError: something that the user can mend.
    """
    started_at = time.time() if started_at is None else started_at
    task = task or Task()
    config = _absolute(config)
    Tls.of(config.cluster)  # before anything is opened
    before = None if resume is None else resumed_run(resume, config)
    if storage is None:
        storage = folder_of(config, started_at) if before is None else before.storage
    if before is None:
        require_free(storage)
    if before is not None:  # the values are in the snapshot, wherever they once came from
        config = replace(config, init_from=before.record["config"]["init_from"])
    dataset = task.open_data(config)
    plan = plan_of(config, dataset)
    model = task.build_model(config, dataset.n_outputs)
    notes: tuple[str, ...] = ()
    frozen = None
    if before is not None:
        load_frozen(model, before.storage)
        notes = before.notes
    elif config.init_from is not None:
        notes = (f"initial values: {take_weights(model, config.init_from).sentence()}",)
        frozen = frozen_state(model)
    layout = Layout.of(model.named_parameters(), bias_rate=config.optimizer.bias_rate)
    layout.shard_ranges(config.cluster.shards)
    if before is not None:
        before.check(config, layout.fingerprint, digests_of(dataset), plan)
    require_room(storage, layout.size)
    division = divide(config, model, layout, dataset)
    return Prepared(
        config=replace(config, run_dir=storage.url),
        task=task,
        plan=plan,
        layout=layout,
        initial=_flat(model, layout),
        n_outputs=dataset.n_outputs,
        classes=dataset.classes,
        digests=digests_of(dataset),
        storage=storage,
        started_at=started_at if before is None else started_at - before.elapsed_s,
        probe=Probe(storage, secrets.token_hex(8)),
        incarnation=1 if before is None else before.incarnation,
        first_replica=0 if before is None else before.first_replica,
        before=before,
        notes=(*notes, *division.notes),
        frozen=frozen,
        stage_plans=division.plans,
        n_ports=division.n_ports,
        abandoned=_abandoned(before),
    )


def _abandoned(before: Resumed | None) -> tuple[int, ...]:
    """Settled before the run takes snapshots of its own, which have higher numbers too."""
    if before is None:
        return ()
    later = [n for n in numbers(before.storage) if n > before.manifest.number]
    return (*abandoned_snapshots(before.record), *later)


def _flat(model: torch.nn.Module, layout: Layout) -> torch.Tensor:
    flat = torch.empty(layout.size)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, view in layout.views(flat).items():
            view.copy_(named[name])
    return flat


def digests_of(dataset: Dataset) -> tuple[str, ...]:
    """Digests of the listings, by which hosts find out whether they see the same images."""
    val = () if dataset.val is None else (dataset.val.digest,)
    return (dataset.train.digest, *val)


def _absolute(config: TrainConfig) -> TrainConfig:
    if config.cluster.tls is not None:
        tls = os.path.abspath(os.path.expanduser(config.cluster.tls))
        config = replace(config, cluster=replace(config.cluster, tls=tls))
    if config.data.data is None or "://" in config.data.data:
        return config
    data = os.path.abspath(os.path.expanduser(config.data.data))
    return replace(config, data=replace(config.data, data=data))
