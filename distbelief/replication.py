"""How many replicas and shards, what each replica is, and where they run."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from distbelief.errors import ConfigError


def require(condition: bool, field_name: str, problem: str) -> None:
    """Raises ConfigError of an option unless the condition holds."""
    if not condition:
        raise ConfigError(field_name, problem)


def require_positive(config: object, *fields: str) -> None:
    """Refuses fields that are neither None nor a finite number above 0."""
    for name in fields:
        value = getattr(config, name)
        if value is not None:
            good = math.isfinite(value) and value > 0
            require(good, name, f"must be greater than 0, not {value}")


@dataclass(frozen=True, kw_only=True)
class ReplicaConfig:
    """What one replica does between two pushes."""

    batch_size: int = 32
    """Examples of one step of one replica."""
    n_push: int = 1
    """Steps whose gradients are summed into one push."""
    n_fetch: int = 1
    """Steps between two fetches of the parameters."""
    overlap: bool = True
    """Exchange with the shards behind the compute of the next step."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Arithmetic of the network; auto is bf16 where the device has it."""
    device: str = "auto"
    """Device of the replicas: cpu, cuda, or auto; with stages also one for each: cpu+cuda."""
    threads: int | None = None
    """Threads of one replica, or of each of its stages; by default a fair part of the cores."""
    stages: int = 1
    """Parts into which a replica's layers are divided, each on a device of its own."""
    micro_batches: int | None = None
    """Parts of a batch that are computed one after another: that flow through the stages, or that
    save memory; by default 1, or 4 for each stage."""
    pipeline: Literal["1f1b", "gpipe"] = "1f1b"
    """Order in which stages compute micro-batches; 1f1b holds fewer of them in memory."""
    boundaries: str | None = None
    """Blocks with which the second and later stages begin, as in inception4a,inception4d; by
    default they are chosen from what each block takes (distbelief plan stages)."""
    divide_by: Literal["time", "memory"] = "time"
    """What the chosen boundaries make even among the stages."""
    device_memory_gb: float | None = None
    """Memory that one stage may take, in GB; by default what its device has free."""

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "n_push", "n_fetch", "threads", "stages")
        require_positive(self, "micro_batches", "device_memory_gb")
        kinds = self.device.split("+")
        known = all(re.fullmatch(r"auto|cpu|cuda(:\d+)?", kind) for kind in kinds)
        require(known, "device", f"must be auto, cpu or cuda, not {self.device!r}")
        n = len(kinds)
        require(n in (1, self.stages), "device", f"names {n} devices for {self.stages} stages")
        n_micro = self.micro_batches
        if n_micro is not None:
            fits = n_micro <= self.batch_size
            what = f"{n_micro} for a batch of {self.batch_size}; take fewer"
            require(fits, "micro_batches", what)
            enough = self.pipeline == "gpipe" or n_micro >= self.stages
            what = f"1f1b needs one for each of {self.stages} stages, not {n_micro}"
            require(enough, "micro_batches", what)
        fits = self.stages <= self.batch_size
        what = f"{self.stages} stages for a batch of {self.batch_size}; take fewer"
        require(fits, "stages", what)
        if self.boundaries is not None:
            wanted = len(self.boundaries.split(",")) + 1
            what = f"{self.boundaries} divides into {wanted} stages, not {self.stages}"
            require(wanted == self.stages, "boundaries", f"{what}; give --stages {wanted}")

    @property
    def n_micro_batches(self) -> int:
        """Micro-batches of a step."""
        if self.micro_batches is not None:
            return self.micro_batches
        return 1 if self.stages == 1 else min(self.batch_size, 4 * self.stages)

    def device_of(self, stage: int) -> str:
        """The word for the device of one stage."""
        kinds = self.device.split("+")
        return kinds[stage] if len(kinds) > 1 else kinds[0]


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """How many processes, and where."""

    replicas: int = 2
    """Copies of the model that compute gradients."""
    shards: int = 1
    """Parameter servers, each with an equal range of the parameters."""
    shard_replication: int = 1
    """Copies of each shard: with 2 a twin on another node has every update before it is
    acknowledged, and takes over when the shard dies."""
    replica_group: tuple[str, ...] = ()
    """Replicas that differ, instead of --replicas: '2x stages=2,device=cuda' '4x device=cpu'; takes
    stages, device, micro_batches, threads, pipeline, boundaries, divide_by, device_memory_gb."""
    address: str | None = None
    """auto joins the cluster of this host, local starts one, inprocess uses no Ray, HOST:PORT joins
    that one; by default auto where a cluster runs and local elsewhere."""
    lease_s: float = 20.0
    """Seconds of work that each replica holds ahead."""
    rpc_timeout_s: float = 60.0
    """Deadline of one call to a shard."""
    patience_s: float = 120.0
    """Seconds that a process goes on trying to reach a shard or the coordinator, and a run to be
    placed."""
    tls: str | None = None
    """Folder with ca.pem, cert.pem and key.pem, on every node under the same path: shards and those
    who call them show each other certificates, and nobody else can read along; see SECURITY.md."""

    def __post_init__(self) -> None:
        require_positive(self, "replicas", "shards", "lease_s", "rpc_timeout_s", "patience_s")
        longest = "is 3600 at most, which is as long as a shard lets a call last"
        require(self.rpc_timeout_s <= 3600, "rpc_timeout_s", longest)
        copies = self.shard_replication
        require(copies in (1, 2), "shard_replication", f"is 1, or 2 for a twin, not {copies}")


