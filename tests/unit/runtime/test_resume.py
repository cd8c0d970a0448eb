"""From which snapshot a run goes on, and what must not have changed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

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
from distbelief.coordinator.snapshots import MANIFEST, Manifest
from distbelief.errors import ConfigError, DataError
from distbelief.items import ItemPlan
from distbelief.observe.events import EventLog, read_events
from distbelief.runtime.beginning import begin
from distbelief.runtime.prepare import prepare
from distbelief.runtime.resume import Resumed, require_unchanged, resumed_run
from distbelief.runtime.runs import Resume
from distbelief.server.pushlog import LogHeader, PushLog
from distbelief.server.statefile import digest, file_name, snapshot_folder
from distbelief.storage import LocalStorage, Storage, write_json
from distbelief.types import ShardFile, ShardState

CONFIG = TrainConfig(cluster=ClusterConfig(shards=2), replica=ReplicaConfig(stages=2))
RECORD: dict[str, Any] = {
    "config": CONFIG.to_dict(),
    "started_at": 1000.0,
    "data_digests": ["train", "val"],
}


# What must not change

PARTS = (
    "model",
    "data",
    "optimizer",
    "schedule",
    "averaging",
    "replica",
    "cluster",
    "snapshots",
)
OTHER: dict[str, Any] = {
    # A value that each field does not have by default.
    "recipe": "other",
    "epochs": 7.0,
    "max_examples": 9,
    "run_dir": "/elsewhere",
    "seed": 1,
    "init_seed": 2,
    "init_from": "/elsewhere/model.safetensors",
    "evaluate": False,
    "tensorboard": False,
    "model": {
        "model": "torchvision.models:resnet18",
        "width": 0.5,
        "lrn": False,
        "heads": False,
        "init": "he",
        "aux_weight": 0.5,
        "channels_last": False,
    },
    "data": {
        "data": "/images",
        "dataset": "package:factory",
        "image_size": 64,
        "classes": 9,
        "normalize": "unit",
        "photometric": True,
        "interpolation": "random",
        "loaders": 5,
        "drawn_train": 9,
        "drawn_val": 9,
    },
    "optimizer": {
        "rule": "adagrad",
        "momentum": 0.5,
        "weight_decay": 0.5,
        "bias_rate": 1.0,
        "kernel": "unfused",
        "predict_weights": True,
        "clip_norm": 1.0,
        "max_norm": 1.0,
        "max_staleness": 3,
    },
    "schedule": {
        "lr": 0.5,
        "schedule": "step",
        "step_epochs": 1.0,
        "step_factor": 0.5,
        "power": 2.0,
        "warmup_examples": 9,
    },
    "averaging": {
        "average": "none",
        "average_decay": 0.5,
        "average_tail": 0.25,
        "average_every": 1,
    },
    "replica": {
        "batch_size": 9,
        "n_push": 2,
        "n_fetch": 2,
        "overlap": False,
        "precision": "bf16",
        "device": "cpu",
        "threads": 1,
        "stages": 3,
        "micro_batches": 2,
        "pipeline": "gpipe",
        "boundaries": "inception4b",
        "divide_by": "memory",
        "device_memory_gb": 1.0,
    },
    "cluster": {
        "replicas": 9,
        "shards": 9,
        "shard_replication": 2,
        "tls": "/elsewhere/tls",
        "replica_group": ("3x",),
        "address": "local",
        "lease_s": 1.0,
        "rpc_timeout_s": 90.0,
        "patience_s": 1.0,
    },
    "snapshots": {
        "snapshot_every": 9,
        "snapshot_s": 1.0,
        "keep_snapshots": 9,
        "snapshot_pause_s": 1.0,
    },
}
FREE = {
    *("epochs", "max_examples", "run_dir", "init_from", "evaluate", "tensorboard"),
    "data.loaders",
    *(f"replica.{name}" for name in OTHER["replica"] if name not in ("batch_size", "n_push")),
    *(f"cluster.{name}" for name in OTHER["cluster"]),
    *(f"snapshots.{name}" for name in OTHER["snapshots"]),
}


def all_fields() -> list[str]:
    """Every field of the configuration, ``part.name`` if it is of a part."""
    found = []
    for f in dataclasses.fields(TrainConfig):
        if f.name in PARTS:
            part = getattr(TrainConfig(), f.name)
            found += [f"{f.name}.{g.name}" for g in dataclasses.fields(part)]
        else:
            found.append(f.name)
    return found


def changed(field: str, config: TrainConfig = CONFIG) -> TrainConfig:
    """The configuration with another value of that field."""
    part, dot, name = field.rpartition(".")
    if not dot:
        return replace(config, **{name: OTHER[name]})
    return replace(config, **{part: replace(getattr(config, part), **{name: OTHER[part][name]})})


def value_of(field: str, config: TrainConfig = CONFIG) -> Any:
    part, dot, name = field.rpartition(".")
    return getattr(getattr(config, part) if dot else config, name)


def test_every_field_is_in_the_table() -> None:
    known = {
        *(name for name in OTHER if name not in PARTS),
        *(f"{part}.{name}" for part in PARTS for name in OTHER[part]),
    }
    assert known == set(all_fields())
    assert known >= FREE
    assert all(value_of(field, changed(field)) != value_of(field) for field in known)


def test_the_same_configuration_is_accepted() -> None:
    require_unchanged(CONFIG, TrainConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))))


@pytest.mark.parametrize("field", sorted(set(all_fields()) - FREE))
def test_a_field_that_a_run_keeps_is_refused_by_name(field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_unchanged(CONFIG, changed(field))
    assert caught.value.field == field.rpartition(".")[2]
    assert caught.value.problem == (
        f"the run has {value_of(field)}, and cannot go on with {value_of(field, changed(field))}; "
        f"leave it out"
    )


@pytest.mark.parametrize("field", sorted(FREE))
def test_a_field_that_may_change_is_accepted(field: str) -> None:
    require_unchanged(CONFIG, changed(field))


def test_the_images_may_lie_elsewhere() -> None:
    def at(path: str) -> TrainConfig:
        return replace(CONFIG, data=DataConfig(data=path))

    require_unchanged(at("/images"), at("/other/images"))
    with pytest.raises(ConfigError) as caught:
        require_unchanged(at("/images"), CONFIG)
    assert caught.value.field == "data"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"schedule": ScheduleConfig(schedule="polynomial")}, "polynomial schedule"),
        ({"averaging": AveragingConfig(average="uniform")}, "uniform average"),
    ],
)
@pytest.mark.parametrize("field", ["epochs", "max_examples"])
def test_where_all_depends_on_the_length_it_must_stay(
    field: str, changes: dict[str, Any], what: str
) -> None:
    config = replace(CONFIG, **changes)
    require_unchanged(config, config)
    with pytest.raises(ConfigError) as caught:
        require_unchanged(config, changed(field, config))
    assert caught.value.field == field
    assert caught.value.problem == (
        f"the run's {what} depends on the length of the run, which must stay as it was; leave it "
        f"out"
    )


# From which snapshot


def snapshot(
    storage: Storage,
    number: int,
    examples: int = 0,
    *,
    even: bool = True,
    n_shards: int = 2,
    layout: str = "fingerprint",
) -> Manifest:
    """A snapshot whose files hold a few bytes."""
    files = []
    for shard in range(n_shards):
        content = f"state of {shard} in {number}".encode()
        name = file_name(shard, n_shards)
        storage.write(f"{snapshot_folder(number)}/{name}", content)
        state = ShardState(
            shard=shard,
            incarnation=1,
            begin=4 * shard,
            end=4 * shard + 4,
            loaded=True,
            clock=examples // 10,
            examples=examples,
            skipped=0,
            applied=((0, examples // 10),),
            set_aside={},
            repeated=0,
        )
        files.append(
            ShardFile(
                name=name,
                nbytes=len(content),
                sha256=digest(content),
                n_shards=n_shards,
                state=state,
            )
        )
    manifest = Manifest(
        number=number,
        even=even,
        examples_applied=examples,
        layout=layout,
        n_parameters=4 * n_shards,
        elapsed_s=1.0 + number,
        files=tuple(files),
    )
    write_json(storage, f"{snapshot_folder(number)}/{MANIFEST}", manifest.to_dict())
    return manifest


@pytest.fixture
def run(storage: Storage) -> Storage:
    """A run's folder with a record and nothing else."""
    write_json(storage, "config.json", RECORD)
    return storage


