"""The configuration: checked once, frozen, and the same after JSON."""

import ast
import dataclasses
import inspect
import json
from typing import Any

import pytest

from distbelief import config as module
from distbelief.config import (
    AveragingConfig,
    ClusterConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ReplicaConfig,
    ScheduleConfig,
    SnapshotConfig,
    TrainConfig,
)
from distbelief.errors import ConfigError

PARTS = [
    ModelConfig,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    AveragingConfig,
    ReplicaConfig,
    ClusterConfig,
    SnapshotConfig,
]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "field", "value", "remedy"),
    [
        (ModelConfig, "width", 0.0, "greater than 0"),
        (ModelConfig, "width", NAN, "greater than 0"),
        (ModelConfig, "width", INF, "greater than 0"),
        (ModelConfig, "aux_weight", -0.1, "0 or more"),
        (ModelConfig, "aux_weight", NAN, "0 or more"),
        (DataConfig, "image_size", 15, "at least 16"),
        (DataConfig, "classes", 0, "greater than 0"),
        (DataConfig, "loaders", 0, "greater than 0"),
        (DataConfig, "drawn_train", 0, "greater than 0"),
        (DataConfig, "drawn_val", -1, "greater than 0"),
        (OptimizerConfig, "momentum", 1.0, r"in [0, 1)"),
        (OptimizerConfig, "momentum", -0.1, r"in [0, 1)"),
        (OptimizerConfig, "momentum", NAN, r"in [0, 1)"),
        (OptimizerConfig, "weight_decay", -1e-9, "0 or more"),
        (OptimizerConfig, "weight_decay", INF, "0 or more"),
        (OptimizerConfig, "bias_rate", 0.0, "greater than 0"),
        (OptimizerConfig, "max_norm", 0.0, "greater than 0"),
        (OptimizerConfig, "max_staleness", -1, "0 or more"),
        (ScheduleConfig, "lr", 0.0, "greater than 0"),
        (ScheduleConfig, "lr", NAN, "greater than 0"),
        (ScheduleConfig, "lr", INF, "greater than 0"),
        (ScheduleConfig, "step_epochs", 0.0, "greater than 0"),
        (ScheduleConfig, "step_factor", -0.5, "greater than 0"),
        (ScheduleConfig, "power", 0.0, "greater than 0"),
        (ScheduleConfig, "warmup_examples", -1, "0 or more"),
        (AveragingConfig, "average_decay", 1.0, r"in [0, 1)"),
        (AveragingConfig, "average_decay", NAN, r"in [0, 1)"),
        (AveragingConfig, "average_tail", 0.0, r"in (0, 1]"),
        (AveragingConfig, "average_tail", 1.1, r"in (0, 1]"),
        (AveragingConfig, "average_every", 0, "greater than 0"),
        (ReplicaConfig, "batch_size", 0, "greater than 0"),
        (ReplicaConfig, "n_push", 0, "greater than 0"),
        (ReplicaConfig, "n_fetch", -3, "greater than 0"),
        (ReplicaConfig, "threads", 0, "greater than 0"),
        (ClusterConfig, "replicas", 0, "greater than 0"),
        (ClusterConfig, "shards", 0, "greater than 0"),
        (ClusterConfig, "lease_s", 0.0, "greater than 0"),
        (ClusterConfig, "rpc_timeout_s", -1.0, "greater than 0"),
        (ClusterConfig, "patience_s", INF, "greater than 0"),
        (TrainConfig, "epochs", 0.0, "greater than 0"),
        (TrainConfig, "max_examples", 0, "greater than 0"),
        (TrainConfig, "seed", -1, r"in [0, 2**63)"),
        (TrainConfig, "seed", 2**63, r"in [0, 2**63)"),
    ],
)
def test_an_impossible_value_is_refused_by_option_and_remedy(
    kind: type, field: str, value: Any, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**{field: value})
    option = field.replace("_", "-")
    assert str(caught.value) == f"--{option}: must be {remedy}, not {value}"
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (ModelConfig, {"aux_weight": 0.0}),
        (DataConfig, {"image_size": 16}),
        (OptimizerConfig, {"momentum": 0.0, "weight_decay": 0.0, "max_staleness": 0}),
        (AveragingConfig, {"average_decay": 0.0, "average_tail": 1.0, "average_every": 1}),
        (TrainConfig, {"seed": 2**63 - 1, "max_examples": 1}),
    ],
)
def test_values_at_the_limit_are_taken(kind: type, values: dict[str, Any]) -> None:
    config = kind(**values)
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize("device", ["", "gpu", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:-1"])
def test_what_is_no_device(device: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ReplicaConfig(device=device)
    assert caught.value.field == "device"
    assert str(caught.value) == f"--device: must be auto, cpu or cuda, not {device!r}"


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices(device: str) -> None:
    assert ReplicaConfig(device=device).device == device


@pytest.mark.parametrize("kind", [*PARTS, TrainConfig])
def test_frozen_and_keyword_only(kind: type) -> None:
    config = kind()
    name = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, "other")
    with pytest.raises(TypeError):
        kind("positional")


def test_the_same_after_json() -> None:
    config = TrainConfig(
        recipe="mine",
        epochs=2.5,
        max_examples=77,
        run_dir="/runs/x",
        seed=2**62,
        evaluate=False,
        model=ModelConfig(width=0.25),
        data=DataConfig(data="/data", classes=7),
        optimizer=OptimizerConfig(rule="adagrad", max_norm=3.0),
        schedule=ScheduleConfig(lr=0.1 + 0.2),
        averaging=AveragingConfig(average="uniform"),
        replica=ReplicaConfig(threads=3),
        cluster=ClusterConfig(address="local"),
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_groups_of_replicas_are_the_same_after_json() -> None:
    groups = ("2x stages=2,device=cpu+cuda", "1x threads=1")
    config = TrainConfig(cluster=ClusterConfig(replicas=9, replica_group=groups))
    back = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert back == config
    assert back.cluster.replica_group == groups
    assert hash(back.slots) == hash(config.slots)


def test_the_replicas_are_as_many_as_the_groups_say() -> None:
    config = TrainConfig(
        replica=ReplicaConfig(batch_size=16),
        cluster=ClusterConfig(replicas=9, replica_group=("2x stages=2", "1x device=cpu")),
    )
    assert config.cluster.replicas == len(config.slots) == 3
    staged = ReplicaConfig(batch_size=16, stages=2)
    assert config.slots == (staged, staged, ReplicaConfig(batch_size=16, device="cpu"))


def test_without_groups_there_is_a_slot_for_each_replica() -> None:
    config = TrainConfig(cluster=ClusterConfig(replicas=3))
    assert config.slots == 3 * (config.replica,)


def test_a_group_that_cannot_be_is_refused_with_the_configuration() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(cluster=ClusterConfig(replica_group=("2x stages=two",)))
    assert str(caught.value) == "--replica-group: '2x stages=two': stages must be a number"


def test_groups_may_be_changed_and_taken_away() -> None:
    config = TrainConfig().changed(replica_group=("3x stages=2",))
    assert [slot.stages for slot in config.slots] == [2, 2, 2]
    for options in ({"replica_group": (), "replicas": 1}, {"replicas": 1}):
        assert config.changed(**options) == TrainConfig().changed(replicas=1)
    with pytest.raises(ConfigError) as caught:
        config.changed(replicas=1, replica_group=("2x",))
    assert str(caught.value) == "--replicas: is told by --replica-group; leave one of them out"


def test_defaults_are_the_same_after_json() -> None:
    assert TrainConfig.from_dict(json.loads(json.dumps(TrainConfig().to_dict()))) == TrainConfig()


@pytest.mark.parametrize("part", [None, "model", "cluster"])
def test_unknown_fields_are_refused(part: str | None) -> None:
    values = TrainConfig().to_dict()
    (values if part is None else values[part])["no_such"] = 1
    with pytest.raises(TypeError, match="no_such"):
        TrainConfig.from_dict(values)


def test_what_is_read_is_checked() -> None:
    values = TrainConfig().to_dict()
    values["schedule"]["lr"] = -1
    with pytest.raises(ConfigError, match=r"^--lr: "):
        TrainConfig.from_dict(values)


@pytest.mark.parametrize(
    ("pause", "timeout", "accepted"),
    [(5.0, 60.0, True), (15.0, 60.0, True), (15.5, 60.0, False), (5.0, 19.0, False)],
)
def test_a_push_that_is_held_back_for_a_snapshot_is_answered_in_time(
    pause: float, timeout: float, accepted: bool
) -> None:
    def make() -> TrainConfig:
        return TrainConfig(
            snapshots=SnapshotConfig(snapshot_pause_s=pause),
            cluster=ClusterConfig(rpc_timeout_s=timeout),
        )

    if accepted:
        make()
        return
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.field == "snapshot_pause_s"
    longest = f"{timeout / 4:g}"
    problem = f"must be at most a quarter of --rpc-timeout-s, {longest}, not {pause:g}"
    assert caught.value.problem == problem


def test_every_field_has_its_help_text() -> None:
    undocumented = []
    for node in ast.parse(inspect.getsource(module)).body:
        if not (isinstance(node, ast.ClassDef) and node.name.endswith("Config")):
            continue
        for i, statement in enumerate(node.body):
            if isinstance(statement, ast.AnnAssign):
                after = node.body[i + 1] if i + 1 < len(node.body) else None
                value = after.value if isinstance(after, ast.Expr) else None
                told = isinstance(value, ast.Constant) and isinstance(value.value, str)
                is_part = isinstance(statement.annotation, ast.Name) and (
                    statement.annotation.id in {part.__name__ for part in PARTS}
                )
                if not (told or is_part):
                    undocumented.append(f"{node.name}.{ast.unparse(statement.target)}")
    assert undocumented == []


def test_option_names_are_unique() -> None:
    names = [f.name for part in PARTS for f in dataclasses.fields(part)]
    own = [f for f in dataclasses.fields(TrainConfig) if f.default is not dataclasses.MISSING]
    names += [f.name for f in own]
    assert sorted(names) == sorted(set(names))