_OF_A_GROUP = (
    "stages",
    "device",
    "micro_batches",
    "threads",
    "pipeline",
    "boundaries",
    "divide_by",
    "device_memory_gb",
)
"""What may differ among the replicas of a run: nothing that changes what an item is."""


def slots_of(replica: ReplicaConfig, cluster: ClusterConfig) -> tuple[ReplicaConfig, ...]:
    """What each of a run's replicas is: all alike, or as the groups say.

    Raises:
        ConfigError: a group that cannot be read, or whose replicas cannot be so.
    """
    if not cluster.replica_group:
        return (replica,) * cluster.replicas
    found: list[ReplicaConfig] = []
    for text in cluster.replica_group:
        count, options = _read_group(text)
        try:
            if options.get("stages", replica.stages) != replica.stages:  # which boundaries go with
                options.setdefault("boundaries", None)
            found += [dataclasses.replace(replica, **options)] * count
        except ConfigError as error:
            raise ConfigError("replica_group", f"{text!r}: {error}") from error
    return tuple(found)


def _read_group(text: str) -> tuple[int, dict[str, Any]]:
    """``2x stages=2,device=cuda`` as a count and options; boundaries are joined by +."""
    match = re.fullmatch(r"\s*(\d+)\s*x\s*(.*?)\s*", text)
    form = "write it as '2x stages=2,device=cuda'"
    if match is None or int(match[1]) < 1:
        raise ConfigError("replica_group", f"{text!r} does not say how many; {form}")
    options: dict[str, Any] = {}
    for word in filter(None, re.split(r"[,\s]+", match[2])):
        name, equals, value = word.partition("=")
        name = name.replace("-", "_")
        if name not in _OF_A_GROUP:
            close = difflib.get_close_matches(name, _OF_A_GROUP, n=1)
            known = f"did you mean {close[0]}?" if close else f"take {', '.join(_OF_A_GROUP)}"
            raise ConfigError("replica_group", f"{text!r}: no {name!r} differs by group; {known}")
        if not equals or not value:
            raise ConfigError("replica_group", f"{text!r}: {name} has no value; {form}")
        if name in options:
            raise ConfigError("replica_group", f"{text!r} says {name} twice")
        options[name] = _value(text, name, value)
    return int(match[1]), options


def _value(text: str, name: str, value: str) -> Any:
    kinds: dict[str, type] = {
        "stages": int,
        "micro_batches": int,
        "threads": int,
        "device_memory_gb": float,
    }
    if name == "boundaries":
        return value.replace("+", ",")
    choices = {"pipeline": ("1f1b", "gpipe"), "divide_by": ("time", "memory")}.get(name)
    if choices and value not in choices:
        raise ConfigError("replica_group", f"{text!r}: {name} is {' or '.join(choices)}")
    try:
        return kinds.get(name, str)(value)
    except ValueError:
        raise ConfigError("replica_group", f"{text!r}: {name} must be a number") from None
