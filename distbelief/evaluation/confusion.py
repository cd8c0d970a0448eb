"""Which class is taken for which, each example counted once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """Of the examples of one class.

    Attributes:
        n: How many there were.
        top1: Fraction of them whose class had the greatest logit; None if there were none.
        top5: Fraction whose class was among the five greatest; None if there were none.
    """

    n: int
    top1: float | None
    top5: float | None


class ConfusionMeter:
    """Counts truth against prediction, batch by batch; batches may differ in size.

    Not thread-safe.

    Args:
        n_classes: Classes that examples may have.
        n_outputs: Logits of the network, at least as many; those beyond belong to no class.
    """

    def __init__(self, n_classes: int, n_outputs: int) -> None:
        if not 1 <= n_classes <= n_outputs:
            raise ValueError(f"{n_classes} classes do not fit {n_outputs} outputs")
        # Outputs that belong to no class share the last column.
        self._n_columns = n_classes + (n_outputs > n_classes)
        self._counts = torch.zeros(n_classes, self._n_columns, dtype=torch.int64)
        self._top5 = torch.zeros(n_classes, dtype=torch.int64)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Counts one batch, which may be empty.

        Args:
            logits: ``(N, n_outputs)`` of any floating dtype, on any device.
            targets: ``(N,) int64`` below ``n_classes``, on the same device.
        """
        if len(targets) == 0:
            return
        best = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices.cpu()
        targets = targets.cpu()
        predicted = best[:, 0].clamp(max=self._n_columns - 1)
        pairs = targets * self._n_columns + predicted
        found = torch.bincount(pairs, minlength=self._counts.numel())
        self._counts += found.view_as(self._counts)
        hits = (best == targets.unsqueeze(1)).any(dim=1)
        self._top5 += torch.bincount(targets[hits], minlength=len(self._top5))

    def matrix(self) -> tuple[tuple[int, ...], ...]:
        """Rows: the true class; columns: the predicted one.

        A last column counts predictions that are no class, where the network has such outputs.
        """
        return tuple(tuple(row) for row in self._counts.tolist())

    def by_class(self) -> tuple[ClassAccuracy, ...]:
        """The accuracy of each class, in the order of their labels."""
        found = []
        for label, n in enumerate(self._counts.sum(dim=1).tolist()):
            top1, top5 = int(self._counts[label, label]), int(self._top5[label])
            found.append(
                ClassAccuracy(n, top1 / n, top5 / n) if n else ClassAccuracy(0, None, None)
            )
        return tuple(found)
