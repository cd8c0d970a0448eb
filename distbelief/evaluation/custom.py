"""Evaluation by a user's own loss, with the accuracy beside it where there are classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from distbelief.evaluation.accuracy import AccuracyMeter
from distbelief.evaluation.modes import device_of, evaluating

Loss = Callable[[Any, Tensor], "Tensor | Mapping[str, Tensor]"]


def evaluate_loss(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss
) -> dict[str, float]:
    """Means over all examples: ``loss`` by the user's function, and ``n_examples``.

    Where the model returns ``(N, classes)`` logits and targets are classes, also ``top1`` and
    ``top5``. No gradients are recorded; every module has its mode again afterwards.

    Args:
        model: Called with a batch of inputs.
        batches: Inputs and targets; empty ones count for nothing.
        loss: As in training: a mean over the batch, or a mapping with ``loss``.
    """
    meter = AccuracyMeter()
    device = device_of(model)
    total, n_examples = 0.0, 0
    classified = True
    with evaluating(model), torch.inference_mode():
        for inputs, raw in batches:
            if len(raw) == 0:
                continue
            targets = raw.to(device)
            outputs = model(inputs.to(device))
            found = loss(outputs, targets)
            mean = found if isinstance(found, Tensor) else found["loss"]
            total += float(mean) * len(targets)
            n_examples += len(targets)
            classified = classified and _is_classification(outputs, targets)
            if classified:
                meter.update(outputs, targets)
    result = {"loss": total / n_examples if n_examples else float("nan")}
    if classified and n_examples:
        accuracy = asdict(meter.result())
        result |= {"top1": accuracy["top1"], "top5": accuracy["top5"]}
    return {**result, "n_examples": n_examples}


def _is_classification(outputs: object, targets: Tensor) -> bool:
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or targets.dim() != 1:
        return False
    if targets.is_floating_point() or targets.is_complex() or outputs.shape[1] < 2:
        return False
    return int(targets.min()) >= 0 and int(targets.max()) < outputs.shape[1]
