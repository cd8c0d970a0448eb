"""The seam between the loader and whatever holds examples, which are images as a rule."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Input = Image.Image | NDArray[Any]
"""An image, which goes through the transform, or an array that is what the network takes."""

Target = int | NDArray[Any]
"""A label, or an array that is what the loss takes."""


class ImageSource(Protocol):
    """A fixed, numbered list of examples.

    A source is sent to each loader process once, pickled, and then read there by one thread.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels; none, if the source does not know them."""
        ...

    @property
    def n_examples(self) -> int:
        """Number of examples; indices run from 0."""
        ...

    @property
    def digest(self) -> str:
        """Changes with the list of examples or of classes; the same on every host that has it."""
        ...

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch's examples, ``(n_examples,) int64``: each index exactly once.

        A function of the source and the arguments alone; the same on every host.
        """
        ...

    def read(self, index: int) -> tuple[Input, Target]:
        """The example and its target, which for an image is its label.

        Only an image's header may have been read, so that the reader can still choose a cheaper
        decoding: pass it to :func:`distbelief.data.images.decode`, which gives it in mode RGB.

        Raises:
            UnreadableImage: the image cannot be read; others still can.
            IndexError: there is no such index.
        """
        ...

    def name(self, index: int) -> str:
        """What a message calls the example: its path, if it has one."""
        ...


@runtime_checkable
class RandomSource(Protocol):
    """A source whose examples are random themselves."""

    def read_with(self, index: int, rng: np.random.Generator) -> tuple[Input, Target]:
        """What :meth:`ImageSource.read` does, with all randomness taken from ``rng``."""
        ...
