"""Top-1, top-5 and loss of one model, or of several whose predictions are averaged."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distbelief.data.crops import CropsTransform
from distbelief.data.loader import Batch, BatchLoader, sequential_batches
from distbelief.data.source import ImageSource
from distbelief.data.transforms import EvalTransform, Transform
from distbelief.errors import ConfigError, DataError, ProcessLostError, UsageError
from distbelief.evaluation.accuracy import AccuracyMeter
from distbelief.evaluation.confusion import ClassAccuracy, ConfusionMeter
from distbelief.evaluation.modes import evaluating
from distbelief.models.losses import main_logits
from distbelief.product.images import check_classes, difference
from distbelief.product.weights import Trained
from distbelief.replica.step import ImageInput, resolve_device, resolve_precision
from distbelief.replication import ReplicaConfig

NAMED = 10
"""So many of the images that could not be read are named."""
AHEAD = 2
"""Batches that each loader process has before it: one at work, one next."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ModelAccuracy:
    """What one model of an ensemble does alone."""

    name: str
    weights: str
    top1: float
    top5: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was found; fractions are of 1.

    Attributes:
        top1: Fraction of the examples whose class was thought the likeliest.
        top5: Fraction whose class was among the five likeliest.
        loss: Mean negative logarithm of the probability given to the true class.
        n_examples: Examples that were counted, each once.
        skipped: Examples that could not be read.
        skipped_images: What the first ten of them are called.
        crops: Crops of each image.
        weights: Of the models: averaged, latest, or mixed.
        models: Each model alone, in the order given.
        class_names: In the order of their labels.
        classes: The accuracy of each class.
        confusion: A row for each true class, a column for each predicted one; a last column where
            networks have outputs that are no class.
        seconds: How long it took, without the start of the loader processes.
    """

    top1: float
    top5: float
    loss: float
    n_examples: int
    skipped: int
    skipped_images: tuple[str, ...]
    crops: int
    weights: str
    models: tuple[ModelAccuracy, ...]
    class_names: tuple[str, ...]
    classes: tuple[ClassAccuracy, ...]
    confusion: tuple[tuple[int, ...], ...]
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Examples counted in a second."""
        return self.n_examples / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        names = values.pop("class_names")
        values["classes"] = [
            {"class": name, **asdict(found)}
            for name, found in zip(names, self.classes, strict=True)
        ]
        return {**values, "images_per_second": self.images_per_second}


