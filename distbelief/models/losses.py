"""The losses of what a network returns, whatever shape its auxiliary logits come in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from distbelief.errors import ConfigError

_NAMES_OF_FIELDS = {
    "main": "main",
    "logits": "main",
    "aux1": "aux1",
    "aux_logits": "aux1",
    "aux_logits1": "aux1",
    "aux2": "aux2",
    "aux_logits2": "aux2",
}
"""Ours, and those of torchvision's GoogLeNet (which has the second head first) and Inception."""


def main_logits(outputs: object) -> Tensor:
    """The main logits, ``(N, classes)``, of what a network returned in training or evaluation.

    Raises:
        ConfigError: ``outputs`` is neither a tensor nor a tuple that starts with one.
    """
    return _named_logits(outputs)["main"]


def losses(outputs: object, targets: Tensor, aux_weight: float) -> dict[str, Tensor]:
    """The losses by name: ``loss`` is to be minimised, the others are its parts.

    Each is a cross entropy, the mean over the batch, in float32 even where the logits are not.
    ``loss = main + aux_weight * (aux1 + aux2 + ...)``.

    Args:
        outputs: Logits ``(N, classes)``, or a tuple of main and auxiliary logits, of which those
            that are None do not count. The fields of a named tuple tell which is which.
        targets: ``(N,) int64`` classes.
        aux_weight: Weight of each auxiliary loss.

    Returns:
        Scalars that carry gradients: ``loss`` alone for a tensor; for a tuple also ``main`` and
        ``aux1``, ``aux2``, as far as they exist.

    Raises:
        ConfigError: ``outputs`` is neither a tensor nor a tuple that starts with one.
    """
    parts = {
        name: functional.cross_entropy(logits.float(), targets)
        for name, logits in _named_logits(outputs).items()
    }
    if isinstance(outputs, Tensor):
        return {"loss": parts["main"]}
    aux = [loss for name, loss in parts.items() if name != "main"]
    total = parts["main"] + aux_weight * torch.stack(aux).sum() if aux else parts["main"]
    return {"loss": total, **parts}


def _named_logits(outputs: object) -> dict[str, Tensor]:
    if isinstance(outputs, Tensor):
        return {"main": outputs}
    if not isinstance(outputs, tuple):
        kind = type(outputs).__name__
        raise ConfigError("model", f"must return logits or a tuple of logits, not {kind}")
    fields: tuple[str, ...] = getattr(outputs, "_fields", ())
    if fields and all(field in _NAMES_OF_FIELDS for field in fields):
        names = [_NAMES_OF_FIELDS[field] for field in fields]
    else:
        names = ["main", *(f"aux{i}" for i in range(1, len(outputs)))]
    named = {name: x for name, x in zip(names, outputs, strict=False) if isinstance(x, Tensor)}
    if "main" not in named:
        raise ConfigError("model", "must return its main logits first in a tuple")
    return {name: named[name] for name in sorted(named, key=lambda name: (name != "main", name))}
