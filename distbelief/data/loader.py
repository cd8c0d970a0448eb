"""Batches of examples, decoded ahead by processes of their own."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distbelief.data.images import UnreadableImage
from distbelief.data.permutation import example_rng
from distbelief.data.processes import LightContext, follow_parent, travels
from distbelief.data.source import ImageSource, Input, RandomSource, Target
from distbelief.data.transforms import Transform
from distbelief.errors import DataError, ProcessLostError

START_TIMEOUT_S = 120.0
"""How long the processes may take to start."""
GRACE_S = 10.0
"""How long a process may go on with the image it is at, when the loader is closed."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchRequest:
    """Which examples, in which epoch.

    Attributes:
        epoch: Part of the seed of the augmentation.
        indices: ``(n,) int64``, in the order of the batch.
    """

    epoch: int
    indices: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Decoded examples, without those that cannot be read.

    Shapes and types are those of the first example of the batch.

    Attributes:
        images: ``(n, *shape)``: of images what the transform makes, ``(n, size, size, 3) uint8`` as
            a rule; of other inputs the arrays themselves.
        labels: ``(n,) int64``, or ``(n, *shape)`` where a target is more than a label.
        indices: ``(n,) int64``, of the examples that are here, in the order of the request.
        skipped: Indices of those that could not be read; ``source.name`` tells which they are.
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    indices: NDArray[np.int64]
    skipped: tuple[int, ...]


class BatchLoader:
    """Decodes batches in processes, or in one thread of this process.

    A batch is the same whoever makes it, and when: the augmentation of an example depends on seed,
    epoch and index alone. Use it as a context manager; :meth:`submit` may be called by any thread.

    The processes do not import this process's main module. So a source that cannot be pickled
    without it, as a data set whose class is defined in a script or a notebook, or that cannot be
    pickled at all, is decoded in a thread of this process, however many processes are asked for.
    """

    def __init__(
        self, source: ImageSource, transform: Transform, seed: int, n_workers: int
    ) -> None:
        """Start nothing yet.

        Args:
            source: The examples; pickled into each process.
            transform: What is done with each; pickled into each process.
            seed: Seed of the augmentation.
            n_workers: Processes; 0 for one thread of this process.
        """
        # Without a lock, unlike an event: a process that is killed cannot leave it locked.
        self._context = LightContext()
        self._stop = self._context.RawValue(ctypes.c_bool, False)
        self._decoder = _Decoder(source, transform, seed, self._stop)
        self._n_workers = n_workers if n_workers and travels((source, transform)) else 0
        self._executor: Executor | None = None

    def __enter__(self) -> Self:
        """Start the processes, and wait until each of them is ready.

        Raises:
            ProcessLostError: a process ended, or was not ready in time.
            RuntimeError: the loader was open before.
        """
        if self._executor is not None or self._stop.value:
            raise RuntimeError("a loader opens once")
        if self._n_workers == 0:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="loader")
            return self
        everybody = self._context.Barrier(self._n_workers)
        self._executor = ProcessPoolExecutor(
            self._n_workers,
            mp_context=self._context,
            initializer=_start_worker,
            initargs=(self._decoder, everybody),
        )
        try:
            # The barrier keeps each at its first task, so that there must be one for each task.
            ready = [self._executor.submit(_ready) for _ in range(self._n_workers)]
            for future in ready:
                future.result(START_TIMEOUT_S)
        except (BrokenExecutor, TimeoutError, threading.BrokenBarrierError) as error:
            self._close()
            raise ProcessLostError(
                "a loader process",
                "it did not start; its output says why, and --loaders sets how many there are",
            ) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel what is pending and end the processes; blocks until they are gone."""
        self._close()

    @property
    def pids(self) -> tuple[int, ...]:
        """The loader's processes."""
        return tuple(process.pid for process in self._context.started if process.pid is not None)

    def submit(self, request: BatchRequest) -> Future[Batch]:
        """Ask for a batch; returns at once.

        Requests wait in an unbounded queue: the caller bounds what is ahead by what it submits.
        The future's arrays are fresh ones of the caller's. It raises ``DataError`` when examples
        of one batch differ in shape or type, and ``BrokenProcessPool`` when a process of the loader
        was killed; the loader is of no use from then on.

        Raises:
            RuntimeError: the loader is not open.
        """
        if self._executor is None:
            raise RuntimeError("the loader is not open")
        decode = self._decoder if self._n_workers == 0 else _decode
        return self._executor.submit(decode, request)

    def _close(self) -> None:
        executor, self._executor = self._executor, None
        if executor is None:
            return
        self._stop.value = True
        # A read that hangs, as of a network file system, must not keep the run from ending.
        killer = threading.Timer(GRACE_S, self._kill)
        killer.name = "loader-killer"
        killer.start()
        try:
            executor.shutdown(wait=True, cancel_futures=True)
        finally:
            killer.cancel()
            killer.join()

    def _kill(self) -> None:
        for process in self._context.started:
            process.kill()


