"""One step: a batch in, losses out, gradients added where the parameters keep them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from numpy.typing import NDArray
from torch import nn

from distbelief.data.normalize import normalization
from distbelief.errors import ConfigError
from distbelief.models.dropout import take_rows
from distbelief.models.stages import autocast, even_parts
from distbelief.replica.criterion import Criterion, Mean


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
    """Turns decoded examples into what a network takes, on its device.

    Images ``(n, height, width, 3) uint8`` become ``(n, 3, height, width) float32``, normalised, and
    channels-last in memory unless ``channels_last`` is false. Anything else stays as it is, but
    ``float64`` becomes ``float32``.
    """

    def __init__(self, kind: Literal["caffe", "unit"], device: torch.device, channels_last: bool):
        mean, deviation = normalization(kind)
        self._device = device
        self._channels_last = channels_last
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._scale = 1.0 / torch.tensor(deviation, device=device).view(3, 1, 1)

    def __call__(self, images: NDArray[Any]) -> torch.Tensor:
        """See the class."""
        inputs = torch.from_numpy(images).to(self._device)
        if inputs.dtype == torch.float64:
            return inputs.float()
        if inputs.dtype != torch.uint8 or inputs.dim() != 4 or inputs.shape[3] != 3:
            return inputs
        pixels = inputs.permute(0, 3, 1, 2)
        normalised = pixels.float().sub_(self._mean).mul_(self._scale)
        return normalised if self._channels_last else normalised.contiguous()


class BufferWatch:
    """Refuses a network that learns in buffers, which no shard holds and no average covers.

    Batch normalisation's are left out: its running statistics are recomputed for the averaged
    weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self._first = True
        self._buffers = [
            (f"{name}.{key}" if name else key, buffer, buffer.detach().clone())
            for name, module in model.named_modules()
            if not isinstance(module, nn.modules.batchnorm._BatchNorm)
            for key, buffer in module.named_buffers(recurse=False)
        ]

    def check(self) -> None:
        """After the first step.

        Raises:
            ConfigError: it has changed a buffer.
        """
        if not self._first:
            return
        self._first = False
        for name, buffer, before in self._buffers:
            if not torch.equal(buffer, before):
                raise ConfigError(
                    "model",
                    f"{name} is a buffer that training changes; replicas would each have their "
                    f"own, and the averaged weights none: make it a parameter, or keep it fixed",
                )


class StepOf(Protocol):
    """A step of a whole network, or of one of its stages."""

    @property
    def model(self) -> nn.Module:
        """What is computed with."""
        ...

    def __call__(self, images: NDArray[Any], labels: NDArray[Any]) -> Mapping[str, torch.Tensor]:
        """Adds the batch's mean gradient to the parameters' ``grad``; returns its losses."""
        ...


@dataclass(frozen=True)
class Step:
    """The forward and backward pass of one batch, in parts of ``micro_batch_size`` at most."""

    model: nn.Module
    images: ImageInput
    criterion: Criterion
    device: torch.device
    precision: Literal["fp32", "bf16"]
    watch: BufferWatch | None = None
    micro_batch_size: int | None = None

    def __call__(self, images: NDArray[Any], labels: NDArray[Any]) -> dict[str, torch.Tensor]:
        """Adds the batch's mean gradient to the parameters' ``grad``; returns its losses, detached.

        ``loss`` is what was minimised. A batch without rows adds nothing and has no losses.
        """
        n = len(labels)
        if not n:
            return {}
        mean, begin = Mean({}), 0
        for size in even_parts(n, self.micro_batch_size or n):
            rows = slice(begin, begin + size)
            begin += size
            if size < n:
                take_rows(self.model, rows.start, n)
            with autocast(self.device, self.precision):
                outputs = self.model(self.images(images[rows]))
            found = self.criterion(outputs, labels[rows], self.device)
            share = size / n
            loss = found["loss"] if share == 1.0 else found["loss"] * share
            loss.backward()  # type: ignore[no-untyped-call]
            mean.add(found, share)
        if self.watch is not None:
            self.watch.check()
        return mean.sums
