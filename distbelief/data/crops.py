"""Several crops of an image, whose predictions evaluation averages.

- 10 crops (Krizhevsky et al. 2012, section 4.1): of the image whose shorter side is 256 the central
  square; of that the four corners and the centre, each as it is and mirrored.
- 144 crops (Szegedy et al. 2015, section 7): the shorter side is 256, 288, 320 and 352; of each
  such image the left, centre and right square (top, centre and bottom, if it is upright); of each
  square the four corners and the centre, and the whole square resized; each as it is and
  mirrored: 4 x 3 x 6 x 2.

These are the sides for crops of 224; for others all are scaled alike. A single crop is what
:class:`distbelief.data.transforms.EvalTransform` makes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distbelief.data.images import MAX_PIXELS, UnreadableImage, decode
from distbelief.data.transforms import Box, reduction_for

NCrops = Literal[10, 144]

_PAPER_SIZE = 224
_SHORTER_SIDES: dict[int, tuple[int, ...]] = {10: (256,), 144: (256, 288, 320, 352)}


class Crop(NamedTuple):
    """One crop: a box of the image after it was resized, all in whole pixels.

    Attributes:
        width: Width of the resized image.
        height: Its height.
        left: First column of the box.
        top: First row.
        right: One past the last column.
        bottom: One past the last row.
        resize: Whether the box is larger than the crop, and is resized to it.
        mirrored: Whether left and right are swapped.
    """

    width: int
    height: int
    left: int
    top: int
    right: int
    bottom: int
    resize: bool
    mirrored: bool


def crop_boxes(width: int, height: int, size: int, n_crops: int) -> tuple[Crop, ...]:
    """The crops of an image, in the order of scale, square, place, mirrored or not.

    Args:
        width: Of the image, in pixels.
        height: Of the image.
        size: Side of the crops.
        n_crops: 10 or 144.

    Raises:
        ValueError: there is no such set of crops.
    """
    if n_crops not in get_args(NCrops):
        raise ValueError(f"there are 10 or 144 crops, not {n_crops}")
    crops = []
    for paper_side in _SHORTER_SIDES[n_crops]:
        side = _divided(paper_side * size, _PAPER_SIZE)
        scaled = _resized_to(width, height, side)
        for left, top, right, bottom, resize in _boxes(*scaled, size, whole=n_crops == 144):
            for mirrored in (False, True):
                crops.append(Crop(*scaled, left, top, right, bottom, resize, mirrored))
    return tuple(crops)


@dataclass(frozen=True, slots=True)
class CropsTransform:
    """All crops of an image: decoded once, resized once a scale. ``rng`` is not used.

    Attributes:
        size: Side of the crops.
        n_crops: 10 or 144.
    """

    size: int
    n_crops: NCrops

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The crops in the order of :func:`crop_boxes`, ``(n_crops, size, size, 3) uint8``.

        Raises:
            UnreadableImage: the image cannot be decoded, or is so long that its resized copies
                would fill the memory.
        """
        width, height = image.size
        crops = crop_boxes(width, height, self.size, self.n_crops)
        largest = max(crop.width * crop.height for crop in crops)
        if largest > MAX_PIXELS:
            path = str(getattr(image, "filename", "image"))
            raise UnreadableImage(path, f"{width} x {height} is too long to be cropped")
        side = max(min(crop.width, crop.height) for crop in crops)
        rgb, factor = decode(image, reduction_for(Box(0, 0, width, height), side))
        edges = (0, 0, min(width / factor, rgb.width), min(height / factor, rgb.height))
        out = np.empty((self.n_crops, self.size, self.size, 3), dtype=np.uint8)
        numbered = enumerate(crops)
        for scaled, group in itertools.groupby(numbered, lambda pair: pair[1][:2]):
            picture = rgb
            if rgb.size != scaled or edges != (0, 0, *scaled):
                picture = rgb.resize(scaled, Image.Resampling.BILINEAR, box=edges)
            pixels = np.asarray(picture)
            for number, crop in group:
                # The mirrored one follows the crop that it mirrors.
                out[number] = (
                    out[number - 1][:, ::-1] if crop.mirrored else self._cut(picture, pixels, crop)
                )
        return out

    def _cut(
        self, picture: Image.Image, pixels: NDArray[np.uint8], crop: Crop
    ) -> NDArray[np.uint8]:
        if crop.resize:
            # Pillow's own box would let pixels beyond the square's edge in.
            square = picture.crop((crop.left, crop.top, crop.right, crop.bottom))
            return np.asarray(square.resize((self.size, self.size), Image.Resampling.BILINEAR))
        return pixels[crop.top : crop.bottom, crop.left : crop.right]


def _boxes(
    width: int, height: int, size: int, *, whole: bool
) -> Iterator[tuple[int, int, int, int, bool]]:
    """Left, top, right, bottom and whether to resize; of all three squares if ``whole``."""
    squares = _squares(width, height)
    areas = squares if whole else squares[1:2]
    for left, top, right, bottom in areas:
        beyond_x, beyond_y = right - left - size, bottom - top - size
        places = [(0, 0), (beyond_x, 0), (0, beyond_y), (beyond_x, beyond_y)]
        places.append((beyond_x // 2, beyond_y // 2))
        for x, y in places:
            yield left + x, top + y, left + x + size, top + y + size, False
        if whole:
            yield left, top, right, bottom, (right - left, bottom - top) != (size, size)


def _squares(width: int, height: int) -> list[tuple[int, int, int, int]]:
    side = min(width, height)
    beyond = max(width, height) - side
    starts = (0, beyond // 2, beyond)
    if height > width:
        return [(0, start, side, start + side) for start in starts]
    return [(start, 0, start + side, side) for start in starts]


def _resized_to(width: int, height: int, side: int) -> tuple[int, int]:
    if width <= height:
        return side, _divided(height * side, width)
    return _divided(width * side, height), side


def _divided(a: int, b: int) -> int:
    """``a / b`` to the nearest whole number, halves up: floats would round some sizes elsewhere."""
    return (2 * a + b) // (2 * b)