def go_on(
    storage: Storage, n_shards: int = 2, number: int | None = None, **changes: Any
) -> Resumed:
    config = replace(CONFIG, cluster=ClusterConfig(shards=n_shards), **changes)
    return resumed_run(Resume(storage.url, number), config)


def test_the_newest_snapshot_is_gone_on_from(run: Storage) -> None:
    snapshot(run, 3, 20)
    newest = snapshot(run, 10, 40)
    found = go_on(run)
    assert (found.manifest, found.notes, found.storage) == (newest, (), run)
    assert (found.record, found.started_at, found.earlier) == (RECORD, 1000.0, [])
    assert go_on(run, 5).manifest == newest


def test_a_wanted_snapshot_is_gone_on_from(run: Storage) -> None:
    older = snapshot(run, 3, 20)
    snapshot(run, 4, 40)
    found = go_on(run, number=3)
    assert (found.manifest, found.notes) == (older, ())


def test_an_abandoned_one_is_gone_on_from_if_it_is_wanted_and_not_by_itself(run: Storage) -> None:
    older = snapshot(run, 3, 20)
    wanted = snapshot(run, 4, 40)
    snapshot(run, 5, 60)
    damage_manifest(run, 5)
    resumed = [{"snapshot": 3, "abandoned": [4, 5]}]
    write_json(run, "config.json", {**RECORD, "resumed": resumed})
    assert (go_on(run).manifest, go_on(run).notes) == (older, ())
    assert go_on(run, number=4).manifest == wanted
    newer = snapshot(run, 6, 30)
    assert go_on(run).manifest == newer


