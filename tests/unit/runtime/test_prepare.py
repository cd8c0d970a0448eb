"""What is settled before a run begins."""

import importlib.metadata
import json
import os
import pickle
import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from distbelief.config import ClusterConfig, DataConfig, ReplicaConfig, TrainConfig
from distbelief.coordinator.snapshots import Manifest
from distbelief.data.dataset import open_data
from distbelief.errors import ConfigError
from distbelief.items import ItemPlan
from distbelief.layout import Layout
from distbelief.runtime import beginning
from distbelief.runtime.beginning import begin, discard
from distbelief.runtime.folder import PROBE, Probe
from distbelief.runtime.prepare import Prepared, plan_of, prepare
from distbelief.runtime.resume import Resumed
from distbelief.storage import LocalStorage, Storage, write_json
from distbelief.types import ShardFile, ShardState

DATA = open_data(DataConfig(image_size=16, drawn_train=100, drawn_val=10), 0)


def config(batch_size: int = 10, epochs: float = 1.0, **changes: int) -> TrainConfig:
    return TrainConfig(replica=ReplicaConfig(batch_size=batch_size), epochs=epochs, **changes)


def test_the_plan_is_the_configurations() -> None:
    assert plan_of(config(32, 1.5, max_examples=120), DATA) == ItemPlan(
        n_examples=100, batch_size=32, n_push=1, n_items=5
    )


@pytest.mark.parametrize("max_examples", [None, 50])
def test_a_run_of_no_items_is_refused(max_examples: int | None) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(config(epochs=0.004, max_examples=max_examples), DATA)
    assert caught.value.field == "epochs"
    assert str(caught.value) == "--epochs: 0.004 of 100 images is not one image"


def test_a_run_of_one_image_is_a_run() -> None:
    assert plan_of(config(epochs=0.01), DATA).n_items == 1


def test_a_batch_of_more_than_all_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="101 is more than the 100 training images") as caught:
        plan_of(config(101), DATA)
    assert caught.value.field == "batch_size"


