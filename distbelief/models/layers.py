"""The building blocks of GoogLeNet."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Convolution(nn.Conv2d):
    """A convolution followed by a rectifier, ``(N, C, H, W)`` to ``(N, C', H', W')``."""

    def forward(self, input: Tensor) -> Tensor:
        """The rectified convolution of ``input``."""
        return functional.relu(super().forward(input), inplace=True)


class Classifier(nn.Linear):
    """The linear layer that emits class logits; told apart because it starts from other values."""


class InceptionChannels(NamedTuple):
    """Channel counts of one Inception module, a row of the paper's table 1."""

    c1x1: int
    c3x3_reduce: int
    c3x3: int
    c5x5_reduce: int
    c5x5: int
    pool: int

    @property
    def out(self) -> int:
        """Channels that leave the module."""
        return self.c1x1 + self.c3x3 + self.c5x5 + self.pool


class Inception(nn.Module):
    """The Inception module with dimension reduction (Szegedy et al. 2015, figure 2b).

    Maps ``(N, in_channels, H, W)`` to ``(N, channels.out, H, W)``: the outputs of the branches
    1x1, 3x3, 5x5 and pool, in this order.
    """

    def __init__(self, in_channels: int, channels: InceptionChannels) -> None:
        super().__init__()
        c = channels
        self.branch1x1 = Convolution(in_channels, c.c1x1, 1)
        self.branch3x3 = nn.Sequential(
            OrderedDict(
                reduce=Convolution(in_channels, c.c3x3_reduce, 1),
                conv=Convolution(c.c3x3_reduce, c.c3x3, 3, padding=1),
            )
        )
        self.branch5x5 = nn.Sequential(
            OrderedDict(
                reduce=Convolution(in_channels, c.c5x5_reduce, 1),
                conv=Convolution(c.c5x5_reduce, c.c5x5, 5, padding=2),
            )
        )
        self.branch_pool = nn.Sequential(
            OrderedDict(
                pool=nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True),
                project=Convolution(in_channels, c.pool, 1),
            )
        )

    def forward(self, input: Tensor) -> Tensor:
        """The branches' outputs, concatenated over channels."""
        branches = (self.branch1x1, self.branch3x3, self.branch5x5, self.branch_pool)
        return torch.cat([branch(input) for branch in branches], dim=1)


class AuxiliaryHead(nn.Sequential):
    """An auxiliary classifier (section 5 of the paper): ``(N, in_channels, H, W)`` to logits.

    Args:
        in_channels: Channels of the module that it hangs on.
        channels: Outputs of its 1x1 convolution.
        features: Outputs of its hidden linear layer.
        classes: Logits.
        pool: Brings ``H`` and ``W`` to 4.
    """

    def __init__(
        self, in_channels: int, channels: int, features: int, classes: int, pool: nn.Module
    ) -> None:
        super().__init__(
            OrderedDict(
                pool=pool,
                conv=Convolution(in_channels, channels, 1),
                flatten=nn.Flatten(),
                hidden=nn.Linear(channels * 4 * 4, features),
                relu=nn.ReLU(inplace=True),
                dropout=nn.Dropout(0.7),
                fc=Classifier(features, classes),
            )
        )