def test_one_that_was_never_finished_is_passed_over(run: Storage) -> None:
    whole = snapshot(run, 3, 20)
    run.write("snapshots/000004/shard-00000-of-00002.safetensors", b"half")
    found = go_on(run)
    assert (found.manifest, found.notes) == (whole, ())


def test_an_uneven_one_fits_its_own_number_of_shards(run: Storage) -> None:
    snapshot(run, 3, 20)
    newest = snapshot(run, 4, 40, even=False)
    assert go_on(run, 2).manifest == newest
    assert go_on(run, 2, number=4).manifest == newest


def test_another_number_of_shards_goes_further_back_and_says_how_far(run: Storage) -> None:
    even = snapshot(run, 3, 2000)
    snapshot(run, 4, 2500, even=False)
    snapshot(run, 5, 3500, even=False)
    found = go_on(run, 3)
    assert found.manifest == even
    assert found.notes == (
        "snapshot 5 fits 2 shards alone; going on from snapshot 3, 1,500 examples further back",
    )


def assert_refused(run: Storage, field: str, problem: str, *args: Any, **fields: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        go_on(run, *args, **fields)
    assert (caught.value.field, caught.value.problem) == (field, problem)


def test_if_none_fits_that_number_of_shards_it_is_said_which_would(run: Storage) -> None:
    snapshot(run, 3, 20, even=False)
    problem = f"the snapshots in {run.url} fit 2 shards alone, not 3"
    assert_refused(run, "shards", problem, 3)


def test_a_run_without_a_snapshot(run: Storage) -> None:
    run.write("snapshots/000000/shard-00000-of-00002.safetensors", b"half")
    problem = f"{run.url} has no snapshot to go on from; start the run anew: --run-dir {run.url}"
    assert_refused(run, "resume", problem)


def test_a_wanted_snapshot_that_is_not_there(run: Storage) -> None:
    assert_refused(run, "resume_snapshot", f"{run.url} has no snapshot 7; it has none", number=7)
    snapshot(run, 3)
    snapshot(run, 12)
    run.write("snapshots/000007/shard-00000-of-00002.safetensors", b"half")
    assert_refused(run, "resume_snapshot", f"{run.url} has no snapshot 7; it has 3, 12", number=7)


def test_a_wanted_snapshot_that_does_not_fit(run: Storage) -> None:
    snapshot(run, 3, 20)
    snapshot(run, 4, 40, even=False)
    problem = "snapshot 4 is uneven and fits 2 shards alone"
    assert_refused(run, "resume_snapshot", problem, 3, number=4)


OFFER = "; the snapshot before it has 2,000 examples: --resume-snapshot 3"
NOTHING_ELSE = "; there is no other snapshot to go on from"


def damage_manifest(run: Storage, number: int) -> str:
    run.write(f"{snapshot_folder(number)}/{MANIFEST}", b"{")
    return f"{run.url}/{snapshot_folder(number)}/{MANIFEST}"


def damage_file(run: Storage, number: int) -> str:
    name = f"{snapshot_folder(number)}/{file_name(1, 2)}"
    content = bytearray(run.read(name))
    content[0] ^= 1
    run.write(name, content)
    return f"{run.url}/{name}"


def remove_file(run: Storage, number: int) -> str:
    name = f"{snapshot_folder(number)}/{file_name(0, 2)}"
    run.remove(name)
    return f"{run.url}/{name}"


DAMAGES = [damage_manifest, damage_file, remove_file]
Damage = Callable[[Storage, int], str]


@pytest.mark.parametrize("damage", DAMAGES)
def test_if_the_newest_is_damaged_the_one_before_is_offered(run: Storage, damage: Damage) -> None:
    before = snapshot(run, 3, 2000)
    snapshot(run, 4, 3000)
    path = damage(run, 4)
    with pytest.raises(DataError) as caught:
        go_on(run)
    assert caught.value.path == path
    assert caught.value.problem.endswith(OFFER)
    assert go_on(run, number=3).manifest == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_offered_fits_the_shards(run: Storage, damage: Damage) -> None:
    snapshot(run, 2, 1000, n_shards=3, even=False)
    snapshot(run, 3, 2000)
    snapshot(run, 4, 2500, even=False)
    snapshot(run, 5, 3000)
    damage(run, 5)
    with pytest.raises(DataError) as caught:
        go_on(run, 3)
    assert caught.value.problem.endswith(OFFER)


@pytest.mark.parametrize("damage", DAMAGES)
def test_if_the_only_one_is_damaged_there_is_nothing_else(run: Storage, damage: Damage) -> None:
    snapshot(run, 3, 2000)
    path = damage(run, 3)
    with pytest.raises(DataError) as caught:
        go_on(run)
    assert caught.value.path == path
    assert caught.value.problem.endswith(NOTHING_ELSE)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_an_older_one_does_not_matter(run: Storage, damage: Damage) -> None:
    snapshot(run, 3, 2000)
    newest = snapshot(run, 4, 3000)
    damage(run, 3)
    assert go_on(run).manifest == newest


@pytest.mark.parametrize("number", [None, 4])
def test_a_manifest_that_was_there_once_is_missed(run: Storage, number: int | None) -> None:
    before = snapshot(run, 3, 2000)
    snapshot(run, 4, 3000)
    log = EventLog(run, 0.0)
    for taken in (3, 4):
        log.emit("snapshot", number=taken)
    log.close()
    name = f"{snapshot_folder(4)}/{MANIFEST}"
    run.remove(name)
    with pytest.raises(DataError) as caught:
        go_on(run, number=number)
    assert caught.value.path == f"{run.url}/{name}"
    assert caught.value.problem == f"is missing, and was there once{OFFER}"
    assert go_on(run, number=3).manifest == before


def test_a_manifest_of_another_snapshot_is_not_this_ones(run: Storage) -> None:
    snapshot(run, 3, 2000)
    snapshot(run, 4, 3000)
    names = [f"{snapshot_folder(number)}/{MANIFEST}" for number in (3, 4)]
    run.write(names[1], run.read(names[0]))
    with pytest.raises(DataError) as caught:
        go_on(run)
    assert caught.value.path == f"{run.url}/{names[1]}"
    assert caught.value.problem == f"is the manifest of another snapshot, of number 3{OFFER}"


def test_a_wanted_one_that_is_damaged_offers_the_one_before_it(run: Storage) -> None:
    snapshot(run, 3, 2000)
    snapshot(run, 4, 3000)
    snapshot(run, 5, 4000)
    damage_file(run, 4)
    with pytest.raises(DataError) as caught:
        go_on(run, number=4)
    assert caught.value.problem.endswith(OFFER)


def test_a_wanted_one_whose_manifest_is_damaged_is_called_damaged(run: Storage) -> None:
    snapshot(run, 3, 2000)
    path = damage_manifest(run, 3)
    with pytest.raises(DataError) as caught:
        go_on(run, number=3)
    assert caught.value.path == path


# What goes on from where


def push_log(storage: Storage, shard: int, incarnation: int, n_shards: int = 2) -> None:
    header = LogHeader(shard=shard, n_shards=n_shards, begin=0, end=4, incarnation=incarnation)
    PushLog(storage, header).close()


def test_shards_and_replicas_have_numbers_of_their_own(run: Storage) -> None:
    snapshot(run, 0)
    first = go_on(run)
    assert (first.incarnation, first.first_replica, first.elapsed_s) == (1, 0, 1.0)
    for shard in (0, 1):
        push_log(run, shard, 1)
    push_log(run, 0, 4, n_shards=1)
    times = iter([0.0, 3.25, 7.5, 7.0])
    log = EventLog(run, 0.0, clock=lambda: next(times))
    log.emit("replica_started", replica=0)
    log.emit("replica_started", replica=5)
    log.emit("replica_joined", replica=5)
    log.emit("replica_started", replica=2)
    log.close()
    found = go_on(run)
    assert (found.incarnation, found.first_replica, found.elapsed_s) == (5, 6, 7.5)


def test_epochs_of_which_the_events_tell_are_not_told_again(run: Storage) -> None:
    snapshot(run, 0)
    assert go_on(run).epochs_told == 0
    log = EventLog(run, 0.0)
    for epoch in (1, 2, 3, 2):
        log.emit("epoch", epoch=epoch)
    log.close()
    assert go_on(run).epochs_told == 3


def test_a_run_whose_events_were_lost_has_lasted_as_long_as_its_snapshot_says(
    run: Storage,
) -> None:
    snapshot(run, 41)
    log = EventLog(run, 0.0, clock=lambda: 3.0)
    log.emit("started")
    log.close()
    assert go_on(run).elapsed_s == 42.0


def test_a_log_that_a_shard_died_within_making_does_not_stop_the_run(run: Storage) -> None:
    snapshot(run, 0)
    push_log(run, 0, 1)
    if not isinstance(run, LocalStorage):
        pytest.xfail("an object is whole or not there")
    run.write("pushes/shard-00001-of-00002.0001.jsonl", b"")
    assert go_on(run).incarnation == 2


def test_what_must_not_change_is_asked_first(run: Storage) -> None:
    with pytest.raises(ConfigError) as caught:
        go_on(run, seed=3)
    assert caught.value.field == "seed"


# The model and the data

PLAN = ItemPlan(n_examples=100, batch_size=10, n_push=1, n_items=20)


def test_the_same_model_and_data_are_accepted(run: Storage) -> None:
    snapshot(run, 0, 199)
    go_on(run).check(TrainConfig(), "fingerprint", ("train", "val"), PLAN)


@pytest.mark.parametrize(
    ("layout", "digests", "n_items", "field", "text"),
    [
        ("other", ("train", "val"), 20, "model", "builds another network than the run has"),
        ("fingerprint", ("other", "val"), 20, "data", "has other images than the run was started"),
        ("fingerprint", ("train",), 20, "data", "has other images than the run was started"),
        ("fingerprint", ("train", "val"), 15, "epochs", "has 150 examples behind it, and would"),
        ("fingerprint", ("train", "val"), 10, "epochs", "raise it to train further"),
    ],
)
def test_others_are_refused(
    layout: str, digests: tuple[str, ...], n_items: int, field: str, text: str, run: Storage
) -> None:
    snapshot(run, 0, 150)
    with pytest.raises(ConfigError) as caught:
        go_on(run).check(TrainConfig(), layout, digests, replace(PLAN, n_items=n_items))
    assert caught.value.field == field
    assert text in caught.value.problem


# All together


@pytest.fixture
def left(tiny: Callable[..., TrainConfig]) -> TrainConfig:
    """The configuration of a run that has begun and taken its first snapshot."""
    config = tiny()
    prepared = prepare(config, 1000.0)
    begin(prepared)
    snapshot(prepared.storage, 0, layout=prepared.layout.fingerprint)
    return config


def test_a_resumption_is_prepared_and_recorded(left: TrainConfig) -> None:
    assert left.run_dir is not None
    config = replace(left, epochs=3, cluster=replace(left.cluster, shards=3, replicas=1))
    prepared = prepare(config, 5000.0, resume=Resume(left.run_dir))
    assert prepared.storage == LocalStorage(Path(left.run_dir))
    assert prepared.resumed is not None
    assert prepared.resumed.number == 0
    assert prepared.started_at == 5000.0 - 1.0  # it had lasted a second
    assert prepared.shard_spec(2).restore is not None
    before = json.loads(prepared.storage.read("config.json"))
    begin(prepared)
    record = json.loads(prepared.storage.read("config.json"))
    assert (before["started_at"], record["started_at"]) == (1000.0, 1000.0)
    assert record["config"]["epochs"] == 3
    (resumption,) = record["resumed"]
    assert {k: v for k, v in resumption.items() if k != "at"} == {
        "snapshot": 0,
        "examples_applied": 0,
        "abandoned": [],
        "shards": 3,
    }
    assert record["incarnation"] == prepared.incarnation == 1  # no shard had a log yet
    (told,) = read_events(prepared.storage)
    assert {k: v for k, v in told.items() if k != "t"} == {
        "kind": "resumed",
        "snapshot": 0,
        "examples_applied": 0,
        "shards": 3,
        "replicas": 1,
    }
    again = prepare(config, 6000.0, resume=Resume(left.run_dir))
    begin(again)
    assert len(json.loads(again.storage.read("config.json"))["resumed"]) == 2


def test_what_a_run_said_of_its_end_is_not_true_any_more_once_it_goes_on(
    left: TrainConfig,
) -> None:
    assert left.run_dir is not None
    storage = LocalStorage(Path(left.run_dir))
    write_json(storage, "summary.json", {"status": "interrupted", "recoveries": [1]})
    prepared = prepare(left, resume=Resume(left.run_dir))
    assert prepared.before is not None
    assert prepared.before.summary == {"status": "interrupted", "recoveries": [1]}
    begin(prepared)
    said = json.loads(storage.read("summary.json"))
    assert said == {"status": "running", "recoveries": [1]}


def test_a_summary_that_is_damaged_does_not_matter(left: TrainConfig) -> None:
    assert left.run_dir is not None
    LocalStorage(Path(left.run_dir)).write("summary.json", b"{")
    before = prepare(left, resume=Resume(left.run_dir)).before
    assert before is not None
    assert before.summary == {}


def test_snapshots_after_the_one_that_was_gone_back_to_are_abandoned(left: TrainConfig) -> None:
    assert left.run_dir is not None
    storage = LocalStorage(Path(left.run_dir))
    layout = prepare(left, resume=Resume(left.run_dir)).layout.fingerprint
    for number in (1, 2):
        snapshot(storage, number, 10 * number, layout=layout)
    storage.write("snapshots/000003/shard-00000-of-00002.safetensors", b"half")
    assert prepare(left, resume=Resume(left.run_dir)).abandoned == (3,)
    back = prepare(left, resume=Resume(left.run_dir, 0))
    assert sorted(back.abandoned) == [1, 2, 3]
    snapshot(storage, 4, 5, layout=layout)  # of the run that goes on, which it shall keep
    assert sorted(back.abandoned) == [1, 2, 3]
    storage.remove("snapshots/000004")
    begin(back)
    (resumption,) = json.loads(storage.read("config.json"))["resumed"]
    assert sorted(resumption["abandoned"]) == [1, 2, 3]
    again = prepare(left, resume=Resume(left.run_dir))
    assert again.resumed is not None
    assert again.resumed.number == 0
    wanted = prepare(left, resume=Resume(left.run_dir, 2))  # by its number it can be had
    assert wanted.resumed is not None
    assert wanted.resumed.number == 2


def test_another_network_is_refused_before_anything_is_written(left: TrainConfig) -> None:
    assert left.run_dir is not None
    storage = LocalStorage(Path(left.run_dir))
    snapshot(storage, 1, 10, layout="another")
    before = storage.read("config.json")
    with pytest.raises(ConfigError) as caught:
        prepare(left, resume=Resume(left.run_dir))
    assert caught.value.field == "model"
    assert storage.read("config.json") == before


def test_initial_values_that_have_gone_since_do_not_matter(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    first = prepare(tiny(run_dir=str(tmp_path / "first")))
    begin(first)
    source = tmp_path / "weights.pt"
    torch.save(first.task.build_model(first.config, first.n_outputs).state_dict(), source)
    config = tiny(init_from=str(source))
    prepared = prepare(config)
    begin(prepared)
    snapshot(prepared.storage, 0, layout=prepared.layout.fingerprint)
    source.unlink()
    resume = Resume(str(config.run_dir))
    assert prepare(config, resume=resume).config.init_from == str(source)
    other = replace(config, init_from=str(tmp_path / "other.pt"))
    assert prepare(other, resume=resume).config.init_from == str(source)
    assert prepare(replace(config, init_from=None), resume=resume).config.init_from == str(source)


def test_the_parts_of_the_configuration_are_those(tiny: Callable[..., TrainConfig]) -> None:
    kinds = (
        ModelConfig,
        DataConfig,
        OptimizerConfig,
        ScheduleConfig,
        AveragingConfig,
        ReplicaConfig,
        ClusterConfig,
        SnapshotConfig,
    )
    assert tuple(type(getattr(tiny(), part)) for part in PARTS) == kinds
