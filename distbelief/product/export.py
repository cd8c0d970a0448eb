"""A trained model for other programs, compared with its source before it is there."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from distbelief.data.normalize import normalization
from distbelief.errors import ConfigError, RunError, UsageError
from distbelief.models.losses import main_logits
from distbelief.product.weights import Trained, parse, to_bytes
from distbelief.replica.step import ImageInput
from distbelief.storage import storage_at

if TYPE_CHECKING:
    import onnx

Format = Literal["safetensors", "onnx"]

TOLERANCE = 1e-4
"""Largest difference of outputs, relative to the largest output, that arithmetic may explain."""
CHECKED_BATCHES = (2, 3)
"""Batch sizes of the comparison: a file that is bound to one size fails at the other."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

_INPUT, _OUTPUT = "images", "logits"

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written.

    Attributes:
        path: Where it is.
        nbytes: Its size.
        max_relative_error: Largest difference between its outputs and the source's, relative to the
            largest of these.
    """

    path: Path
    nbytes: int
    max_relative_error: float


def export(
    trained: Trained, output: Path, format: Format = "safetensors", *, overwrite: bool = False
) -> Exported:
    """Writes a model, after its outputs were found to be those of the source. Blocks.

    ``safetensors`` has parameters and buffers by name, with the metadata that :func:`load` reads.
    ``onnx`` has the network in evaluation mode, from normalised images ``(n, 3, size, size)
    float32`` named ``images`` to ``logits``, ``n`` of any size; its metadata say how images are
    normalised and what the classes are.

    Args:
        trained: The model, which is moved to the CPU.
        output: The file; it appears whole or not at all.
        format: What to write.
        overwrite: Whether it may replace an existing file.

    Raises:
        UsageError: the file is there already or cannot be written, or packages are missing.
        RunError: the network cannot be exported, or the file's outputs differ; nothing is written.
    """
    if format not in get_args(Format):
        raise ConfigError("format", f"must be safetensors or onnx, not {format!r}")
    _check_output(output, overwrite)
    trained.model.cpu().eval()
    if format == "onnx":
        _require_onnx()
        content = _onnx_bytes(trained)
        found = _onnx_run(content)
    else:
        content = to_bytes(trained)
        found = _torch_run(parse(content, str(output)))
    error = _max_relative_error(trained, found)
    # Not "error > TOLERANCE": that is false for NaN.
    if not error <= TOLERANCE:
        raise RunError(
            f"the exported network differs from {trained.name} by {error:.1e} of the largest "
            f"output, more than {TOLERANCE:.0e}; nothing was written to {output}"
        )
    try:
        storage_at(output.parent).write(output.name, content)
    except OSError as problem:
        raise ConfigError("output", f"cannot write {output}: {problem.strerror}") from problem
    return Exported(output, len(content), error)


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise ConfigError("output", f"{output} is a folder; name a file")
    if output.exists() and not overwrite:
        raise ConfigError("output", f"{output} is there already; add --overwrite to replace it")
    if not output.absolute().parent.is_dir():
        raise ConfigError("output", f"there is no folder {output.parent}; make it first")


def _require_onnx() -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--format onnx needs {' and '.join(missing)}: pip install 'distbelief[export]'"
        )


def _max_relative_error(trained: Trained, found: Run) -> float:
    """The largest over the checked batches; infinite where shapes differ, NaN where outputs are."""
    expected = _torch_run(trained)
    images = ImageInput(trained.normalize, torch.device("cpu"), trained.channels_last)
    rng = np.random.default_rng(0)
    errors = []
    for n in CHECKED_BATCHES:
        shape = (n, trained.image_size, trained.image_size, 3)
        batch = images(rng.integers(0, 256, shape, dtype=np.uint8))
        ours, theirs = expected(batch), found(batch)
        if ours.shape != theirs.shape:
            return math.inf
        scale = float(ours.abs().max())
        errors.append(float((theirs - ours).abs().max()) / scale if scale else math.nan)
    return max(errors, key=lambda error: (math.isnan(error), error))


def _torch_run(trained: Trained) -> Run:
    def run(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            return main_logits(trained.model(batch))

    return run


def _onnx_run(content: bytes) -> Run:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    # It has no exception that all of these are.
    failed = (
        failures.Fail,
        failures.InvalidArgument,
        failures.InvalidGraph,
        failures.NotImplemented,
        failures.RuntimeException,
    )

    def run(batch: Tensor) -> Tensor:
        try:
            session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
            outputs = session.run([_OUTPUT], {_INPUT: batch.contiguous().numpy()})
        except failed as error:
            reason = str(error).strip().partition("\n")[0]
            raise RunError(f"what was exported to ONNX does not run: {reason}") from error
        return torch.from_numpy(outputs[0])

    return run


class _MainLogits(torch.nn.Module):
    """A network that returns nothing but its main logits."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return main_logits(self.model(images))


def _onnx_bytes(trained: Trained) -> bytes:
    from torch.onnx.errors import OnnxExporterError

    example = torch.zeros(CHECKED_BATCHES[0], 3, trained.image_size, trained.image_size)
    try:
        # What the exporter warns of is its own business: outputs are compared.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _MainLogits(trained.model).eval(),
                (example,),
                dynamo=True,
                verbose=False,
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("n")},),
            )
    except OnnxExporterError as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunError(f"{trained.name} cannot be exported to ONNX: {reason}") from error
    assert program is not None  # with dynamo=True there is always one
    proto: onnx.ModelProto = program.model_proto
    for key, value in _onnx_metadata(trained).items():
        proto.metadata_props.add(key=key, value=value)
    return bytes(proto.SerializeToString())


def _onnx_metadata(trained: Trained) -> dict[str, Any]:
    mean, deviation = normalization(trained.normalize)
    return {
        **trained.metadata,
        "input": "RGB, (pixel - mean) / deviation, pixels, mean and deviation in units of 0 to 255",
        "mean": json.dumps(mean),
        "deviation": json.dumps(deviation),
    }
