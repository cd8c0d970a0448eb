"""What no shard holds of a model: frozen parameters and buffers, where they came from elsewhere."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from distbelief.errors import DataError
from distbelief.storage import Storage

FROZEN = "frozen.safetensors"
"""What --init-from gave that no shard holds: every process takes it from the run's folder."""


def frozen_state(model: nn.Module) -> bytes | None:
    """What no shard holds of a model, frozen parameters and buffers, as safetensors, if any."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    state = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not tensor.requires_grad and name not in trained
    }
    return save(state) if state else None


def load_frozen(model: nn.Module, storage: Storage) -> None:
    """Gives the model what :func:`frozen_state` was at the run's start, if the run has it.

    Raises:
        DataError: the file is damaged.
    """
    try:
        content = storage.read(FROZEN)
    except FileNotFoundError:
        return
    try:
        model.load_state_dict(load(content), strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise DataError(f"{storage.url}/{FROZEN}", f"does not fit the network: {error}") from error
