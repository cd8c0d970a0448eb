"""What is minimised: from a network's outputs and the targets to named losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from distbelief.errors import ConfigError
from distbelief.models.losses import losses, main_logits

Loss = Callable[[Any, torch.Tensor], "torch.Tensor | Mapping[str, torch.Tensor]"]
"""From what a network returns and the targets to what is minimised, or to ``{"loss": …, …}``."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """The losses of a batch, or of a part of one; each a mean over its examples.

    Attributes:
        aux_weight: Weight of each auxiliary loss beside the main one.
        loss: A user's own, in place of the cross entropy.
    """

    aux_weight: float
    loss: Loss | None = None

    def __call__(
        self, outputs: object, labels: NDArray[Any], device: torch.device
    ) -> dict[str, torch.Tensor]:
        """Scalars by name, of which ``loss`` is to be minimised.

        Raises:
            ConfigError: outputs, labels and loss do not go together.
        """
        targets = torch.from_numpy(labels).to(device)
        if self.loss is None:
            _check_logits(main_logits(outputs), labels)
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


@dataclass(slots=True)
class Mean:
    """The losses of a batch out of those of its parts, each weighted by its examples."""

    sums: dict[str, torch.Tensor]

    def add(self, found: Mapping[str, torch.Tensor], weight: float) -> None:
        """Takes a part in; ``weight`` is its share of the batch's examples."""
        for name, value in found.items():
            part = value.detach() if weight == 1.0 else value.detach() * weight
            self.sums[name] = self.sums[name] + part if name in self.sums else part


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
