"""Vectors that handlers receive into and answer from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class BufferPool:
    """Float32 vectors of one size, kept after use so that their pages stay mapped. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[torch.Tensor] = []
        self._lock = threading.Lock()

    @contextmanager
    def lend(self) -> Iterator[torch.Tensor]:
        """A vector of undefined contents, for the time of the block."""
        with self._lock:
            buffer = self._free.pop() if self._free else None
        if buffer is None:
            buffer = torch.empty(self._size)
        try:
            yield buffer
        finally:
            with self._lock:
                self._free.append(buffer)
