"""Evaluates the averaged weights beside the training, and writes them at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

import torch

from distbelief.data.loader import Batch, BatchLoader, BatchRequest, sequential_batches
from distbelief.data.permutation import epoch_permutation
from distbelief.data.transforms import EvalTransform, TrainTransform
from distbelief.evaluation.accuracy import evaluate
from distbelief.evaluation.custom import evaluate_loss
from distbelief.evaluation.statistics import has_running_statistics, recompute_running_statistics
from distbelief.observe.histograms import weight_histograms
from distbelief.product.weights import Trained, WhichWeights, to_bytes
from distbelief.replica.buffers import FlatModel
from distbelief.replica.exchange import ShardPort
from distbelief.replica.step import ImageInput, resolve_device
from distbelief.runtime.worker import ModelSpec
from distbelief.storage import storage_at
from distbelief.types import Weights

EVALUATION_BATCH = 100
STATISTICS_BATCHES = 20
CACHE_NBYTES = 256 << 20
"""Validation images that take less are decoded once and kept."""


class Evaluator:
    """Fetches the averaged weights from the shards and does with them what a user would.

    One caller at a time; a context manager, since it decodes in processes of its own.
    """

    def __init__(self, spec: ModelSpec, *, n_loaders: int) -> None:
        self._spec = spec
        config = spec.config
        self._dataset, model, self._layout = spec.open()
        # The evaluation stays off the accelerators, which the replicas have.
        self._flat = FlatModel(model, self._layout, resolve_device("cpu"))
        self._images = ImageInput(
            config.data.normalize, torch.device("cpu"), config.model.channels_last
        )
        # Without an average the shards answer with what they have.
        averaged = config.averaging.average != "none"
        self._weights: WhichWeights = "averaged" if averaged else "latest"
        self._n_loaders = n_loaders
        self._loader: BatchLoader | None = None
        self._cache: list[Batch] = []

    def __enter__(self) -> Evaluator:
        val, config = self._dataset.val, self._spec.config
        if val is not None and config.evaluate:
            transform = EvalTransform(config.data.image_size)
            self._loader = BatchLoader(val, transform, config.seed, self._n_loaders)
            self._loader.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._loader is not None:
            self._loader.__exit__(kind, error, trace)
            self._loader = None

    def evaluate(self, ports: Sequence[ShardPort]) -> dict[str, Any] | None:
        """Top-1, top-5 and loss of the shards' averaged weights, or None without validation images.

        Models with running statistics have them recomputed for these weights first.
        """
        self._fetch(ports)
        if self._loader is None:
            return None
        began = time.monotonic()
        batches = ((self._images(b.images), torch.from_numpy(b.labels)) for b in self._batches())
        loss = self._spec.task.loss
        found: dict[str, Any] = (
            asdict(evaluate(self._flat.model, batches))
            if loss is None
            else evaluate_loss(self._flat.model, batches, loss)
        )
        seconds = round(time.monotonic() - began, 2)
        if self._spec.config.tensorboard:
            found["histograms"] = weight_histograms(self._flat.model)
        return {**found, "weights": self._weights, "seconds": seconds}

    def write(self, ports: Sequence[ShardPort], name: str) -> None:
        """Writes the shards' averaged weights into the run's folder: all that the model has."""
        self._fetch(ports)
        config = self._spec.config
        trained = Trained(
            model=self._flat.model,
            name=name,
            network=config.model,
            classes=self._dataset.classes,
            n_outputs=self._spec.n_outputs,
            image_size=config.data.image_size,
            normalize=config.data.normalize,
            weights=self._weights,
        )
        storage_at(str(config.run_dir)).write(name, to_bytes(trained))

    def _fetch(self, ports: Sequence[ShardPort]) -> None:
        for port in ports:
            out = self._flat.incoming[port.begin : port.end]
            port.service.fetch(out, begin=port.begin, weights=Weights.AVERAGED)
        self._flat.swap_in()
        if has_running_statistics(self._flat.model):
            self._recompute_statistics()

    def _batches(self) -> Iterator[Batch]:
        if self._cache:
            yield from self._cache
            return
        val, loader = self._dataset.val, self._loader
        assert val is not None
        assert loader is not None
        requests = sequential_batches(val.n_examples, EVALUATION_BATCH)
        kept: list[Batch] = []
        room = CACHE_NBYTES
        for batch in _ahead(loader, requests):
            room -= batch.images.nbytes
            kept = [*kept, batch] if room >= 0 else []
            yield batch
        self._cache = kept

    def _recompute_statistics(self) -> None:
        config, train = self._spec.config, self._dataset.train
        # Not the source's order, whose first examples may all be of one tar.
        order = epoch_permutation(config.seed, 0, train.n_examples)
        size = config.replica.batch_size
        requests = [
            BatchRequest(0, order[begin : begin + size])
            for begin in range(0, min(train.n_examples, STATISTICS_BATCHES * size), size)
        ]
        transform = TrainTransform.of(config.data)
        with BatchLoader(train, transform, config.seed, self._n_loaders) as loader:
            batches = (
                (self._images(b.images), torch.from_numpy(b.labels))
                for b in _ahead(loader, iter(requests))
            )
            recompute_running_statistics(self._flat.model, batches)


def _ahead(loader: BatchLoader, requests: Iterator[BatchRequest]) -> Iterator[Batch]:
    """The batches in order, a few of them decoded ahead."""
    pending = [loader.submit(r) for _, r in zip(range(4), requests, strict=False)]
    while pending:
        batch = pending.pop(0).result()
        following = next(requests, None)
        if following is not None:
            pending.append(loader.submit(following))
        yield batch
