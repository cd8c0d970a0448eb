"""A step of a replica that is divided into stages: micro-batches flow through them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed.pipelining as pipelining
from numpy.typing import NDArray
from torch import Tensor, nn

from distbelief.models.dropout import take_rows
from distbelief.models.stages import HOST, Stage, StagePlan, Travels
from distbelief.replica.criterion import Criterion, Mean
from distbelief.replica.group import Stages
from distbelief.replica.step import BufferWatch, ImageInput


@dataclass
class _Batch:
    """The batch that a step is at: its labels, and how far its micro-batches are."""

    labels: NDArray[Any]
    passed: int = 0
    judged: int = 0
    mean: Mean = field(default_factory=lambda: Mean({}))


class NothingUnpickled(pipelining.PipelineStage):
    """Torch's stage, which is told all shapes and so never has to unpickle what another one sends.

    The stages vote on whether to exchange them all the same; one that votes so is none of ours.
    """

    def _recv_meta(self, src_stage: int) -> Any:
        raise ValueError(f"stage {src_stage} wants to send pickled shapes, which are not taken")


class PipelineStep:
    """The part of one stage in the forward and backward pass of a batch.

    All stages of the replica call it together, with the same number of rows. Torch's schedules
    know micro-batches of one size, and have to be told it: a batch whose parts cannot be so goes
    through in two turns, the larger parts first. The last stage weighs each micro-batch's loss by
    its share of the batch's rows, so that the gradient is the mean over the batch, as with one
    stage.

    Args:
        stage: This stage.
        plan: The replica's division.
        group: Its stages.
        travels: What this one takes and hands on.
        images: Turns decoded examples into the network's input; used by the first stage.
        criterion: Used by the last one.
        device: Of this stage.
    """

    KEPT = 4
    """So many schedules are kept: a batch's size changes where examples cannot be read."""

    def __init__(
        self,
        stage: Stage,
        plan: StagePlan,
        group: Stages,
        travels: Travels,
        *,
        images: ImageInput,
        criterion: Criterion,
        device: torch.device,
    ) -> None:
        self.model: nn.Module = stage.graph
        self._stage = stage
        self._plan = plan
        self._group = group
        self._travels = travels
        self._images = images
        self._criterion = criterion
        self._device = device
        self._watch = BufferWatch(stage.graph)
        self._batch = _Batch(np.empty(0))
        self._error: Exception | None = None
        self._schedules: dict[tuple[int, int], Any] = {}

    def __call__(self, images: NDArray[Any], labels: NDArray[Any]) -> dict[str, Tensor]:
        """Adds the batch's mean gradient to the ``grad`` of this stage's parameters.

        The last stage returns the batch's losses, detached, as a replica of one stage does; the
        others none. A batch without rows adds nothing.

        Args:
            images: ``(n, ...)``, of the first stage; the others may have none.
            labels: ``(n, ...)``, of the last stage; the others need the number of rows.

        Raises:
            StageLostError: another stage has ended.
        """
        if not len(labels):
            return {}
        self._batch = _Batch(labels)
        begin = 0
        for size, parts in itertools.groupby(self._plan.parts_of(len(labels))):
            n_parts = len(list(parts))
            rows = slice(begin, begin + size * n_parts)
            begin = rows.stop
            try:
                self._turn(images[rows], size, n_parts)
            except Exception as error:
                raise self._cause_of(error) from error
        self._watch.check()
        self._stage.returned = None
        return self._batch.mean.sums

    def pass_on(self, *travelled: Tensor) -> tuple[Tensor, ...]:
        """The forward pass of the next micro-batch."""
        batch = self._batch
        take_rows(self.model, batch.passed, len(batch.labels))
        batch.passed += len(travelled[0])
        with self._remembered():
            handed_on: tuple[Tensor, ...] = self._stage(*travelled)
        return handed_on

    def _turn(self, images: NDArray[Any], size: int, n_parts: int) -> None:
        """Some micro-batches of one size, forward and back."""
        schedule = self._schedule_for(size, n_parts)
        if self._stage.is_first:
            schedule.step(self._images(images), return_outputs=False)
        elif self._stage.is_last:
            # What stands for the targets of each micro-batch is how many they are.
            sizes = torch.full((n_parts,), size)
            schedule.step(target=sizes, return_outputs=False)
        else:
            schedule.step(return_outputs=False)

    def _loss(self, output: object, size: Tensor) -> Tensor:
        batch = self._batch
        labels = batch.labels[batch.judged : batch.judged + int(size)]
        batch.judged += len(labels)
        with self._remembered():
            found = self._criterion(self._stage.returned, labels, self._device)
        share = len(labels) / len(batch.labels)
        batch.mean.add(found, share)
        return found["loss"] if share == 1.0 else found["loss"] * share

    def _schedule_for(self, size: int, n_parts: int) -> Any:
        if (size, n_parts) in self._schedules:
            return self._schedules[size, n_parts]
        if len(self._schedules) == self.KEPT:
            # The whole batch's, which came first, stays.
            del self._schedules[list(self._schedules)[1]]
        taken, handed_on = self._travels.of_rows(size)
        inputs = [x.zeros() for x in taken]
        outputs = [x.zeros().requires_grad_(x.dtype.is_floating_point) for x in handed_on]
        if not self._stage.is_first:
            inputs = [x.requires_grad_(x.is_floating_point()) for x in inputs]
        part = NothingUnpickled(
            _Passes(self),
            self._group.stage,
            self._group.n_stages,
            HOST,
            # Told beforehand: found out by torch itself, they would cost a pass of the network.
            input_args=tuple(inputs),
            output_args=tuple(outputs),
        )
        in_turn = self._plan.in_turn(n_parts)
        kind = pipelining.Schedule1F1B if in_turn else pipelining.ScheduleGPipe
        schedule = kind(part, n_parts, loss_fn=self._loss, scale_grads=False)
        self._schedules[size, n_parts] = schedule
        return schedule

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        """Keeps an error of the network's or the loss's own, which torch wraps into its own."""
        try:
            yield
        except Exception as error:
            self._error = error
            raise

    def _cause_of(self, error: Exception) -> Exception:
        if self._error is not None:
            return self._error
        return self._group.lost(error) if "gloo" in str(error).lower() else error


class _Passes(nn.Module):
    """What torch's pipeline calls for each micro-batch, without owning the stage's parameters."""

    def __init__(self, step: PipelineStep) -> None:
        super().__init__()
        self._step = (step,)  # not to be taken for a module

    def forward(self, *travelled: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`PipelineStep.pass_on`."""
        return self._step[0].pass_on(*travelled)
