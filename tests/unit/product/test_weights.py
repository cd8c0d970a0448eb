"""Models from files, and what is said of files that hold none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save
from torch import nn

from distbelief.config import AveragingConfig, ModelConfig, TrainConfig
from distbelief.coordinator.snapshots import Manifest
from distbelief.errors import DataError, UsageError
from distbelief.layout import Layout
from distbelief.models.registry import build
from distbelief.product.weights import Trained, fill, load, parse, run_record, to_bytes
from distbelief.server import statefile
from distbelief.types import ShardFile, ShardState

Make = Callable[..., Trained]


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = values(one), values(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


class Tied(nn.Module):
    """Two names for one weight, and statistics that are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight


def test_a_file_gives_back_what_was_written(make_trained: Make, tmp_path: Path) -> None:
    trained = make_trained(3, classes=("a", "b"), n_outputs=4, normalize="caffe", weights="latest")
    path = tmp_path / "model.safetensors"
    path.write_bytes(to_bytes(trained))
    found = load(str(path))
    assert same(found.model, trained.model)
    assert not found.model.training
    for field in dataclasses.fields(Trained):
        if field.name not in ("model", "name"):
            assert getattr(found, field.name) == getattr(trained, field.name)
    assert found.name == str(path)
    weight = next(p for p in found.model.parameters() if p.dim() == 4 and p.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_url(make_trained: Make) -> None:
    trained = make_trained()
    with fsspec.open("memory://product/run/model.safetensors", "wb") as file:
        file.write(to_bytes(trained))
    assert same(load("memory://product/run/model.safetensors").model, trained.model)
    with pytest.raises(DataError, match=r"no config.json"):
        load("memory://product/run")


def test_a_run_has_its_averaged_weights_in_a_file(
    make_trained: Make, write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(TrainConfig(seed=7).to_dict())
    (run / "model.safetensors").write_bytes(to_bytes(make_trained()))
    assert load(str(run)).name == f"{run}/model.safetensors"
    monkeypatch.chdir(run.parent)
    assert load("run/").name == "run/model.safetensors"
    for source in ("run", "run/model.safetensors"):
        found = run_record(source)
        assert found is not None
        assert found[0].seed == 7
        assert found[1]["n_outputs"] == 10


def test_a_file_alone_has_no_run(make_trained: Make, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(to_bytes(make_trained()))
    assert run_record(str(tmp_path / "x.safetensors")) is None


def test_tied_weights_are_written_under_each_name_and_stay_tied(make_trained: Make) -> None:
    network = ModelConfig(model=f"{__name__}:Tied")
    torch.manual_seed(0)
    source = Tied().eval()
    trained = dataclasses.replace(make_trained(), model=source, network=network)
    content = to_bytes(trained)
    assert tensors_of(content).keys() == source.state_dict().keys()
    assert "norm.running_mean" in tensors_of(content)
    model = Tied()
    fill(model, tensors_of(content), "x")
    assert same(model, source)
    assert model.second.weight is model.first.weight


def save_snapshot(run: Path, config: TrainConfig, **vectors: float) -> Layout:
    """Snapshots 3 (whole, of two shards) and 4 (without a manifest); vectors of one value each."""
    model = build(config.model, classes=10, image_size=config.data.image_size, seed=0)
    layout = Layout.of(model.named_parameters(), bias_rate=config.optimizer.bias_rate)
    folder = run / statefile.snapshot_folder(3)
    folder.mkdir(parents=True)
    (run / statefile.snapshot_folder(4)).mkdir()
    files = []
    for shard, (begin, end) in enumerate(layout.shard_ranges(2)):
        tensors = {name: torch.full((end - begin,), value) for name, value in vectors.items()}
        content = bytes(statefile.image(tensors, {}))
        name = statefile.file_name(shard, 2)
        (folder / name).write_bytes(content)
        state = ShardState(
            shard=shard,
            incarnation=1,
            begin=begin,
            end=end,
            loaded=True,
            clock=0,
            examples=0,
            skipped=0,
            applied=(),
            set_aside={},
            repeated=0,
        )
        digest = hashlib.sha256(content).hexdigest()
        files.append(
            ShardFile(name=name, nbytes=len(content), sha256=digest, n_shards=2, state=state)
        )
    manifest = Manifest(
        number=3,
        even=False,
        examples_applied=0,
        layout=layout.fingerprint,
        n_parameters=layout.size,
        elapsed_s=0.0,
        files=tuple(files),
    )
    (folder / "manifest.json").write_text(json.dumps(manifest.to_dict()))
    return layout


TINY_RUN = TrainConfig(model=ModelConfig(width=0.0625, lrn=False, heads=False))


@pytest.mark.parametrize(
    ("config", "weights", "value", "called"),
    [
        (TINY_RUN, "averaged", 2.0, "averaged"),
        (TINY_RUN, "latest", 1.0, "latest"),
        (
            dataclasses.replace(TINY_RUN, averaging=AveragingConfig(average="none")),
            "averaged",
            2.0,
            "latest",
        ),
    ],
)
def test_a_run_that_goes_on_has_its_newest_snapshot(
    write_run: Callable[..., Path], config: TrainConfig, weights: Any, value: float, called: str
) -> None:
    run = write_run(config.to_dict())
    save_snapshot(run, config, parameters=1.0, average=2.0)
    trained = load(str(run), weights)
    assert all(bool((p == value).all()) for p in trained.model.parameters())
    assert trained.weights == called
    assert trained.classes[0] == "arrow"
    assert not trained.model.training


def test_snapshots_that_will_not_do(write_run: Callable[..., Path]) -> None:
    empty = write_run(TINY_RUN.to_dict(), "empty")
    with pytest.raises(DataError, match=r"neither model.safetensors nor a snapshot"):
        load(str(empty))
    other = write_run(TINY_RUN.to_dict(), "other", n_outputs=11)
    save_snapshot(other, TINY_RUN, parameters=1.0)
    with pytest.raises(DataError, match="of another network"):
        load(str(other), "latest")
    damaged = write_run(TINY_RUN.to_dict(), "damaged")
    save_snapshot(damaged, TINY_RUN, parameters=1.0)
    file = damaged / "snapshots" / "000003" / "shard-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"shard-00001-of-00002.* is damaged"):
        load(str(damaged), "latest")
    (damaged / "snapshots" / "000003" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json: is damaged"):
        load(str(damaged), "latest")
    network = dataclasses.replace(TINY_RUN.model, model="torchvision.models:shufflenet_v2_x0_5")
    statistics = dataclasses.replace(TINY_RUN, model=network)
    run = write_run(statistics.to_dict(), "statistics")
    save_snapshot(run, statistics, parameters=1.0)
    with pytest.raises(DataError, match="running statistics"):
        load(str(run), "latest")


def test_what_is_no_model(make_trained: Make, tmp_path: Path) -> None:
    def said(source: Path | str, weights: Any = "averaged") -> str:
        with pytest.raises(UsageError) as caught:
            load(str(source), weights)
        text = str(caught.value)
        assert "\n" not in text
        return text

    assert "is not there" in said(tmp_path / "nothing")
    assert "is not there" in said(tmp_path / "nothing.safetensors")
    assert "is not there" in said(tmp_path)  # an empty folder
    path = tmp_path / "model.safetensors"
    path.write_text("a text")
    assert "is no run's folder" in said(tmp_path)
    assert "not a safetensors file" in said(path)
    path.write_bytes(b"")
    assert "not a safetensors file" in said(path)
    content = to_bytes(make_trained())
    path.write_bytes(content[:-1])
    assert "is damaged" in said(path)
    path.write_bytes(content)
    assert "for the latest ones name its run's folder" in said(path, "latest")
    (tmp_path / "config.json").write_text('{"config": {"nonsense": 1}}')
    with pytest.raises(DataError, match=r"config.json: is no run's record"):
        run_record(str(tmp_path))
    other = tmp_path / "model.bin"
    other.write_text("a text")
    assert "not a safetensors file" in said(other)
    assert "Protocol not known" in said("nonsense://model")


def test_metadata_and_shapes_that_do_not_fit(make_trained: Make) -> None:
    trained = make_trained()
    tensors = tensors_of(to_bytes(trained))
    metadata = trained.metadata

    def said(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None) -> str:
        with pytest.raises(DataError) as caught:
            parse(save(tensors, metadata=metadata), "the file")
        return str(caught.value)

    assert said(tensors, None) == "the file: was not written by a run: its metadata lack 'model'"
    lacking = {k: v for k, v in metadata.items() if k != "classes"}
    assert "lack 'classes'" in said(tensors, lacking)
    for change in (
        {"model": '{"depth": 3}'},
        {"model": '{"width": -1}'},
        {"model": "[1]"},
        {"classes": "3"},
        {"image_size": "big"},
        {"normalize": "none"},
        {"weights": "best"},
    ):
        assert "metadata that this version cannot read" in said(tensors, metadata | change)
    unknown = json.dumps(dataclasses.asdict(ModelConfig(model="no_such_package:f")))
    assert "cannot be built here: cannot import 'no_such_package'" in said(
        tensors, metadata | {"model": unknown}
    )
    name = next(iter(tensors))
    fewer = {k: v for k, v in tensors.items() if k != name}
    assert said(fewer, metadata) == f"the file: does not fit its network: it has no {name}"
    more = tensors | {"more": torch.zeros(1)}
    assert said(more, metadata) == "the file: does not fit its network, which has no more"
    shape = tuple(tensors[name].shape)
    wrong = tensors | {name: torch.zeros(2, 3)}
    assert f"{name} has the shape (2, 3), not {shape}" in said(wrong, metadata)
