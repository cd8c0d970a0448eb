"""GoogLeNet as in Szegedy et al., *Going deeper with convolutions* (CVPR 2015)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distbelief.errors import ConfigError
from distbelief.models.init import Initialisation, initialise
from distbelief.models.layers import (
    AuxiliaryHead,
    Classifier,
    Convolution,
    Inception,
    InceptionChannels,
)

PAPER_SIZE = 224
MIN_SIZE = 16
SMALL_SIZE = 64
"""Images up to this side lose too much in the paper's stem, and get a lighter one."""

MODULES = {
    "inception3a": InceptionChannels(64, 96, 128, 16, 32, 32),
    "inception3b": InceptionChannels(128, 128, 192, 32, 96, 64),
    "inception4a": InceptionChannels(192, 96, 208, 16, 48, 64),
    "inception4b": InceptionChannels(160, 112, 224, 24, 64, 64),
    "inception4c": InceptionChannels(128, 128, 256, 24, 64, 64),
    "inception4d": InceptionChannels(112, 144, 288, 32, 64, 64),
    "inception4e": InceptionChannels(256, 160, 320, 32, 128, 128),
    "inception5a": InceptionChannels(256, 160, 320, 32, 128, 128),
    "inception5b": InceptionChannels(384, 192, 384, 48, 128, 128),
}
POOLS = {"inception3b": "pool3", "inception4e": "pool4"}
"""The modules that a max pooling follows, and its name."""
HEADS = {"inception4a": "aux1", "inception4d": "aux2"}
"""The modules that carry an auxiliary classifier, and its name."""


class Logits(NamedTuple):
    """What GoogLeNet with heads returns in training, each ``(N, classes)``."""

    main: Tensor
    aux1: Tensor
    aux2: Tensor


def scaled(channels: int, width: float) -> int:
    """The width rule: ``max(4, int(channels * width))``."""
    return max(4, int(channels * width))


class GoogLeNet(nn.Module):
    """GoogLeNet: ``(N, 3, H, W)`` float images to ``(N, classes)`` logits.

    The main network is the sequence :meth:`blocks`. Parameters are registered in the order in
    which the forward pass meets them, an auxiliary head's directly behind those of its block, so
    that consecutive blocks own one range of the flat vector.

    In training mode with heads it returns :class:`Logits`; otherwise the main logits alone.

    Args:
        classes: Logits of the classifier and of each head.
        width: Scales every channel count, the heads' features too; see :func:`scaled`.
        image_size: Side of the images, at least 16. Up to 64 the stem is one 3x3 convolution and
            one pooling. The heads pool as in the paper at 224, and adaptively to 4x4 elsewhere.
        lrn: Local response normalisation, with Caffe's constants.
        heads: The two auxiliary classifiers.
        init: Kind of initial values, see :func:`distbelief.models.init.initialise`.
        generator: Where initial values are drawn from; by default torch's global generator.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        classes: int = 1000,
        width: float = 1.0,
        image_size: int = PAPER_SIZE,
        lrn: bool = True,
        heads: bool = True,
        init: Initialisation = "caffe",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if classes < 1:
            raise ConfigError("classes", f"must be at least 1, not {classes}")
        if image_size < MIN_SIZE:
            raise ConfigError("image_size", f"must be at least {MIN_SIZE}, not {image_size}")
        if not (math.isfinite(width) and width > 0):
            raise ConfigError("width", f"must be greater than 0, not {width}")
        self.classes = classes
        self.width = width
        self.image_size = image_size
        self.lrn = lrn
        self.heads = heads

        self._block_names = ["stem"]
        self.stem = _stem(width, small=image_size <= SMALL_SIZE, lrn=lrn)
        channels = scaled(192, width)
        for name, paper in MODULES.items():
            counts = InceptionChannels(*(scaled(c, width) for c in paper))
            self._append(name, Inception(channels, counts))
            channels = counts.out
            if heads and name in HEADS:
                self.add_module(HEADS[name], self._head(channels))
            if name in POOLS:
                self._append(POOLS[name], _max_pool())
        self._append("classifier", _tail(channels, classes))
        initialise(self, init, generator or torch.default_generator)

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """The main network's blocks by name, in order; each takes what the one before returns."""
        for name in self._block_names:
            yield name, self.get_submodule(name)

    def forward(self, images: Tensor) -> Tensor | Logits:
        """Logits of ``images``, ``(N, 3, image_size, image_size)`` float."""
        with_heads = self.heads and self.training
        aux: dict[str, Tensor] = {}
        activations = images
        for name, block in self.blocks():
            activations = block(activations)
            if with_heads and name in HEADS:
                head = HEADS[name]
                aux[head] = self.get_submodule(head)(activations)
        return Logits(activations, **aux) if with_heads else activations

    def _append(self, name: str, block: nn.Module) -> None:
        self.add_module(name, block)
        self._block_names.append(name)

    def _head(self, in_channels: int) -> AuxiliaryHead:
        paper = self.image_size == PAPER_SIZE
        return AuxiliaryHead(
            in_channels,
            channels=scaled(128, self.width),
            features=scaled(1024, self.width),
            classes=self.classes,
            pool=nn.AvgPool2d(5, stride=3, ceil_mode=True) if paper else nn.AdaptiveAvgPool2d(4),
        )


def _max_pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def _lrn() -> nn.LocalResponseNorm:
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)


def _stem(width: float, *, small: bool, lrn: bool) -> nn.Sequential:
    c64, c192 = scaled(64, width), scaled(192, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if small:
        layers["conv1"] = Convolution(3, c192, 3, padding=1)
        layers["pool1"] = _max_pool()
        if lrn:
            layers["norm1"] = _lrn()
        return nn.Sequential(layers)
    layers["conv1"] = Convolution(3, c64, 7, stride=2, padding=3)
    layers["pool1"] = _max_pool()
    if lrn:
        layers["norm1"] = _lrn()
    layers["reduce"] = Convolution(c64, c64, 1)
    layers["conv2"] = Convolution(c64, c192, 3, padding=1)
    if lrn:
        layers["norm2"] = _lrn()
    layers["pool2"] = _max_pool()
    return nn.Sequential(layers)


def _tail(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(0.4),
            fc=Classifier(channels, classes),
        )
    )
