"""Small images, kept decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distbelief.data.images import decode
from distbelief.data.source import ImageSource, Input, Target

SMALL_PIXELS = 128 * 128
"""Images up to this size are kept: opening and decoding them costs more than all else."""

CACHE_NBYTES = 128 << 20
"""What one loader process keeps at most."""


class CachedSource:
    """A source that decodes each small image once in a process, as long as there is room.

    What it keeps stays in the process: a pickled one arrives empty.
    """

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._kept: dict[int, tuple[Image.Image, Target]] = {}
        self._room = CACHE_NBYTES

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source, "_kept": {}, "_room": CACHE_NBYTES}

    @property
    def classes(self) -> tuple[str, ...]:
        """See :class:`ImageSource`."""
        return self._source.classes

    @property
    def n_examples(self) -> int:
        """See :class:`ImageSource`."""
        return self._source.n_examples

    @property
    def digest(self) -> str:
        """See :class:`ImageSource`."""
        return self._source.digest

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """See :class:`ImageSource`."""
        return self._source.epoch_order(seed, epoch)

    def read(self, index: int) -> tuple[Input, Target]:
        """See :class:`ImageSource`."""
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        image, label = self._source.read(index)
        if not isinstance(image, Image.Image):
            return image, label
        nbytes = 3 * image.width * image.height
        if nbytes <= min(3 * SMALL_PIXELS, self._room):
            image, _ = decode(image)
            self._kept[index] = (image, label)
            self._room -= nbytes
        return image, label

    def name(self, index: int) -> str:
        """See :class:`ImageSource`."""
        return self._source.name(index)
