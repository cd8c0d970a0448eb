"""From an image of any size to the square that the network sees.

Large images (a side above 64) follow the GoogLeNet paper: training crops of 8 to 100 % of the
image's area and of aspect ratio 3/4 to 4/3 (section 6), evaluation on the central crop of the image
whose shorter side is 256/224 of the crop's. Small ones follow what is usual for CIFAR: shifts of an
eighth of the side, and flips. Both may have their colours changed, and be resized in one of four
ways.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distbelief.config import DataConfig
from distbelief.data.images import decode
from distbelief.data.photometric import distorted

SMALL = 64
"""The largest side that is shifted rather than cropped by area."""

_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_TRIES = 10

_MIRROR = Image.Transpose.FLIP_LEFT_RIGHT
_INTERPOLATIONS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BOX,
    Image.Resampling.NEAREST,
    Image.Resampling.BICUBIC,
)


class Transform(Protocol):
    """Makes an image ready for the network; frozen, picklable, usable by several threads."""

    @property
    def size(self) -> int:
        """Side of what the network sees."""
        ...

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> NDArray[Any]:
        """An array of the same shape and type for every image; here ``(size, size, 3) uint8``.

        It may be a read-only or a reversed view.

        Raises:
            UnreadableImage: the image cannot be decoded.
        """
        ...


class Box(NamedTuple):
    """A rectangle of an image, in pixels and fractions of them."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class TrainTransform:
    """Random crop or shift, and a horizontal flip of one in two.

    Attributes:
        size: Side of the result.
        photometric: Whether colours are changed, by :func:`distbelief.data.photometric.distorted`.
        interpolation: How crops are resized: always bilinear, or with equal chance bilinear, by
            area, by the nearest pixel or cubic (Szegedy et al. 2014, section 6).
    """

    size: int
    photometric: bool = False
    interpolation: Literal["bilinear", "random"] = "bilinear"

    @classmethod
    def of(cls, config: DataConfig) -> Self:
        """What a configuration asks for."""
        return cls(config.image_size, config.photometric, config.interpolation)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
        """See :class:`Transform`."""
        flip = rng.random() < 0.5
        large = self.size > SMALL
        box = sample_box(*image.size, rng) if large else central_box(*image.size)
        found = resized_image(image, box, self.size, self._filter(rng))
        if self.photometric:
            found = distorted(found, rng)
        if large:
            # Copying a reversed array into the batch would take five times as long.
            return np.asarray(found.transpose(_MIRROR) if flip else found)
        pixels = np.asarray(found)
        # Mirrored borders, not zeros: black edges would tell the network how far it was shifted.
        reflected = _reflected(self.size)
        top, left = rng.integers(0, len(reflected) - self.size, size=2, endpoint=True).tolist()
        columns = reflected[left : left + self.size]
        rows = reflected[top : top + self.size]
        return pixels[rows[:, None], columns[::-1] if flip else columns]

    def _filter(self, rng: np.random.Generator) -> Image.Resampling:
        if self.interpolation == "bilinear":
            return Image.Resampling.BILINEAR
        return _INTERPOLATIONS[int(rng.random() * len(_INTERPOLATIONS))]


@dataclass(frozen=True, slots=True)
class EvalTransform:
    """The central crop; ``rng`` is not used.

    Attributes:
        size: Side of the result.
    """

    size: int

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
        """See :class:`Transform`."""
        return resized(image, self.box(*image.size), self.size)

    def box(self, width: int, height: int) -> Box:
        """The part of a ``width`` x ``height`` image that is seen."""
        if self.size <= SMALL:
            return central_box(width, height)
        return central_box(width, height, self.size / round(self.size * 256 / 224))


def central_box(width: int, height: int, fraction: float = 1.0) -> Box:
    """The central square whose side is ``fraction`` of the shorter side."""
    side = min(width, height) * fraction
    return Box((width - side) / 2, (height - side) / 2, side, side)


def sample_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """A random rectangle inside a ``width`` x ``height`` image, by the GoogLeNet paper.

    Its area is uniform in 8 to 100 % of the image's, its aspect ratio log-uniform in 3/4 to 4/3.
    After ten that did not fit: the largest central one whose aspect ratio is within the bounds.
    """
    low, high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    for _ in range(_TRIES):
        area = width * height * (_AREA[0] + (_AREA[1] - _AREA[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            return Box((width - w) * rng.random(), (height - h) * rng.random(), w, h)
    w = min(width, height * _ASPECT[1])
    h = min(height, width / _ASPECT[0])
    return Box((width - w) / 2, (height - h) / 2, w, h)


def resized(image: Image.Image, box: Box, size: int) -> NDArray[np.uint8]:
    """The box of the image, bilinear with antialiasing, as ``(size, size, 3) uint8``.

    Raises:
        UnreadableImage: the image cannot be decoded.
    """
    return np.asarray(resized_image(image, box, size, Image.Resampling.BILINEAR))


def resized_image(
    image: Image.Image, box: Box, size: int, resample: Image.Resampling
) -> Image.Image:
    """The box of the image, ``size`` x ``size`` in mode RGB.

    All ways of resizing but the nearest pixel average over what they shrink. The result may be the
    image itself: it is not to be changed in place.

    Raises:
        UnreadableImage: the image cannot be decoded.
    """
    # A reduced image's pixels are averages: its nearest ones would not be the image's.
    nearest = resample == Image.Resampling.NEAREST
    rgb, factor = decode(image, 1 if nearest else reduction_for(box, size))
    left, top = box.left / factor, box.top / factor
    # Rounding may carry the far edge past the image by a last place, which Pillow refuses.
    right = min(left + box.width / factor, rgb.width)
    bottom = min(top + box.height / factor, rgb.height)
    edges = (left, top, right, bottom)
    if rgb.size != (size, size) or edges != (0, 0, size, size):
        rgb = rgb.resize((size, size), resample, box=edges)
    return rgb


def reduction_for(box: Box, size: int) -> int:
    """How much smaller the image may be decoded with ``size`` pixels still in the box's sides."""
    return next((k for k in (8, 4, 2) if min(box.width, box.height) >= k * size), 1)


@functools.cache
def _reflected(size: int) -> NDArray[np.intp]:
    return np.pad(np.arange(size), size // 8, mode="reflect")
