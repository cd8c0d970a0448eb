"""Top-1 and top-5 accuracy over a data set, each example counted exactly once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from distbelief.evaluation.modes import device_of, evaluating


@dataclass(frozen=True)
class Accuracy:
    """Means over ``n_examples`` examples; NaN if there are none.

    Attributes:
        top1: Fraction of examples, 0 to 1, whose class has the greatest logit.
        top5: Fraction whose class is among the five greatest; all of them, with fewer classes.
        loss: Mean cross entropy.
        n_examples: How many examples were counted.
    """

    top1: float
    top5: float
    loss: float
    n_examples: int


class AccuracyMeter:
    """Counts hits and sums losses, batch by batch; batches may differ in size. Not thread-safe."""

    def __init__(self) -> None:
        self._n_examples = 0
        self._top1 = 0
        self._top5 = 0
        self._loss = 0.0

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Counts one batch, which may be empty.

        Args:
            logits: ``(N, classes)`` of any floating dtype, on any device.
            targets: ``(N,) int64``, on the same device.

        Raises:
            ValueError: the shapes do not fit together.
        """
        if logits.dim() != 2 or targets.shape != logits.shape[:1]:
            shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
            raise ValueError(f"logits (N, classes) and targets (N,) are needed, not {shapes}")
        if len(targets) == 0:
            return
        logits = logits.detach()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == targets.unsqueeze(1)
        losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        self._n_examples += len(targets)
        self._top1 += int(hits[:, 0].sum())
        self._top5 += int(hits.sum())
        # Summed in double precision: a float32 sum over 50,000 images has lost four digits.
        self._loss += float(losses.double().sum())

    def result(self) -> Accuracy:
        """The means over all batches so far."""
        n = self._n_examples
        if n == 0:
            return Accuracy(math.nan, math.nan, math.nan, 0)
        return Accuracy(self._top1 / n, self._top5 / n, self._loss / n, n)


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    logits_of: Callable[[object], Tensor] | None = None,
    device: torch.device | None = None,
) -> Accuracy:
    """Accuracy of ``model`` in evaluation mode over all of ``batches``.

    Blocks until done. No gradients are recorded, and afterwards every module has the mode that it
    had. For reduced precision call it under ``torch.autocast``.

    Args:
        model: Maps images to logits ``(N, classes)``, or to what ``logits_of`` makes these of.
        batches: Pairs of images ``(N, ...) float`` and classes ``(N,) int64``; empty ones count
            for nothing.
        logits_of: Takes the logits out of the model's output; by default it is the logits.
        device: Where batches are sent; by default the device of the model's parameters.

    Raises:
        TypeError: the model returned something other than a tensor and there is no ``logits_of``.
    """
    device = device or device_of(model)
    meter = AccuracyMeter()
    with evaluating(model), torch.inference_mode():
        for images, targets in batches:
            if len(targets) == 0:
                continue
            output: object = model(images.to(device))
            logits = logits_of(output) if logits_of else output
            if not isinstance(logits, Tensor):
                kind = type(logits).__name__
                raise TypeError(f"the model returned {kind}; give logits_of to take out the logits")
            meter.update(logits, targets.to(device))
    return meter.result()
