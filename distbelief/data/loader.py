"""Batches of decoded images, made ahead by processes of their own."""

from __future__ import annotations

import ctypes
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
from typing import Self

import numpy as np
from numpy.typing import NDArray

from distbelief.data.images import UnreadableImage
from distbelief.data.permutation import example_rng
from distbelief.data.processes import LightContext, follow_parent
from distbelief.data.source import ImageSource
from distbelief.data.transforms import Transform
from distbelief.errors import ProcessLostError

START_TIMEOUT_S = 120.0
"""How long the processes may take to start."""
GRACE_S = 10.0
"""How long a process may go on with the image it is at, when the loader is closed."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchRequest:
    """Which images, in which epoch.

    Attributes:
        epoch: Part of the seed of the augmentation.
        indices: ``(n,) int64``, in the order of the batch.
    """

    epoch: int
    indices: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Decoded images, without those that cannot be read.

    Attributes:
        images: ``(n, size, size, 3) uint8``.
        labels: ``(n,) int64``.
        indices: ``(n,) int64``, of the images that are here, in the order of the request.
        skipped: Indices of those that could not be read; ``source.name`` tells which they are.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    skipped: tuple[int, ...]


class BatchLoader:
    """Decodes batches in processes, or in one thread of this process.

    A batch is the same whoever makes it, and when: the augmentation of an image depends on seed,
    epoch and index alone. Use it as a context manager; :meth:`submit` may be called by any thread.
    """

    def __init__(
        self, source: ImageSource, transform: Transform, seed: int, n_workers: int
    ) -> None:
        """Start nothing yet.

        Args:
            source: The images; pickled into each process.
            transform: What is done with each; pickled into each process.
            seed: Seed of the augmentation.
            n_workers: Processes; 0 for one thread of this process.
        """
        # Without a lock, unlike an event: a process that is killed cannot leave it locked.
        self._context = LightContext()
        self._stop = self._context.RawValue(ctypes.c_bool, False)
        self._decoder = _Decoder(source, transform, seed, self._stop)
        self._n_workers = n_workers
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
        The future's images are a fresh array of the caller's. It raises ``BrokenProcessPool`` when
        a process of the loader was killed; the loader is of no use from then on.

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
    """Every image once, in order, as evaluation wants them; the last batch may be shorter."""
    for begin in range(0, n_examples, batch_size):
        end = min(begin + batch_size, n_examples)
        yield BatchRequest(0, np.arange(begin, end, dtype=np.int64))


class _Decoder:
    """What a worker does; sent to it once."""

    def __init__(
        self, source: ImageSource, transform: Transform, seed: int, stop: ctypes.c_bool
    ) -> None:
        self._source = source
        self._transform = transform
        self._seed = seed
        self._stop = stop

    def __call__(self, request: BatchRequest) -> Batch:
        size = self._transform.size
        n = len(request.indices)
        images = np.empty((n, size, size, 3), dtype=np.uint8)
        labels = np.empty(n, dtype=np.int64)
        kept: list[int] = []
        skipped: list[int] = []
        for index in request.indices.tolist():
            if self._stop.value:
                raise CancelledError
            try:
                image, label = self._source.read(index)
                pixels = self._transform(image, example_rng(self._seed, request.epoch, index))
            except UnreadableImage:
                skipped.append(index)
                continue
            images[len(kept)] = pixels
            labels[len(kept)] = label
            kept.append(index)
        return Batch(
            images[: len(kept)],
            labels[: len(kept)],
            np.array(kept, dtype=np.int64),
            tuple(skipped),
        )


_worker: _Decoder | None = None
_everybody: Barrier | None = None


def _start_worker(decoder: _Decoder, everybody: Barrier) -> None:
    global _worker, _everybody
    follow_parent()
    _worker, _everybody = decoder, everybody


def _ready() -> None:
    if _everybody is not None:
        _everybody.wait(START_TIMEOUT_S)


def _decode(request: BatchRequest) -> Batch:
    if _worker is None:
        raise RuntimeError("the worker was not started by a loader")
    return _worker(request)
