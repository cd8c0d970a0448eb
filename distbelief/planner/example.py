"""A micro-batch as a network is measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distbelief.models.stages import StagePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What one forward pass takes, and how it computes.

    Attributes:
        shape: Of the batch, as the network takes it.
        dtype: Its type, a name of torch.
        precision: Arithmetic.
        channels_last: Whether a batch of four dimensions lies so in memory.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True

    @classmethod
    def of(cls, plan: StagePlan, n_examples: int) -> Example:
        """So many examples of a plan."""
        return cls(
            shape=(n_examples, *plan.input_shape),
            dtype=plan.input_dtype,
            precision=plan.precision,
            channels_last=plan.channels_last,
        )

    def batch(self, device: torch.device, *, without_values: bool = False) -> Tensor:
        """The batch: numbers of mean 0 and deviation 1 or, where numbers are whole, zeros."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        if without_values:
            made = torch.empty(self.shape, dtype=dtype, device=device)
        elif dtype.is_floating_point:
            made = torch.randn(self.shape, device=device).to(dtype)
        else:
            made = torch.zeros(self.shape, dtype=dtype, device=device)
        if self.channels_last and made.dim() == 4:
            return made.contiguous(memory_format=torch.channels_last)
        return made
