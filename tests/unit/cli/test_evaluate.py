"""``distbelief evaluate`` and ``distbelief export``: what they print, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distbelief import cli
from distbelief.config import DataConfig, ModelConfig, TrainConfig
from distbelief.models.registry import build
from distbelief.product.weights import Trained, to_bytes

NETWORK = ModelConfig(width=0.0625, lrn=False, heads=False)
CLASSES = ("bright", "dark")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: ``run``, ``a.safetensors``, and images, some of which do not fit."""
    monkeypatch.chdir(tmp_path)
    for name in ("images/train", "images/val", "without/train", "others/train", "others/val"):
        for label, of in enumerate(("sun", "moon") if "others" in name else CLASSES):
            (tmp_path / name / of).mkdir(parents=True)
            for i in range(3):
                picture = Image.new("RGB", (20, 20), (250 - 200 * label - i,) * 3)
                picture.save(tmp_path / name / of / f"{i}.png")
    (tmp_path / "images" / "val" / "dark" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, seed, classes in (("a", 0, CLASSES), ("b", 1, CLASSES), ("c", 2, ("up", "down"))):
        model = build(NETWORK, classes=2, image_size=16, seed=seed)
        trained = Trained(
            model=model,
            name=name,
            network=NETWORK,
            classes=classes,
            n_outputs=2,
            image_size=16,
            normalize="unit",
            weights="averaged",
        )
        (tmp_path / f"{name}.safetensors").write_bytes(to_bytes(trained))
    (tmp_path / "run").mkdir()
    config = TrainConfig(model=NETWORK, data=DataConfig(data=str(tmp_path / "images")))
    record = {"config": config.to_dict(), "classes": CLASSES, "n_outputs": 2}
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    (tmp_path / "run" / "model.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    (tmp_path / "text.safetensors").write_text("Dear reader, this is no model at all.")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    return tmp_path


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["evaluate", *arguments, "--loaders", "0", "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, "run")
    assert (found["n_examples"], found["skipped"], found["crops"]) == (5, 1, 1)
    assert found["skipped_images"] == [str(here / "images" / "val" / "dark" / "2.png")]
    assert [c["class"] for c in found["classes"]] == ["bright", "dark"]
    assert [c["n"] for c in found["classes"]] == [3, 2]
    assert [sum(row) for row in found["confusion"]] == [3, 2]
    assert found["models"][0]["name"] == "run/model.safetensors"
    again = evaluated(capsys, "a.safetensors", "--data", "images", "--batch-size", "2")
    assert (again["top1"], again["loss"]) == (found["top1"], pytest.approx(found["loss"], 1e-6))
    train = evaluated(capsys, "run", "--split", "train", "--crops", "10", "--threads", "1")
    assert (train["n_examples"], train["crops"]) == (6, 10)
    both = evaluated(capsys, "run", "b.safetensors")
    assert len(both["models"]) == 2


def test_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "b.safetensors", "--loaders", "0"]
    assert cli.main(["evaluate", *arguments]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split() == ["top-1", "top-5", "loss"]
    assert [line.split("  ")[-1] for line in lines[1:4]] == [
        "run/model.safetensors",
        "b.safetensors",
        "all together",
    ]
    assert "100.00%" in lines[1]  # of two classes, the true one is always among the first five
    assert lines[4].startswith("worst classes: ")
    assert lines[5].startswith("5 images, the central crop of each, averaged weights, in ")
    assert lines[6].startswith("1 image was skipped")
    assert lines[7].endswith("2.png")
    assert printed.err == ""


def test_export(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "run", "--output", "out.safetensors"]) == 0
    assert capsys.readouterr().out.startswith("out.safetensors: ")
    assert cli.main(["export", "run", "--output", "out.safetensors"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    again = ["export", "a.safetensors", "--output", "out.safetensors", "--overwrite", "--json"]
    assert cli.main(again) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["max_relative_error"] == 0.0
    assert figures["nbytes"] == (here / "out.safetensors").stat().st_size


BAD = [
    (["evaluate"], "name a run's folder or a file of weights"),
    (["evaluate", "nowhere"], "nowhere: is not there"),
    (["evaluate", "nowhere.safetensors"], "nowhere.safetensors: is not there"),
    (["evaluate", "folder"], "folder: is no run's folder"),
    (["evaluate", "text.safetensors"], "text.safetensors: is not a safetensors file"),
    (["evaluate", "a.safetensors"], "--data: name the folder of the images"),
    (["evaluate", "run", "--crops", "5"], "--crops: must be 1, 10 or 144, not 5"),
    (["evaluate", "run", "--batch-size", "0"], "--batch-size: must be at least 1"),
    (["evaluate", "run", "--threads", "0"], "--threads: must be at least 1"),
    (["evaluate", "run", "--loaders", "-1"], "--loaders: must be at least 0"),
    (["evaluate", "run", "--device", "cuda:99"], "has no CUDA device 99"),
    (["evaluate", "run", "--device", "gpu"], "--device: must be auto, cpu or cuda"),
    (["evaluate", "run", "--weights", "latest"], "nor a snapshot yet"),
    (["evaluate", "a.safetensors", "--weights", "latest"], "name its run's folder"),
    (["evaluate", "run", "--data", "nowhere"], "nowhere: does not exist"),
    (["evaluate", "run", "--data", "without"], "has no val/: add val/CLASS/*.jpg"),
    (["evaluate", "run", "--data", "others"], "has other classes than run/model.safetensors"),
    (["evaluate", "run", "c.safetensors"], "has other classes than run/model.safetensors"),
    (["evaluate", "foo://run"], "Protocol not known: foo"),
    (["export", "nowhere", "--output", "x"], "nowhere: is not there"),
    (["export", "run", "--output", "folder"], "--output: folder is a folder"),
    (["export", "run", "--output", "a.safetensors"], "--output: a.safetensors is there already"),
    (["export", "run", "--output", "nowhere/x"], "--output: there is no folder nowhere"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=lambda v: " ".join(v)[:40])
def test_bad_usage(
    here: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_progress_goes_to_a_terminal_alone(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    quiet: Callable[[], bool] = lambda: True  # noqa: E731
    monkeypatch.setattr(sys.stderr, "isatty", quiet, raising=False)
    evaluated_ = cli.main(["evaluate", "run", "--loaders", "0", "--batch-size", "4", "--json"])
    printed = capsys.readouterr()
    assert evaluated_ == 0
    assert json.loads(printed.out)["n_examples"] == 5
    assert "4 of 6 images" in printed.err
    assert printed.err.endswith("\r\033[K")