def sequential_batches(n_examples: int, batch_size: int) -> Iterator[BatchRequest]:
    """Every example once, in order, as evaluation wants them; the last batch may be shorter."""
    for begin in range(0, n_examples, batch_size):
        end = min(begin + batch_size, n_examples)
        yield BatchRequest(0, np.arange(begin, end, dtype=np.int64))


class _Decoder:
    """What a worker does; sent to it once."""

    def __init__(
        self, source: ImageSource, transform: Transform, seed: int, stop: ctypes.c_bool
    ) -> None:
        self._source = source
        self._random = source if isinstance(source, RandomSource) else None
        self._transform = transform
        self._seed = seed
        self._stop = stop

    def __call__(self, request: BatchRequest) -> Batch:
        n = len(request.indices)
        images, labels = _Stack("input", n), _Stack("target", n)
        kept: list[int] = []
        skipped: list[int] = []
        for index in request.indices.tolist():
            if self._stop.value:
                raise CancelledError
            rng = example_rng(self._seed, request.epoch, index)
            try:
                image, label = self._read(index, rng)
                if isinstance(image, Image.Image):
                    image = self._transform(image, rng)
            except UnreadableImage:
                skipped.append(index)
                continue
            images.add(image, index, self._source)
            labels.add(label, index, self._source)
            kept.append(index)
        size = self._transform.size
        return Batch(
            images.rows(np.empty((0, size, size, 3), dtype=np.uint8)),
            labels.rows(np.empty(0, dtype=np.int64)),
            np.array(kept, dtype=np.int64),
            tuple(skipped),
        )

    def _read(self, index: int, rng: np.random.Generator) -> tuple[Input, Target]:
        if self._random is not None:
            return self._random.read_with(index, rng)
        return self._source.read(index)


class _Stack:
    """Rows of one shape and type, those of the first."""

    def __init__(self, what: str, n: int) -> None:
        self._what = what
        self._n = n
        self._filled = 0
        self._rows: NDArray[Any] | None = None

    def add(self, value: Any, index: int, source: ImageSource) -> None:
        row = np.asarray(value)
        if self._rows is None:
            self._rows = np.empty((self._n, *row.shape), dtype=row.dtype)
        wanted = self._rows.shape[1:]
        if row.shape != wanted or row.dtype != self._rows.dtype:
            raise DataError(
                source.name(index),
                f"the {self._what} of example {index} is {row.shape} {row.dtype}, of others in its"
                f" batch {wanted} {self._rows.dtype}: all must be of one shape and type",
            )
        self._rows[self._filled] = row
        self._filled += 1

    def rows(self, default: NDArray[Any]) -> NDArray[Any]:
        return default if self._rows is None else self._rows[: self._filled]


_worker: _Decoder | None = None
_everybody: Barrier | None = None


def _start_worker(decoder: _Decoder, everybody: Barrier) -> None:
    global _worker, _everybody
    follow_parent()
    _worker, _everybody = decoder, everybody
    # A data set may have imported it; there are as many processes as are to compute.
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


def _ready() -> None:
    if _everybody is not None:
        _everybody.wait(START_TIMEOUT_S)


def _decode(request: BatchRequest) -> Batch:
    if _worker is None:
        raise RuntimeError("the worker was not started by a loader")
    return _worker(request)
