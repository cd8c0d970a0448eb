"""One step: a batch in, losses out, gradients added where the parameters keep them."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distbelief.data.normalize import normalization
from distbelief.errors import ConfigError
from distbelief.models.losses import losses


def resolve_device(device: str) -> torch.device:
    """The device that a configuration's word means on this host.

    Raises:
        ConfigError: there is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    index = int(device.partition(":")[2] or 0)
    if device.startswith("cuda") and index >= torch.cuda.device_count():
        host = os.uname().nodename
        raise ConfigError("device", f"host {host} has no CUDA device {index}; take cpu or auto")
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """The arithmetic that a configuration's word means on this device."""
    if precision == "fp32":
        return "fp32"
    if precision == "bf16":
        return "bf16"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


class ImageInput:
    """Turns decoded images into what a network takes, on its device.

    ``(n, size, size, 3) uint8`` becomes ``(n, 3, size, size) float32``, normalised, and
    channels-last in memory unless ``channels_last`` is false.
    """

    def __init__(self, kind: Literal["caffe", "unit"], device: torch.device, channels_last: bool):
        mean, deviation = normalization(kind)
        self._device = device
        self._channels_last = channels_last
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._scale = 1.0 / torch.tensor(deviation, device=device).view(3, 1, 1)

    def __call__(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """See the class."""
        pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2)
        normalised = pixels.float().sub_(self._mean).mul_(self._scale)
        return normalised if self._channels_last else normalised.contiguous()


@dataclass(frozen=True)
class Step:
    """The forward and backward pass of one batch."""

    model: nn.Module
    images: ImageInput
    aux_weight: float
    device: torch.device
    precision: Literal["fp32", "bf16"]

    def __call__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64]
    ) -> dict[str, torch.Tensor]:
        """Adds the batch's mean gradient to the parameters' ``grad``; returns its losses, detached.

        ``loss`` is what was minimised. A batch without rows adds nothing and has no losses.
        """
        if not len(labels):
            return {}
        targets = torch.from_numpy(labels).to(self.device)
        with self._autocast():
            outputs = self.model(self.images(images))
        found = losses(outputs, targets, self.aux_weight)
        found["loss"].backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in found.items()}

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
