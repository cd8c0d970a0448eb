"""The seam between the loader and whatever holds images."""

from __future__ import annotations

from typing import Protocol

from PIL import Image


class ImageSource(Protocol):
    """A fixed, numbered list of labelled images.

    A source is sent to each loader process once, pickled, and then read there by one thread.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        ...

    @property
    def n_examples(self) -> int:
        """Number of images; indices run from 0."""
        ...

    @property
    def digest(self) -> str:
        """Changes with the list of images or of classes; the same on every host that has it."""
        ...

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image and its label.

        Only the header may have been read, so that the reader can still choose a cheaper decoding:
        pass the image to :func:`distbelief.data.images.decode`, which gives it in mode RGB.

        Raises:
            UnreadableImage: the image cannot be read; others still can.
            IndexError: there is no such index.
        """
        ...

    def name(self, index: int) -> str:
        """What a message calls the image: its path, if it has one."""
        ...
