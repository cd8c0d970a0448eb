"""A trained model, from the files of its run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save
from torch import Tensor, nn

from distbelief.config import ModelConfig, TrainConfig
from distbelief.errors import ConfigError, DataError, UsageError
from distbelief.evaluation.statistics import has_running_statistics
from distbelief.layout import Layout
from distbelief.models.registry import build
from distbelief.product.frozen import load_frozen
from distbelief.product.snapshot import newest_vector
from distbelief.storage import Storage, storage_at

SUFFIX = ".safetensors"
MODEL_FILE = f"model{SUFFIX}"
RECORD_FILE = "config.json"

WhichWeights = Literal["averaged", "latest"]
Normalize = Literal["caffe", "unit"]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model and what must be known to use it.

    Attributes:
        model: In evaluation mode, on the CPU, with float32 parameters.
        name: What a message calls it: the path or URL that it was loaded from.
        network: How the model was built.
        classes: Class names in the order of the outputs.
        n_outputs: Outputs of the network; those beyond the classes stay unused.
        image_size: Side of the images that it takes, in pixels.
        normalize: What is done with their pixels, see :mod:`distbelief.data.normalize`.
        weights: ``averaged``; or ``latest``, if these were asked for or nothing was averaged.
    """

    model: nn.Module
    name: str
    network: ModelConfig
    classes: tuple[str, ...]
    n_outputs: int
    image_size: int
    normalize: Normalize
    weights: WhichWeights

    @property
    def channels_last(self) -> bool:
        """Whether images are to be channels-last in memory."""
        return self.network.channels_last

    @property
    def metadata(self) -> dict[str, str]:
        """What a file of its weights says of it."""
        return {
            "model": json.dumps(asdict(self.network)),
            "classes": json.dumps(self.classes),
            "n_outputs": str(self.n_outputs),
            "image_size": str(self.image_size),
            "normalize": self.normalize,
            "weights": self.weights,
        }


def load(source: str, weights: WhichWeights = "averaged") -> Trained:
    """Loads a model from a run's folder, or from a ``.safetensors`` file that a run has written.

    Nothing is unpickled. A folder's averaged weights are those of its ``model.safetensors``; while
    there is none yet, and for the latest ones, those of its newest snapshot.

    Args:
        source: Path or fsspec URL.
        weights: The averaged weights or the newest; a file has what it has.

    Raises:
        UsageError: there is no such run or file, it is damaged, or its network cannot be built.
    """
    storage, file = locate(source)
    if file is not None:
        trained = parse(_read(storage, file, source), source)
        if weights == "latest" and trained.weights != "latest":
            problem = "holds the averaged weights; for the latest ones name its run's folder"
            raise DataError(source, problem)
        return trained
    if weights == "averaged" and storage.exists(MODEL_FILE):
        return parse(_read(storage, MODEL_FILE, source), f"{source.rstrip('/')}/{MODEL_FILE}")
    return _from_snapshot(storage, source, weights)


def locate(source: str) -> tuple[Storage, str | None]:
    """The folder that is meant, and the file in it; None if the folder of a run itself is meant.

    Raises:
        UsageError: there is neither, or no filesystem of the URL's kind.
    """
    text = source.rstrip("/")
    folder = _storage(text)
    if not text.endswith(SUFFIX) and folder.exists(RECORD_FILE):
        return folder, None
    above, slash, name = text.rpartition("/")
    parent = _storage(above or slash or ".")
    if text.endswith(SUFFIX) or ("://" not in text and Path(text).expanduser().is_file()):
        return parent, name
    if folder.names():
        raise DataError(source, f"is no run's folder: there is no {RECORD_FILE}")
    raise DataError(source, f"is not there: name a run's folder or a {SUFFIX} file")


def run_record(source: str) -> tuple[TrainConfig, dict[str, Any]] | None:
    """The configuration and the record, ``config.json``, of the run that wrote ``source``.

    None if it is not beside it.

    Raises:
        UsageError: ``source`` is nowhere, or the record is damaged.
    """
    storage, _ = locate(source)
    if not storage.exists(RECORD_FILE):
        return None
    return _record(storage, source)


def parse(content: bytes, name: str) -> Trained:
    """The model whose weights and metadata are ``content``, as a run writes them.

    Args:
        content: A safetensors file.
        name: What a message calls it.

    Raises:
        DataError: it is damaged, or of something else, or its network cannot be built here.
    """
    metadata = _metadata(content, name)
    try:
        tensors = tensors_of(content)
    except SafetensorError as error:
        raise DataError(name, f"is damaged ({error}); take another copy of it") from error
    try:
        network = ModelConfig(**json.loads(metadata["model"]))
        trained = _trained(
            name=name,
            network=network,
            classes=tuple(map(str, json.loads(metadata["classes"]))),
            n_outputs=int(metadata["n_outputs"]),
            image_size=int(metadata["image_size"]),
            normalize=metadata["normalize"],
            weights=metadata["weights"],
        )
    except KeyError as error:
        problem = f"was not written by a run: its metadata lack {error.args[0]!r}"
        raise DataError(name, problem) from error
    except (TypeError, ValueError, ConfigError) as error:
        raise DataError(name, f"has metadata that this version cannot read: {error}") from error
    fill(trained.model, tensors, name)
    return trained


