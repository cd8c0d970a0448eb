"""What is exported does what its source does, or is not there."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from distbelief.config import ModelConfig
from distbelief.data.normalize import normalization
from distbelief.errors import ConfigError, RunError, UsageError
from distbelief.product import export as module
from distbelief.product.export import export
from distbelief.product.weights import Trained, load

Make = Callable[..., Trained]

PAPER = ModelConfig(width=0.125)
"""The paper's network in all but its width: normalisation, heads, channels-last."""


class Branching(nn.Module):
    """Takes another way for some inputs, which no graph can follow."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits that depend on a value."""
        flat = images.flatten(1)[:, :10]
        return flat if bool(images.sum() > 0) else -flat


def test_safetensors(make_trained: Make, tmp_path: Path) -> None:
    trained = make_trained()
    done = export(trained, tmp_path / "out.safetensors")
    assert done.max_relative_error == 0.0
    assert done.nbytes == done.path.stat().st_size
    found = load(str(done.path))
    state = trained.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.model.state_dict().items())
    assert (found.classes, found.network) == (trained.classes, trained.network)


def test_onnx(make_trained: Make, tmp_path: Path) -> None:
    size: int = 224
    normalize: Literal["caffe"] = "caffe"
    trained = make_trained(network=PAPER, image_size=size, normalize=normalize)
    done = export(trained, tmp_path / "out.onnx", "onnx")
    assert done.max_relative_error < 1e-5
    proto = onnx.load(done.path)
    onnx.checker.check_model(proto)
    about = {prop.key: prop.value for prop in proto.metadata_props}
    mean, deviation = normalization(normalize)
    assert json.loads(about["mean"]) == list(mean)
    assert json.loads(about["deviation"]) == list(deviation)
    assert json.loads(about["classes"]) == list(trained.classes)
    assert about["image_size"] == str(size)
    assert not [t.name for t in proto.graph.initializer if "aux" in t.name], "heads were exported"
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.shape[1:], given.type) == ("images", [3, size, size], "tensor(float)")
    pixels = np.random.default_rng(1).integers(0, 256, (5, 3, size, size))
    images = (pixels - np.reshape(mean, (3, 1, 1))) / np.reshape(deviation, (3, 1, 1))
    batch = images.astype(np.float32)
    (logits,) = session.run(["logits"], {"images": batch})
    with torch.no_grad():
        expected = trained.model(torch.from_numpy(batch)).numpy()
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("error", [2e-4, float("nan"), float("inf")])
@pytest.mark.parametrize("format", ["safetensors", "onnx"])
def test_another_output_leaves_no_file(
    make_trained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float, format: Any
) -> None:
    trained = make_trained()

    def wrong(batch: Tensor) -> Tensor:
        logits = original(trained)(batch).clone()
        logits[0, 0] += error * float(logits.abs().max())
        return logits

    original = module._torch_run
    ours = trained.model
    monkeypatch.setattr(module, "_torch_run", lambda t: original(t) if t.model is ours else wrong)
    monkeypatch.setattr(module, "_onnx_run", lambda content: wrong)
    monkeypatch.setattr(module, "_onnx_bytes", lambda trained: b"")
    with pytest.raises(RunError, match="differs from model-0 by") as caught:
        export(trained, tmp_path / "out", format)
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_another_size_must_work(
    make_trained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make_trained()
    original = module._torch_run
    monkeypatch.setattr(module, "_onnx_bytes", lambda trained: b"")
    monkeypatch.setattr(module, "_onnx_run", lambda _: lambda batch: original(trained)(batch[:2]))
    with pytest.raises(RunError, match="by inf of the largest"):
        export(trained, tmp_path / "out.onnx", "onnx")


def test_a_graph_that_does_not_run(
    make_trained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make_trained()
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["images"], ["logits"])],
        "fixed",
        [tensor("images", onnx.TensorProto.FLOAT, [2, 3, 16, 16])],
        [tensor("logits", onnx.TensorProto.FLOAT, [2, 3, 16, 16])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 10
    content = model.SerializeToString()
    monkeypatch.setattr(module, "_onnx_bytes", lambda trained: content)
    monkeypatch.setattr(module, "CHECKED_BATCHES", (3,))
    with pytest.raises(RunError, match="exported to ONNX does not run: "):
        export(trained, tmp_path / "out.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_no_graph_can_hold(make_trained: Make, tmp_path: Path) -> None:
    trained = dataclasses.replace(make_trained(), model=Branching())
    with pytest.raises(RunError, match="model-0 cannot be exported to ONNX: ") as caught:
        export(trained, tmp_path / "out.onnx", "onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_where_it_cannot_write(make_trained: Make, tmp_path: Path) -> None:
    trained = make_trained()
    there = tmp_path / "there"
    there.write_text("something dear")
    for output, said in (
        (there, "is there already; add --overwrite"),
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "nowhere" / "out", "there is no folder"),
    ):
        with pytest.raises(ConfigError, match=f"--output: .*{said}"):
            export(trained, output)
    assert there.read_text() == "something dear"
    export(trained, there, overwrite=True)
    load(str(tmp_path / "there"))
    with pytest.raises(ConfigError, match="--format: must be safetensors or onnx"):
        export(trained, tmp_path / "x", "tflite")  # type: ignore[arg-type]


def test_missing_packages_are_named(
    make_trained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    with pytest.raises(UsageError) as caught:
        export(make_trained(), tmp_path / "x.onnx", "onnx")
    assert str(caught.value) == (
        "--format onnx needs onnxruntime: pip install 'distbelief[export]'"
    )