def evaluate(
    models: Sequence[Trained],
    images: ImageSource,
    *,
    crops: int = 1,
    batch_size: int = 32,
    n_loaders: int = 0,
    device: str = "auto",
    precision: str = "fp32",
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluates one model, or several as an ensemble, on every image once. Blocks.

    Probabilities are averaged over an image's crops and over the models. Models may differ in image
    size and normalisation; an image is decoded once for each image size.

    Args:
        models: Those of one ensemble; moved to the device.
        images: The images, whose classes must be the models'.
        crops: 1, 10 or 144, see :mod:`distbelief.data.crops`.
        batch_size: Crops in one forward pass; the result does not depend on it.
        n_loaders: Processes that decode; 0 for a thread.
        device: cpu, cuda or auto.
        precision: Arithmetic of the networks: fp32, bf16, or auto for bf16 where the device has it.
        progress: Told now and then how many of how many images are done.

    Raises:
        UsageError: an argument is impossible, classes differ, or no image can be read.
        ProcessLostError: a loader process was killed.
    """
    _check(models, images, crops, batch_size, n_loaders)
    place = resolve_device(ReplicaConfig(device=device).device)  # which knows the words
    arithmetic = resolve_precision(precision, place)
    predictors = [_Predictor(trained, place, batch_size) for trained in models]
    sizes = sorted({trained.image_size for trained in models})
    n_outputs = max(trained.n_outputs for trained in models)
    together, alone = AccuracyMeter(), [AccuracyMeter() for _ in models]
    names = images.classes or models[0].classes or tuple(map(str, range(n_outputs)))
    confusion = ConfusionMeter(len(names), n_outputs)
    skipped: list[int] = []
    with contextlib.ExitStack() as stack:
        loaders = [
            stack.enter_context(BatchLoader(images, _transform(size, crops), 0, share))
            for size, share in zip(sizes, _shares(n_loaders, len(sizes)), strict=True)
        ]
        for trained in models:
            stack.enter_context(evaluating(trained.model))
        stack.enter_context(torch.inference_mode())
        if arithmetic == "bf16":
            stack.enter_context(torch.autocast(place.type, dtype=torch.bfloat16))
        done, began = 0, time.monotonic()
        for batches, unread in _aligned(loaders, images.n_examples, max(1, batch_size // crops)):
            skipped += unread
            _check_batch(batches[0], len(names), crops)
            labels = torch.from_numpy(batches[0].labels).to(place)
            if len(labels):
                by_size = {size: b.images for size, b in zip(sizes, batches, strict=True)}
                found = [predict(by_size[predict.image_size], n_outputs) for predict in predictors]
                for meter, one in zip(alone, found, strict=True):
                    meter.update(one, labels)
                mean = _log_mean(torch.stack(found))
                together.update(mean, labels)
                confusion.update(mean, labels)
            if progress is not None:
                done += len(labels) + len(unread)
                progress(done, images.n_examples)
        seconds = time.monotonic() - began
    result = together.result()
    if result.n_examples == 0:
        first = images.name(skipped[0]) if skipped else "there are none"
        raise DataError(first, f"none of the {images.n_examples} images can be read")
    kinds = {trained.weights for trained in models}
    return Evaluation(
        **asdict(result),
        skipped=len(skipped),
        skipped_images=tuple(images.name(i) for i in skipped[:NAMED]),
        crops=crops,
        weights=kinds.pop() if len(kinds) == 1 else "mixed",
        models=tuple(
            ModelAccuracy(t.name, t.weights, one.top1, one.top5, one.loss)
            for t, one in zip(models, (meter.result() for meter in alone), strict=True)
        ),
        class_names=tuple(names),
        classes=confusion.by_class(),
        confusion=confusion.matrix(),
        seconds=seconds,
    )


class _Predictor:
    """One model on its device, from decoded images to logarithms of probabilities."""

    def __init__(self, trained: Trained, device: torch.device, batch_size: int) -> None:
        self.image_size = trained.image_size
        self._model = trained.model.to(device)
        self._input = ImageInput(trained.normalize, device, trained.channels_last)
        self._batch_size = batch_size

    def __call__(self, images: NDArray[Any], n_outputs: int) -> Tensor:
        """``(n, n_outputs) float64``, the mean over crops; outputs that the model lacks are -inf.

        Args:
            images: ``(n, size, size, 3)`` or ``(n, crops, size, size, 3) uint8``, or what else
                the network takes, ``(n, ...)``.
            n_outputs: At least the model's.
        """
        flat = images.reshape(-1, *images.shape[2:]) if _has_crops(images) else images
        parts = [
            main_logits(self._model(self._input(flat[begin : begin + self._batch_size])))
            for begin in range(0, len(flat), self._batch_size)
        ]
        # In double precision: averaging shall not lose what the network has found.
        logs = torch.cat(parts).double().log_softmax(dim=1)
        mean = _log_mean(logs.view(len(images), -1, logs.shape[1]).transpose(0, 1))
        missing = n_outputs - mean.shape[1]
        return torch.nn.functional.pad(mean, (0, missing), value=-math.inf)


def _has_crops(images: NDArray[Any]) -> bool:
    return images.ndim == 5 and images.dtype == np.uint8


def _log_mean(logs: Tensor) -> Tensor:
    """The logarithm of the mean over the first dimension of what ``logs`` are the logarithms of.

    Without leaving logarithms: a small probability must not become none.
    """
    return logs[0] if len(logs) == 1 else logs.logsumexp(dim=0) - math.log(len(logs))


def _transform(size: int, crops: int) -> Transform:
    if crops == 10:
        return CropsTransform(size, 10)
    return CropsTransform(size, 144) if crops == 144 else EvalTransform(size)


def _shares(n_loaders: int, n: int) -> list[int]:
    """Processes of each of ``n`` loaders; at least one each, if there shall be any."""
    if n_loaders == 0:
        return [0] * n
    return [max(1, n_loaders // n + (i < n_loaders % n)) for i in range(n)]


def _aligned(
    loaders: Sequence[BatchLoader], n_examples: int, batch_size: int
) -> Iterator[tuple[list[Batch], list[int]]]:
    """Batches of the same images from every loader, and the indices that one could not read."""
    requests = sequential_batches(n_examples, batch_size)
    n_ahead = AHEAD * max(1, max(len(loader.pids) for loader in loaders))
    pending = deque(
        [loader.submit(request) for loader in loaders]
        for _, request in zip(range(n_ahead), requests, strict=False)
    )
    while pending:
        try:
            batches = [future.result() for future in pending.popleft()]
        except BrokenExecutor as error:
            raise ProcessLostError("a loader process", str(error)) from error
        request = next(requests, None)
        if request is not None:
            pending.append([loader.submit(request) for loader in loaders])
        unread = sorted({index for batch in batches for index in batch.skipped})
        yield [_without(batch, unread) for batch in batches], unread


def _without(batch: Batch, unread: Sequence[int]) -> Batch:
    if len(batch.skipped) == len(unread):
        return batch
    kept = ~np.isin(batch.indices, unread)
    return Batch(batch.images[kept], batch.labels[kept], batch.indices[kept], tuple(unread))


def _check(
    models: Sequence[Trained], images: ImageSource, crops: int, batch_size: int, n_loaders: int
) -> None:
    if not models:
        raise UsageError("name at least one model to evaluate: a run's folder or a file")
    if crops not in (1, 10, 144):
        raise ConfigError("crops", f"must be 1, 10 or 144, not {crops}")
    if batch_size < 1:
        raise ConfigError("batch_size", f"must be at least 1, not {batch_size}")
    if n_loaders < 0:
        raise ConfigError("loaders", f"must be at least 0, not {n_loaders}")
    first = models[0]
    for other in models[1:]:
        if other.classes != first.classes:
            raise DataError(
                other.name,
                f"has other classes than {first.name}: {difference(other.classes, first.classes)}"
                f"; evaluate them apart",
            )
    check_classes(first, images, "the images")


def _check_batch(batch: Batch, n_classes: int, crops: int) -> None:
    if not len(batch.labels):
        return
    if crops > 1 and not _has_crops(batch.images):
        raise ConfigError("crops", "the data set gives no images that could be cropped; take 1")
    labels = batch.labels
    is_class = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    if not is_class or labels.min() < 0 or labels.max() >= n_classes:
        found = f"{labels.dtype} of the shape {labels.shape[1:]}, up to {labels.max()}"
        problem = f"targets must be classes, whole numbers from 0 to {n_classes - 1}, not {found}"
        raise DataError("the images", problem)
