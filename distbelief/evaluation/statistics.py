"""Running statistics of batch normalisation, which belong to the weights they were seen with.

Averaged weights were never trained with, so their statistics are taken anew on training batches
(Izmailov et al. 2018, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from distbelief.evaluation.modes import device_of, evaluating

# Instance normalisation is left out: it has no cumulative average.
_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def has_running_statistics(model: nn.Module) -> bool:
    """Whether some batch normalisation of ``model`` keeps a running mean and variance."""
    return any(True for _ in _tracked(model))


def recompute_running_statistics(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device | None = None,
) -> int:
    """Replaces the running means and variances by those of ``batches``, in place.

    Each becomes the plain average over the batches of the batch's mean and unbiased variance. All
    other modules are in evaluation mode meanwhile, so that dropout neither alters the statistics
    nor draws random numbers. Momentum and modes are as before afterwards; no gradients are
    recorded. A layer that no batch reached keeps its old statistics.

    Args:
        model: The network; nothing happens if it has no running statistics.
        batches: Pairs of images ``(N, ...) float`` and classes, which are not used. Should be of
            equal size, since each counts the same; those of fewer than 2 examples are skipped.
        device: Where images are sent; by default the device of the model's parameters.

    Returns:
        How many examples went in.
    """
    layers = list(_tracked(model))
    if not layers:
        return 0
    device = device or device_of(model)
    before = [
        (layer.momentum, {name: buffer.clone() for name, buffer in layer.named_buffers()})
        for layer in layers
    ]
    n_examples = 0
    finished = False
    try:
        with evaluating(model), torch.no_grad():
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None
                layer.training = True
            for images, _ in batches:
                if len(images) < 2:
                    continue
                model(images.to(device))
                n_examples += len(images)
        finished = True
    finally:
        for layer, (momentum, buffers) in zip(layers, before, strict=True):
            layer.momentum = momentum
            if not finished or not layer.num_batches_tracked:
                for name, buffer in layer.named_buffers():
                    buffer.copy_(buffers[name])
    return n_examples


def _tracked(model: nn.Module) -> Iterator[_BatchNorm]:
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            yield module
