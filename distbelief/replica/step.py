"""One step: a batch in, losses out, gradients added where the parameters keep them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import nn

from distbelief.data.normalize import normalization
from distbelief.errors import ConfigError
from distbelief.models.losses import losses, main_logits

Loss = Callable[[Any, torch.Tensor], "torch.Tensor | Mapping[str, torch.Tensor]"]
"""From what a network returns and the targets to what is minimised, or to ``{"loss": …, …}``."""


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


def _check_logits(logits: torch.Tensor, labels: NDArray[Any]) -> None:
    """What cross entropy would only name by torch's own words, or not at all on an accelerator."""
    if logits.dim() != 2 or len(logits) != len(labels):
        shape = tuple(logits.shape)
        raise ConfigError(
            "model",
            f"returns {shape} for {len(labels)} examples; ({len(labels)}, classes) is wanted",
        )
    if not logits.requires_grad:
        raise ConfigError("model", "returns logits without a gradient: nothing could be learned")
    n_classes, low, high = logits.shape[1], int(labels.min()), int(labels.max())
    if low < 0 or high >= n_classes:
        raise ConfigError(
            "classes",
            f"a label is {low if low < 0 else high}, the network has {n_classes} outputs, for "
            f"labels 0 to {n_classes - 1}: mend the data set, or give more classes",
        )


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


@dataclass(frozen=True)
class Step:
    """The forward and backward pass of one batch.

    ``loss`` is a user's own, from outputs and targets; by default it is the cross entropy.
    """

    model: nn.Module
    images: ImageInput
    aux_weight: float
    device: torch.device
    precision: Literal["fp32", "bf16"]
    loss: Loss | None = None
    watch: BufferWatch | None = None

    def __call__(self, images: NDArray[Any], labels: NDArray[Any]) -> dict[str, torch.Tensor]:
        """Adds the batch's mean gradient to the parameters' ``grad``; returns its losses, detached.

        ``loss`` is what was minimised. A batch without rows adds nothing and has no losses.
        """
        if not len(labels):
            return {}
        targets = torch.from_numpy(labels).to(self.device)
        with self._autocast():
            outputs = self.model(self.images(images))
        if self.loss is None:
            _check_logits(main_logits(outputs), labels)
        found = self._losses(outputs, targets)
        found["loss"].backward()  # type: ignore[no-untyped-call]
        if self.watch is not None:
            self.watch.check()
        return {name: value.detach() for name, value in found.items()}

    def _losses(self, outputs: object, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.loss is None:
            return losses(outputs, targets, self.aux_weight)
        found: object = self.loss(outputs, targets)
        named = dict(found) if isinstance(found, Mapping) else {"loss": found}
        scalars = {k: v for k, v in named.items() if isinstance(v, torch.Tensor) and not v.dim()}
        if len(scalars) < len(named) or "loss" not in named or not scalars["loss"].requires_grad:
            raise ConfigError(
                "loss",
                "must return a scalar tensor with a gradient, or a mapping of scalar tensors that "
                "has it as 'loss'",
            )
        return scalars

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