def to_bytes(trained: Trained) -> bytes:
    """The inverse of :func:`parse`; parameters that are tied are written under each name."""
    # Copies, since tied parameters share memory, which the format does not allow.
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in trained.model.state_dict().items()
    }
    return save(state, metadata=trained.metadata)


def fill(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Copies ``tensors`` into the parameters and buffers of the same names, all of them.

    Args:
        model: Keeps its memory and strides.
        tensors: By name; one of several that are tied will do.
        name: What a message calls the tensors.

    Raises:
        DataError: names or shapes differ; the model is as it was.
    """
    state: dict[str, Tensor] = model.state_dict()
    given = {state[n].data_ptr() for n in tensors if n in state}
    for key, tensor in state.items():
        if key not in tensors:
            if tensor.data_ptr() not in given:
                raise DataError(name, f"does not fit its network: it has no {key}")
        elif tensors[key].shape != tensor.shape:
            shapes = f"{tuple(tensors[key].shape)}, not {tuple(tensor.shape)}"
            raise DataError(name, f"does not fit its network: {key} has the shape {shapes}")
    for key in tensors:
        if key not in state:
            raise DataError(name, f"does not fit its network, which has no {key}")
    with torch.no_grad():
        for key, tensor in tensors.items():
            state[key].copy_(tensor)


def _trained(
    *,
    name: str,
    network: ModelConfig,
    classes: tuple[str, ...],
    n_outputs: int,
    image_size: int,
    normalize: str,
    weights: str,
    seed: int = 0,
) -> Trained:
    """A model with the initial values of that seed, so far."""
    if normalize not in get_args(Normalize):
        raise ValueError(f"normalize is {normalize!r}")
    if weights not in get_args(WhichWeights):
        raise ValueError(f"weights is {weights!r}")
    try:
        model = build(network, classes=n_outputs, image_size=image_size, seed=seed)
    except ConfigError as error:
        raise DataError(name, f"its network cannot be built here: {error.problem}") from error
    return Trained(
        model=model.eval(),
        name=name,
        network=network,
        classes=classes,
        n_outputs=n_outputs,
        image_size=image_size,
        normalize=cast(Normalize, normalize),
        weights=cast(WhichWeights, weights),
    )


def _from_snapshot(storage: Storage, source: str, weights: WhichWeights) -> Trained:
    """The model with the vector of the newest snapshot, which needs not be even for that."""
    config, record = _record(storage, source)
    try:
        trained = _trained(
            name=source,
            network=config.model,
            classes=tuple(map(str, record["classes"])),
            n_outputs=int(record["n_outputs"]),
            image_size=config.data.image_size,
            normalize=config.data.normalize,
            weights="latest" if config.averaging.average == "none" else weights,
            seed=config.seed if config.init_seed is None else config.init_seed,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(source, f"has a {RECORD_FILE} that is damaged: {error!r}") from error
    model = trained.model
    if has_running_statistics(model):
        raise DataError(
            source,
            f"its network has running statistics, which snapshots lack: take its {MODEL_FILE}, "
            f"which has them for the averaged weights, once the run has ended",
        )
    layout = Layout.of(model.named_parameters(), bias_rate=config.optimizer.bias_rate)
    vector = newest_vector(storage, source, layout, weights)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key, view in layout.views(vector).items():
            parameters[key].copy_(view)
    load_frozen(model, storage)
    return trained


def _storage(url: str) -> Storage:
    try:
        return storage_at(url or "/")
    except ConfigError as error:
        raise UsageError(error.problem) from error


def _read(storage: Storage, name: str, source: str) -> bytes:
    try:
        return storage.read(name)
    except FileNotFoundError as error:
        problem = f"is not there: name a run's folder or a {SUFFIX} file"
        raise DataError(source, problem) from error
    except OSError as error:
        raise DataError(source, f"cannot be read: {error.strerror or error}") from error


def _record(storage: Storage, source: str) -> tuple[TrainConfig, dict[str, Any]]:
    path = f"{storage.url}/{RECORD_FILE}"
    try:
        record = json.loads(_read(storage, RECORD_FILE, source))
        return TrainConfig.from_dict(record["config"]), record
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            path, f"is no run's record that this version can read: {error!r}"
        ) from error


def _metadata(content: bytes, name: str) -> dict[str, str]:
    """The metadata of a safetensors file: a length of 8 bytes, a JSON object, the tensors."""
    try:
        nbytes = int.from_bytes(content[:8], "little")
        if not 2 <= nbytes <= len(content) - 8:
            raise ValueError("the length of its header is impossible")
        header = json.loads(content[8 : 8 + nbytes])
    except ValueError as error:
        raise DataError(name, "is not a safetensors file, or was cut short") from error
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    return metadata if isinstance(metadata, dict) else {}
