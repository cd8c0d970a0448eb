"""The data set that needs no files: ten classes of drawn shapes."""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from distbelief.data.permutation import Stream, epoch_permutation, keyed_philox

CLASSES = (
    "arrow", "bars", "cross", "disc", "moon", "rhombus", "ring", "square", "star", "triangle",
)  # fmt: skip

TILT = 0.5
"""Shapes are turned by up to so many radians either way."""

Points = tuple[tuple[float, float], ...]
Colour = tuple[int, int, int]


def _regular(n: int, *radii: float) -> Points:
    return tuple(
        (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a))
        for i, a in enumerate(2 * math.pi * i / n for i in range(n))
    )


def _rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    return ((left, top), (right, top), (right, bottom), (left, bottom))


# Within the unit circle. Their areas overlap, so that how much is covered does not give them away.
_POLYGONS: dict[str, tuple[Points, ...]] = {
    "arrow": (
        (
            (1, 0),
            (0.1, 0.75),
            (0.1, 0.28),
            (-0.95, 0.28),
            (-0.95, -0.28),
            (0.1, -0.28),
            (0.1, -0.75),
        ),
    ),
    "bars": tuple(_rectangle(-0.75, y - 0.16, 0.75, y + 0.16) for y in (-0.58, 0.0, 0.58)),
    "cross": (_rectangle(-0.95, -0.28, 0.95, 0.28), _rectangle(-0.28, -0.95, 0.28, 0.95)),
    "rhombus": (((1, 0), (0, 0.52), (-1, 0), (0, -0.52)),),
    "square": (_regular(4, 0.95),),
    "star": (_regular(10, 1.0, 0.42),),
    "triangle": (_regular(3, 1.0),),
}


class DrawnShapes:
    """Shapes of random place, size, angle and colours, with lines, dots, shading and noise.

    Image ``i`` is a function of seed, split, size and ``i`` alone, and has label ``i % 10``, so
    that classes are balanced. The images of the two splits come from different random streams.

    Attributes:
        classes: The ten shapes.
        n_examples: Number of images.
        digest: Changes with the arguments.
    """

    def __init__(
        self, split: Literal["train", "val"], n_examples: int, seed: int, size: int
    ) -> None:
        """Draw nothing yet.

        Args:
            split: Which of the two sets.
            n_examples: Number of images.
            seed: Seed of all of them, in [0, 2**64).
            size: Side of the images, in pixels.
        """
        self.classes = CLASSES
        self.n_examples = n_examples
        self._split = split
        self._seed = seed
        self._size = size
        facts = f"{split} {n_examples} {seed} {size} {' '.join(CLASSES)}"
        self.digest = hashlib.sha256(facts.encode()).hexdigest()

    def read(self, index: int) -> tuple[Image.Image, int]:
        """See :class:`distbelief.data.source.ImageSource`; never unreadable."""
        if not 0 <= index < self.n_examples:
            raise IndexError(f"image {index} of {self.n_examples}")
        label = index % len(CLASSES)
        part = int(self._split == "val")
        rng = np.random.Generator(keyed_philox(self._seed, Stream.DRAWING, part, index))
        return draw(CLASSES[label], self._size, rng), label

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """See :class:`distbelief.data.source.ImageSource`."""
        return epoch_permutation(seed, epoch, self.n_examples)

    def name(self, index: int) -> str:
        """What a message calls the image."""
        return f"drawn {self._split} image {index} ({CLASSES[index % len(CLASSES)]})"


def draw(shape: str, size: int, rng: np.random.Generator) -> Image.Image:
    """One image of ``shape``, ``size`` pixels a side, in mode RGB."""
    # Drawn larger and averaged: Pillow's own drawing has hard edges.
    scale = 4 if size <= 64 else 2
    side = size * scale
    # One call for all: each costs more than the numbers in it.
    u = rng.random(31).tolist()
    back, fore = _colours(u[:6])
    canvas = Image.new("RGB", (side, side), back)
    pen = ImageDraw.Draw(canvas)
    _clutter(pen, side, u[8:16])
    radius = side * (0.30 + 0.16 * u[24])
    x = radius + (side - 2 * radius) * u[25]
    y = radius + (side - 2 * radius) * u[26]
    _shape(pen, shape, (x, y), radius, TILT * (2 * u[27] - 1), fore, back)
    _clutter(pen, side, u[16:24])
    return _shaded(canvas.reduce(scale), u[28:31], rng)


def _colours(u: list[float]) -> tuple[Colour, Colour]:
    # Bright on dark: were either possible, a small network without batch normalisation would take
    # most of a quick run to get off the ground.
    back = [int(10 + 80 * value) for value in u[:3]]
    fore = [value + int(110 + 50 * step) for value, step in zip(back, u[3:], strict=True)]
    return (back[0], back[1], back[2]), (fore[0], fore[1], fore[2])


def _clutter(pen: ImageDraw.ImageDraw, side: int, u: list[float]) -> None:
    colour = (int(255 * u[0]), int(255 * u[1]), int(255 * u[2]))
    x, y = side * u[3], side * u[4]
    if u[5] < 0.5:
        r = side * (0.02 + 0.04 * u[6])
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    else:
        angle, length = 2 * math.pi * u[6], side * (0.15 + 0.35 * u[7])
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        pen.line((x, y, *end), fill=colour, width=max(1, side // 40))


def _shape(
    pen: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[float, float],
    radius: float,
    angle: float,
    fore: Colour,
    back: Colour,
) -> None:
    x, y = centre
    c, s = radius * math.cos(angle), radius * math.sin(angle)
    if shape in _POLYGONS:
        for points in _POLYGONS[shape]:
            pen.polygon([(x + c * u - s * v, y + s * u + c * v) for u, v in points], fill=fore)
        return
    r = 0.85 * radius
    circle = (x - r, y - r, x + r, y + r)
    if shape == "ring":
        pen.ellipse(circle, outline=fore, width=round(0.38 * r))
        return
    pen.ellipse(circle, fill=fore)
    if shape == "moon":
        x, y, r = x + 0.5 * c, y + 0.5 * s, 0.8 * r
        pen.ellipse((x - r, y - r, x + r, y + r), fill=back)


def _shaded(image: Image.Image, u: list[float], rng: np.random.Generator) -> Image.Image:
    size = image.width
    amplitude = 0.02 + 0.08 * u[0]
    ramp = _ramp(size)
    shade = (50 * (u[1] - 0.5) * ramp)[:, None] + (50 * (u[2] - 0.5) * ramp - 127.5 * amplitude)
    noise = np.frombuffer(rng.bytes(3 * size * size), dtype=np.uint8).reshape(size, size, 3)
    pixels = noise * np.float32(amplitude)
    pixels += shade[:, :, None]
    pixels += np.asarray(image)
    return Image.fromarray(pixels.clip(0, 255, out=pixels).astype(np.uint8))


@functools.cache
def _ramp(size: int) -> NDArray[np.float32]:
    return np.linspace(-1, 1, size, dtype=np.float32)