def test_prepare_writes_nothing(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    prepared = prepare(tiny(), 1000.0)
    assert prepared.storage == LocalStorage(tmp_path / "run")
    assert prepared.config.run_dir == str(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert (prepared.started_at, prepared.incarnation, prepared.first_replica) == (1000.0, 1, 0)
    assert (prepared.before, prepared.resumed, prepared.notes) == (None, None, ())
    assert (prepared.abandoned, prepared.frozen) == ((), None)


def test_two_runs_of_one_second_have_two_folders(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(tiny(), run_dir=None)
    names = []
    for _ in range(3):
        prepared = prepare(config, 86400.0 * 365)
        begin(prepared)
        names.append(Path(prepared.storage.url).relative_to(tmp_path))
    first = names[0]
    assert first.parent == Path("runs")
    assert re.fullmatch(r"tiny-\d{8}-\d{6}", first.name)
    assert names[1:] == [Path(f"{first}-2"), Path(f"{first}-3")]


def test_the_record_has_the_versions_of_what_is_installed(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version

    def without_ray(package: str) -> str:
        if package == "ray":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", without_ray)
    prepared = prepare(tiny())
    begin(prepared)
    found = json.loads(prepared.storage.read("config.json"))["versions"]
    assert found.keys() == {"distbelief", "torch", "grpcio", "protobuf", "numpy"}
    assert found["torch"] == version("torch")


def test_the_record_has_all_that_a_resumption_needs(tiny: Callable[..., TrainConfig]) -> None:
    prepared = prepare(tiny(), 1000.5)
    begin(prepared)
    record = json.loads(prepared.storage.read("config.json"))
    assert TrainConfig.from_dict(record["config"]) == prepared.config
    assert record["started_at"] == 1000.5
    assert record["layout"] == prepared.layout.fingerprint
    assert record["parameters"] == prepared.layout.size
    assert record["data_digests"] == list(prepared.digests)
    assert ItemPlan(**record["plan"]) == prepared.plan
    assert "resumed" not in record


def test_a_folder_that_cannot_be_written_to_is_told(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(storage: Storage, name: str, value: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(beginning, "write_json", refuse)
    config = tiny()
    prepared = prepare(config)
    with pytest.raises(ConfigError) as caught:
        begin(prepared)
    assert caught.value.field == "run_dir"
    assert str(caught.value) == f"--run-dir: cannot write to {config.run_dir}: Permission denied"


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        ".probe",
        "events.jsonl",
        "summary.json",
        "model.safetensors",
        "frozen.safetensors",
        "pushes/shard-00000-of-00001.0001.jsonl",
        "snapshots/000000/manifest.json",
        "tensorboard/events",
    ],
)
def test_a_folder_that_holds_a_run_is_not_taken(
    name: str, tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny()
    LocalStorage(tmp_path / "run").write(name, b"{}")
    with pytest.raises(ConfigError, match="holds a run already") as caught:
        prepare(config)
    assert caught.value.field == "run_dir"
    assert f"--resume {config.run_dir}" in str(caught.value)


def test_a_remote_folder_that_holds_a_run_is_not_taken(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(run_dir=f"memory://{uuid.uuid4()}/run")
    prepared = prepare(config)
    begin(prepared)
    write_json(prepared.storage, "snapshots/000000/manifest.json", manifest_of(0).to_dict())
    with pytest.raises(ConfigError, match="holds a run already"):
        prepare(config)


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_a_run_that_was_killed_before_its_first_snapshot_is_in_nobodys_way(
    kind: str, tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    folder = tmp_path / "run" if kind == "local" else f"memory://{uuid.uuid4()}/run"
    config = tiny(run_dir=str(folder))
    killed = prepare(config)
    begin(killed)
    storage = killed.storage
    for name in ("events.jsonl", "pushes/shard-00000-of-00001.0001.jsonl"):
        log = storage.open_log(name, new=True)
        log.write("{}\n")
        log.close()
    storage.write("snapshots/000000/shard-00000-of-00001.safetensors", b"half")
    storage.write("notes.txt", b"mine")
    again = prepare(config)
    assert storage.logs("") == ["events.jsonl"]  # nothing is touched yet
    begin(again)
    assert [n for n in storage.names() if not n.startswith(".")] == ["config.json", "notes.txt"]
    assert storage.read(PROBE).decode() == again.probe.word


@pytest.mark.parametrize("content", [b"{}", b"[]", b"{", b'{"config": {}, "plan": {}}'])
def test_a_record_that_is_not_ours_is_somebodys(
    content: bytes, tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match="holds a run already"):
        prepare(tiny())


def test_a_run_whose_only_manifest_is_damaged_is_not_taken_for_one_that_never_began(
    tiny: Callable[..., TrainConfig],
) -> None:
    prepared = prepare(tiny())
    begin(prepared)
    prepared.storage.write("snapshots/000000/manifest.json", b"{")
    with pytest.raises(ConfigError, match="holds a run already"):
        prepare(tiny())


def test_a_folder_with_other_things_in_it_is_taken(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    begin(prepare(tiny()))
    assert (tmp_path / "run" / "config.json").exists()


def test_a_filesystem_that_there_is_none_of_is_told(tiny: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match="cannot use nonsense://x") as caught:
        prepare(tiny(run_dir="nonsense://x"))
    assert caught.value.field == "run_dir"


def test_a_disk_without_room_for_the_first_snapshot_is_told_before_anything_starts(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = prepare(tiny()).layout.size
    needed = 16 * size + (1 << 20)
    for free, enough in ((needed - 1, False), (needed, True), (None, True)):
        monkeypatch.setattr(LocalStorage, "free_nbytes", lambda self, free=free: free)
        if enough:
            prepare(tiny())
            continue
        with pytest.raises(ConfigError, match="make room, or take another folder") as caught:
            prepare(tiny())
        assert caught.value.field == "run_dir"


# The probe


def test_a_process_that_sees_the_folder_passes(tiny: Callable[..., TrainConfig]) -> None:
    prepared = prepare(tiny())
    begin(prepared)
    pickle.loads(pickle.dumps(prepared.probe)).check()


@pytest.mark.parametrize("seen", [None, b"", b"another run's", b"\xff\xfe"])
def test_a_host_that_sees_another_folder_is_named(seen: bytes | None, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    if seen is not None:
        storage.write(PROBE, seen)
    with pytest.raises(ConfigError, match="give a folder or URL that every host can reach") as e:
        Probe(storage, "word").check()
    assert e.value.field == "run_dir"
    assert os.uname().nodename in str(e.value)


# Taking back


def prepared_in(storage: Storage, before: Resumed | None = None, incarnation: int = 1) -> Prepared:
    layout = Layout.of(nn.Linear(2, 3).named_parameters())
    return Prepared(
        config=TrainConfig(),
        plan=ItemPlan(n_examples=10, batch_size=10, n_push=1, n_items=1),
        layout=layout,
        initial=torch.zeros(layout.size),
        n_outputs=3,
        classes=("a",),
        digests=("d",),
        storage=storage,
        started_at=0.0,
        probe=Probe(storage, "word"),
        before=before,
        incarnation=incarnation,
    )


def written(storage: Storage) -> None:
    """All that a run that ends before its training may leave."""
    for name in ("config.json", PROBE, "summary.json", "snapshots/000000/manifest.json"):
        storage.write(name, b"{}")
    for name in ("events.jsonl", "pushes/shard-00000-of-00001.0001.jsonl"):
        log = storage.open_log(name, new=True)
        log.write("{}\n")
        log.close()


def test_what_never_began_is_taken_back(storage: Storage) -> None:
    written(storage)
    discard(prepared_in(storage), None)
    assert storage.names() == []
    discard(prepared_in(storage), None)  # nothing there: nothing to do


def test_what_else_lies_in_the_folder_stays(storage: Storage) -> None:
    written(storage)
    storage.write("notes.txt", b"mine")
    discard(prepared_in(storage), None)
    assert storage.names() == ["notes.txt"]


def test_of_a_run_that_was_to_be_resumed_only_what_is_new_is_taken_back(storage: Storage) -> None:
    written(storage)
    record = {"config": {}, "resumed": [{"snapshot": 0}]}
    before = Resumed(
        storage=storage,
        manifest=manifest_of(0),
        record=record,
        summary={"status": "finished", "recoveries": []},
        incarnation=2,
        first_replica=3,
        epochs_told=0,
        elapsed_s=5.0,
        notes=(),
    )
    new = storage.open_log("pushes/shard-00000-of-00001.0002.jsonl", new=True)
    new.write("{}\n")
    new.close()
    discard(prepared_in(storage, before, incarnation=2), None)
    assert storage.logs("pushes") == ["shard-00000-of-00001.0001.jsonl"]
    assert json.loads(storage.read("config.json")) == record
    assert not storage.exists(PROBE)
    assert storage.exists("snapshots/000000/manifest.json")
    assert json.loads(storage.read("summary.json")) == before.summary
    first, end = storage.read_log("events.jsonl").splitlines()
    assert (first, json.loads(end)["kind"], json.loads(end)["status"]) == ("{}", "end", "finished")


def test_what_cannot_be_taken_back_does_not_hide_why_it_was_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    written(storage)

    def fail(storage: Storage, name: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LocalStorage, "remove", fail)
    discard(prepared_in(storage), None)


def test_what_begin_writes_can_be_taken_back(tiny: Callable[..., TrainConfig]) -> None:
    prepared = prepare(tiny())
    begin(prepared)
    assert prepared.storage.names() == ["config.json"]
    discard(prepared, None)
    assert list(Path(prepared.storage.url).iterdir()) == []


# The shards' specs


def manifest_of(number: int, n_shards: int = 2, size: int = 9) -> Manifest:
    files = []
    for shard in range(n_shards):
        begin_, end = shard * size // n_shards, (shard + 1) * size // n_shards
        state = ShardState(
            shard=shard,
            incarnation=1,
            begin=begin_,
            end=end,
            loaded=True,
            clock=4,
            examples=40,
            skipped=0,
            applied=((0, 4),),
            set_aside={},
            repeated=0,
        )
        name = f"shard-{shard:05d}-of-{n_shards:05d}.safetensors"
        files.append(ShardFile(name=name, nbytes=1, sha256="", n_shards=n_shards, state=state))
    return Manifest(
        number=number,
        even=True,
        examples_applied=40,
        layout="",
        n_parameters=size,
        elapsed_s=1.0,
        files=tuple(files),
    )


def test_a_shard_is_told_its_range_and_the_files_that_have_a_part_of_it(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    manifest = manifest_of(7)  # ranges [0, 4) and [4, 9)
    before = Resumed(
        storage=storage,
        manifest=manifest,
        record={},
        summary={},
        incarnation=5,
        first_replica=0,
        epochs_told=0,
        elapsed_s=0.0,
        notes=(),
    )
    prepared = prepared_in(storage, before, incarnation=5)
    config = replace(prepared.config, cluster=ClusterConfig(replicas=6, shards=3))
    prepared = replace(prepared, config=config, n_ports=6)
    specs = [prepared.shard_spec(index) for index in range(3)]
    assert [(s.index, s.n_shards, s.begin, s.end) for s in specs] == [
        (0, 3, 0, 3),
        (1, 3, 3, 6),
        (2, 3, 6, 9),
    ]
    assert {(s.incarnation, s.n_ports, s.storage) for s in specs} == {(5, 6, storage)}
    restores = [s.restore for s in specs]
    assert [r and (r.snapshot, [f.state.shard for f in r.files]) for r in restores] == [
        (7, [0]),
        (7, [0, 1]),
        (7, [1]),
    ]
    assert prepared_in(storage).shard_spec(0).restore is None
