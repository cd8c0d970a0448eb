"""What is settled before a run begins."""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distbelief.config import DataConfig, ReplicaConfig, TrainConfig
from distbelief.data.dataset import open_data
from distbelief.errors import ConfigError
from distbelief.items import ItemPlan
from distbelief.runtime import prepare as module
from distbelief.runtime.prepare import discard, plan_of, prepare

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


def test_the_record_has_the_versions_of_what_is_installed(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version

    def without_ray(package: str) -> str:
        if package == "ray":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", without_ray)
    run = prepare(tiny()).run_dir
    found = json.loads((run / "config.json").read_text())["versions"]
    assert found.keys() == {"distbelief", "torch", "grpcio", "protobuf", "numpy"}
    assert found["torch"] == version("torch")


def test_a_folder_that_cannot_be_written_to_is_told(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, value: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "write_json", refuse)
    config = tiny()
    with pytest.raises(ConfigError) as caught:
        prepare(config)
    assert caught.value.field == "run_dir"
    assert str(caught.value) == f"--run-dir: cannot write to {config.run_dir}: Permission denied"


def written(run: Path) -> None:
    (run / "pushes").mkdir(parents=True)
    (run / "pushes" / "shard-00000-of-00001.0001.jsonl").write_text("{}\n")
    (run / "config.json").write_text("{}")
    (run / "events.jsonl").write_text("")


def test_what_never_began_is_taken_back(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    written(run)
    discard(run)
    assert not run.exists()
    assert run.parent.exists()
    discard(run)  # nothing there: nothing to do


def test_what_else_lies_in_the_folder_stays(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    discard(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_prepare_writes_can_be_taken_back(tiny: Callable[..., TrainConfig]) -> None:
    run = prepare(tiny()).run_dir
    assert run.exists()
    discard(run)
    assert not run.exists()
