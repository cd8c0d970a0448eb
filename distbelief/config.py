"""The frozen dataclasses of a run: checked once, never changed, written to ``config.json``.

A field's docstring is the help text of its option, which has the field's name.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from distbelief.errors import ConfigError
from distbelief.replication import ClusterConfig, ReplicaConfig, require, require_positive, slots_of


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    model: str = "googlenet"
    """A name of the registry, or any factory by import path: package.module:function."""
    width: float = 1.0
    """Scales every channel count of googlenet to max(4, int(c * width))."""
    lrn: bool = True
    """Local response normalisation, as in the paper."""
    heads: bool = True
    """The two auxiliary classifiers, as in the paper."""
    init: Literal["caffe", "he"] = "caffe"
    """Initial values: Caffe's Xavier with biases of 0.2, or He's for rectifiers."""
    aux_weight: float = 0.3
    """Weight of each auxiliary loss."""
    channels_last: bool = True
    """Keep images and convolution weights channels-last in memory."""

    def __post_init__(self) -> None:
        require_positive(self, "width")
        require(self.aux_weight >= 0, "aux_weight", f"must be 0 or more, not {self.aux_weight}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images."""

    data: str | None = None
    """Folder with train/CLASS/*.jpg and val/CLASS/*.jpg; or a folder or URL with tars, train/*.tar
    and val/*.tar, or one tar; without it drawn shapes are used."""
    dataset: str | None = None
    """Any torch.utils.data.Dataset in place of --data: package.module:function, called with 'train'
    and 'val'."""
    image_size: int = 224
    """Side of the square that the network sees, in pixels."""
    classes: int | None = None
    """Outputs of the network; by default as many as train/ has classes."""
    normalize: Literal["caffe", "unit"] = "caffe"
    """Pixels as 0-255 less the mean (caffe), or of mean 0 and deviation 1 (unit)."""
    photometric: bool = False
    """Change brightness, contrast, colour and lighting of training images at random."""
    interpolation: Literal["bilinear", "random"] = "bilinear"
    """How training images are resized; random is bilinear, area, nearest or cubic."""
    loaders: int = 1
    """Processes of each replica that decode and augment images, ahead of the compute."""
    drawn_train: int = 4096
    """Training images, where they are drawn."""
    drawn_val: int = 1024
    """Validation images, where they are drawn."""

    @property
    def source(self) -> str:
        """Where the examples come from, for messages."""
        return self.data or self.dataset or "drawn shapes"

    def __post_init__(self) -> None:
        require_positive(self, "classes", "loaders", "drawn_train", "drawn_val")
        both = self.data is not None and self.dataset is not None
        require(not both, "dataset", "cannot be given together with --data; leave out one of them")
        require(self.image_size >= 16, "image_size", f"must be at least 16, not {self.image_size}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule that the shards apply."""

    rule: Literal["momentum", "nesterov", "adagrad"] = "momentum"
    """Update rule of the shards."""
    momentum: float = 0.9
    """Momentum, kept on the shard."""
    weight_decay: float = 2e-4
    """L2 decay of weights; biases and normalisation parameters have none."""
    bias_rate: float = 2.0
    """Learning-rate multiplier of biases."""
    kernel: Literal["fused", "unfused"] = "fused"
    """Update kernels: unfused ones equal torch.optim.SGD bit for bit."""
    predict_weights: bool = False
    """Hand out parameters as momentum will have moved them by the time a gradient comes back."""
    clip_norm: float | None = None
    """Scale a longer gradient of a push down to this norm."""
    max_norm: float | None = None
    """Refuse a gradient whose norm, before any clipping, is above this."""
    max_staleness: int | None = None
    """Refuse a gradient that is staler than so many updates."""

    def __post_init__(self) -> None:
        require(0 <= self.momentum < 1, "momentum", f"must be in [0, 1), not {self.momentum}")
        require(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            "weight_decay",
            f"must be 0 or more, not {self.weight_decay}",
        )
        require_positive(self, "bias_rate", "clip_norm", "max_norm")
        staleness_ok = self.max_staleness is None or self.max_staleness >= 0
        require(staleness_ok, "max_staleness", f"must be 0 or more, not {self.max_staleness}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate, a function of an item's position in the run."""

    lr: float = 0.01
    """Learning rate at the start, after warm-up."""
    schedule: Literal["fixed", "step", "polynomial"] = "fixed"
    """How the rate falls."""
    step_epochs: float = 8.0
    """step: epochs between two falls."""
    step_factor: float = 0.96
    """step: what each fall multiplies the rate by."""
    power: float = 0.5
    """polynomial: rate = lr * (1 - progress) ** power."""
    warmup_examples: int = 0
    """Examples over which the rate rises linearly to lr."""

    def __post_init__(self) -> None:
        require_positive(self, "lr", "step_epochs", "step_factor", "power")
        require(
            self.warmup_examples >= 0,
            "warmup_examples",
            f"must be 0 or more, not {self.warmup_examples}",
        )


@dataclass(frozen=True, kw_only=True)
class AveragingConfig:
    """Polyak averaging on the shards; the averaged weights are the product."""

    average: Literal["exponential", "uniform", "none"] = "exponential"
    """Kind of average: exponential, uniform over the run's tail, or none (the newest weights)."""
    average_decay: float = 0.998
    """exponential: decay for each push."""
    average_tail: float = 0.5
    """uniform: the last part of the run that is averaged."""
    average_every: int = 4
    """Pushes between two updates of the average."""

    def __post_init__(self) -> None:
        require(
            0 <= self.average_decay < 1,
            "average_decay",
            f"must be in [0, 1), not {self.average_decay}",
        )
        require(
            0 < self.average_tail <= 1,
            "average_tail",
            f"must be in (0, 1], not {self.average_tail}",
        )
        require_positive(self, "average_every")


@dataclass(frozen=True, kw_only=True)
class SnapshotConfig:
    """Snapshots of the whole run, from which --resume goes on."""

    snapshot_every: int | None = None
    """Examples between two snapshots; by default those of an epoch."""
    snapshot_s: float = 600.0
    """Seconds after which a snapshot is taken at the latest."""
    keep_snapshots: int = 2
    """Snapshots that are kept, beside the newest one that fits any number of shards."""
    snapshot_pause_s: float = 5.0
    """Seconds that shards wait at most to be saved with the same items applied."""

    def __post_init__(self) -> None:
        require_positive(self, "snapshot_every", "snapshot_s", "snapshot_pause_s")
        kept = self.keep_snapshots
        require(kept >= 2, "keep_snapshots", f"must be at least 2, not {kept}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run."""

    recipe: str = "quickstart"
    """Name of the recipe, given as the first argument; the run's folder bears it."""
    epochs: float = 1.0
    """Passes over the training images."""
    max_examples: int | None = None
    """Stop at the first item that reaches so many examples."""
    run_dir: str | None = None
    """Folder of the run, a path or any fsspec URL; by default runs/RECIPE-YYYYMMDD-HHMMSS."""
    seed: int = 0
    """Seed of the initial values, the order of the examples and their augmentation."""
    init_seed: int | None = None
    """Seed of the initial values alone; by default that of --seed."""
    init_from: str | None = None
    """Initial values from a run's folder, or a file of safetensors or of torch.save, as far as
    name and shape fit."""
    evaluate: bool = True
    """Evaluate the averaged weights at each epoch's end, beside the training."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run's folder."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    replica: ReplicaConfig = field(default_factory=ReplicaConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    snapshots: SnapshotConfig = field(default_factory=SnapshotConfig)

    def __post_init__(self) -> None:
        require_positive(self, "epochs", "max_examples")
        if self.cluster.replica_group:
            n_replicas = len(self.slots)
            cluster = dataclasses.replace(self.cluster, replicas=n_replicas)
            object.__setattr__(self, "cluster", cluster)
        # A push that is held back for a snapshot must be answered before its deadline.
        longest = self.cluster.rpc_timeout_s / 4
        pause = self.snapshots.snapshot_pause_s
        require(
            pause <= longest,
            "snapshot_pause_s",
            f"must be at most a quarter of --rpc-timeout-s, {longest:g}, not {pause:g}",
        )
        for name in ("seed", "init_seed"):
            seed = getattr(self, name)
            require(seed is None or 0 <= seed < 2**63, name, f"must be in [0, 2**63), not {seed}")

    @property
    def slots(self) -> tuple[ReplicaConfig, ...]:
        """What each replica is, by its slot: a replica that replaces another takes its slot."""
        return slots_of(self.replica, self.cluster)

    def changed(self, **options: Any) -> TrainConfig:
        """The configuration with options of any part changed, by their names on the command line.

        Example:
            >>> TrainConfig().changed(lr=0.1, replicas=3).schedule.lr
            0.1

        Raises:
            ConfigError: there is no such option, or it cannot have that value.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        owners: dict[str, str | None] = {
            field.name: part
            for part, value in values.items()
            if dataclasses.is_dataclass(value)
            for field in dataclasses.fields(value)
        }
        owners |= {name: None for name, v in values.items() if not dataclasses.is_dataclass(v)}
        if "replicas" in options and self.cluster.replica_group:
            if options.get("replica_group"):
                raise ConfigError("replicas", "is told by --replica-group; leave one of them out")
            options = {"replica_group": (), **options}
        by_part: dict[str, dict[str, Any]] = {}
        for name, value in options.items():
            if name not in owners:
                close = difflib.get_close_matches(name, owners, n=1)
                hint = f"did you mean {close[0]}?" if close else "see distbelief train --help"
                raise ConfigError(name, f"is no option of a run; {hint}")
            owner = owners[name]
            if owner is None:
                values[name] = value
            else:
                by_part.setdefault(owner, {})[name] = value
        for part, changes in by_part.items():
            values[part] = dataclasses.replace(values[part], **changes)
        return TrainConfig(**values)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, nested as the dataclasses are."""
        values = dataclasses.asdict(self)
        values["cluster"]["replica_group"] = list(self.cluster.replica_group)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`; unknown fields raise TypeError."""

        def read(part: Mapping[str, Any]) -> dict[str, Any]:
            return {k: tuple(v) if isinstance(v, list) else v for k, v in part.items()}

        parts = {
            f.name: f.default_factory(**read(values.get(f.name, {})))  # the dataclass itself
            for f in dataclasses.fields(cls)
            if f.default_factory is not dataclasses.MISSING
        }
        return cls(**{**values, **parts})
