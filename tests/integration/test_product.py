"""What a run has trained is evaluated as it was in the run, and exported."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from distbelief import cli
from distbelief.config import TrainConfig
from distbelief.data.dataset import open_data
from distbelief.data.transforms import EvalTransform
from distbelief.observe.view import Lines
from distbelief.product.evaluate import evaluate
from distbelief.product.images import open_images
from distbelief.product.weights import Trained, load
from distbelief.replica.step import ImageInput
from distbelief.runtime.train import train


@pytest.fixture
def runs(tiny: Callable[..., TrainConfig], tmp_path: Path) -> tuple[Path, Path]:
    """Two short runs with other seeds, on the same drawn shapes but for the noise in them."""
    folders = (tmp_path / "one", tmp_path / "two")
    for seed, folder in enumerate(folders):
        train(tiny(seed=seed, run_dir=str(folder), epochs=1), Lines(lambda line: None))
    return folders


def by_hand(trained: Trained, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities ``(n, classes)`` and labels of the run's validation images, one at a time."""
    val = open_data(config.data, config.seed).val
    assert val is not None
    transform = EvalTransform(trained.image_size)
    to_input = ImageInput(trained.normalize, torch.device("cpu"), trained.channels_last)
    rows, labels = [], []
    for index in range(val.n_examples):
        image, label = val.read(index)
        pixels = transform(image, np.random.default_rng(0))  # type: ignore[arg-type]
        with torch.inference_mode():
            rows.append(trained.model(to_input(pixels[None].copy())).softmax(dim=1))
        labels.append(label)
    return torch.cat(rows), torch.tensor(labels)


def test_a_run_is_evaluated_as_it_was(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((runs[0] / "summary.json").read_text())["validation"]
    for batch_size in (1, 7, 100):
        arguments = [str(runs[0]), "--batch-size", str(batch_size), "--loaders", "0", "--json"]
        assert cli.main(["evaluate", *arguments]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["n_examples"] == summary["n_examples"]
        assert found["weights"] == summary["weights"] == "averaged"
        assert (found["top1"], found["top5"]) == (summary["top1"], summary["top5"])
        assert math.isclose(found["loss"], summary["loss"], rel_tol=1e-6)


def test_an_ensemble_of_two_runs(runs: tuple[Path, Path]) -> None:
    models = [load(str(run)) for run in runs]
    config = TrainConfig.from_dict(json.loads((runs[0] / "config.json").read_text())["config"])
    (one, labels), (two, _) = (by_hand(trained, config) for trained in models)
    mean = (one + two) / 2
    for batch_size in (1, 7, 32):
        found = evaluate(models, open_images(models), batch_size=batch_size)
        assert found.top1 == float((mean.argmax(dim=1) == labels).double().mean())
        loss = -float(mean[torch.arange(len(labels)), labels].log().double().mean())
        assert math.isclose(found.loss, loss, rel_tol=1e-6)


def test_the_newest_weights_are_those_of_the_snapshot(runs: tuple[Path, Path]) -> None:
    """The last snapshot's average is the file's; its newest weights are others."""
    run = runs[0]
    averaged, latest = load(str(run)), load(str(run), "latest")
    (run / "model.safetensors").rename(run / "elsewhere")
    from_snapshot = load(str(run))
    for name, parameter in averaged.model.named_parameters():
        assert torch.equal(parameter, from_snapshot.model.get_parameter(name))
    pairs = zip(averaged.model.parameters(), latest.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert latest.weights == "latest"


def test_both_formats(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = load(str(runs[0]))
    batch = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = source.model(batch)
    for form in ("safetensors", "onnx"):
        output = tmp_path / f"out.{form}"
        arguments = [str(runs[0]), "--format", form, "--output", str(output), "--json"]
        assert cli.main(["export", *arguments]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert figures["max_relative_error"] <= 1e-5
        assert figures["nbytes"] == output.stat().st_size
    again = load(str(tmp_path / "out.safetensors"))
    assert dataclasses.replace(again, model=source.model, name=source.name) == source
    with torch.inference_mode():
        assert torch.equal(again.model(batch), expected)
    session = onnxruntime.InferenceSession(
        tmp_path / "out.onnx", providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"images": batch.numpy()})
    assert np.abs(logits - expected.numpy()).max() <= 1e-5 * float(expected.abs().max())
