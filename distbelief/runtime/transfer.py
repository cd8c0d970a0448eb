"""Initial values from another run's weights, as far as name and shape fit."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from distbelief.errors import ConfigError
from distbelief.product.weights import locate

PICKLED = (".pt", ".pth", ".bin")
"""Files of ``torch.save``; read as tensors alone, no code of theirs is run."""

SHOWN = 4

_DAMAGE = (
    SafetensorError,
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What the readers raise for damaged files; only calls into them stand under it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of the tensors of a file.

    Attributes:
        taken: Names whose values the model has now.
        unused: Names in the file that the model did not take, with the reason.
        left: Names in the model that keep the values they had.
    """

    taken: tuple[str, ...]
    unused: dict[str, str]
    left: tuple[str, ...]

    def sentence(self) -> str:
        """What was taken, and what was not."""
        n = len(self.taken) + len(self.left)
        parts = [f"{len(self.taken)} of {n} tensors taken"]
        if self.unused:
            shown = [f"{name} ({why})" for name, why in list(self.unused.items())[:SHOWN]]
            parts.append(f"{len(self.unused)} not used: {_some(shown, len(self.unused))}")
        if self.left:
            shown = list(self.left[:SHOWN])
            parts.append(f"{len(self.left)} as drawn: {_some(shown, len(self.left))}")
        return "; ".join(parts)


def take_weights(model: nn.Module, source: str) -> Taken:
    """Copies into the model what ``source`` has of its parameters and buffers.

    Args:
        model: Changed in place.
        source: A run's folder, or a file of safetensors or of ``torch.save``; a path or URL.

    Raises:
        UsageError: it cannot be read, or nothing in it fits the model.
    """
    found = read_weights(source)
    own = model.state_dict()
    taken: list[str] = []
    unused: dict[str, str] = {}
    for name, tensor in sorted(found.items()):
        if name not in own:
            unused[name] = "no such name"
        elif tensor.shape != own[name].shape:
            unused[name] = f"{_shape(tensor)}, wanted {_shape(own[name])}"
        else:
            with torch.no_grad():
                own[name].copy_(tensor)
            taken.append(name)
    if not taken:
        raise ConfigError(
            "init_from",
            f"nothing in {source} fits the network by name and shape: it has "
            f"{_some(sorted(found)[:SHOWN], len(found))}; the network has "
            f"{_some(list(own)[:SHOWN], len(own))}",
        )
    left = tuple(name for name in own if name not in set(taken))
    return Taken(taken=tuple(taken), unused=unused, left=left)


def read_weights(source: str) -> Mapping[str, Tensor]:
    """The tensors of a run's model file, or of a file.

    Raises:
        UsageError: there is no such file, or it holds something else.
    """
    storage, name = locate(source)
    name = name or "model.safetensors"
    try:
        content = storage.read(name)
    except OSError as error:
        raise ConfigError("init_from", f"cannot read {storage.url}/{name}: {error}") from error
    try:
        if name.endswith(PICKLED):
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        else:
            tensors = load(content)
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError("init_from", f"{source} holds no weights: {reason}") from error
    if not isinstance(tensors, Mapping) or not all(
        isinstance(tensor, Tensor) for tensor in tensors.values()
    ):
        raise ConfigError("init_from", f"{source} is no state dict: names with tensors are wanted")
    return tensors


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _some(shown: list[str], n: int) -> str:
    return ", ".join(shown) + (f" and {n - len(shown)} more" if n > len(shown) else "")
