"""Random changes of an image's colours, after Howard (2013) and Krizhevsky et al. (2012)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STRENGTH = (0.5, 1.5)
"""Brightness, contrast and colour are each multiplied by a uniform factor in this range."""

LIGHTING = 0.1
"""Standard deviation of the lighting noise, in units of ImageNet's own."""

LUMA = np.array((0.299, 0.587, 0.114))
"""Grey of a colour (ITU-R 601), as Pillow has it."""

# Principal components of ImageNet's colours, for values in [0, 1] (Krizhevsky et al. 2012, 4.1).
_DEVIATIONS = np.array((0.2175, 0.0188, 0.0045))
_COMPONENTS = np.array(
    (
        (-0.5675, 0.7192, 0.4009),
        (-0.5808, -0.0045, -0.8140),
        (-0.5836, -0.6948, 0.4203),
    )
)

Table = NDArray[np.float64]
"""``(3, 256)``, what each value of each channel becomes."""

_IDENTITY: Table = np.tile(np.arange(256.0), (3, 1))


def distorted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A copy of an image in mode RGB with its colours changed at random.

    Brightness, contrast and colour (saturation) are scaled in random order, each by a factor of
    its own that is uniform in ``STRENGTH`` (Howard 2013); contrast is about the mean grey of the
    image as it is by then. Lighting noise follows, one shift for all pixels along the principal
    components of ImageNet's colours (Krizhevsky et al. 2012, section 4.1).

    After each change values are rounded and clipped to 0..255: but for that, the order would make
    no difference.
    """
    low, high = STRENGTH
    # All numbers are drawn before the first is used, whatever the order turns out to be.
    brightness, contrast, colour = (low + (high - low) * rng.random(3)).tolist()
    order = np.argsort(rng.random(3)).tolist()
    shift = _COMPONENTS @ (_DEVIATIONS * (255 * LIGHTING * rng.standard_normal(3)))
    # Changes of each channel by itself are changes of a table, which pixels go through once.
    table = _IDENTITY
    for change in order:
        if change == 0:
            table = _rounded(brightness * table)
        elif change == 1:
            table = _rounded(contrast * table + (1 - contrast) * _mean_grey(image, table))
        else:
            image = _coloured(_mapped(image, table), colour)
            table = _IDENTITY
    return _mapped(image, _rounded(table + shift[:, None]))


def _rounded(table: Table) -> Table:
    return np.rint(table).clip(0, 255)


def _mapped(image: Image.Image, table: Table) -> Image.Image:
    if table is _IDENTITY:
        return image
    return image.point(table.astype(np.uint8).ravel().tolist())


def _mean_grey(image: Image.Image, table: Table) -> float:
    """Of counts, which is exact and takes a fraction of the time of a sum over pixels."""
    counts = np.array(image.histogram(), dtype=np.float64).reshape(3, 256)
    return float(LUMA @ (counts * table).sum(axis=1)) / (image.width * image.height)


def _coloured(image: Image.Image, factor: float) -> Image.Image:
    """Each pixel mixed with its own grey, or moved away from it; Pillow rounds and clips."""
    rows = np.zeros((3, 4))
    rows[:, :3] = factor * np.eye(3) + (1 - factor) * LUMA
    values: Any = tuple(rows.ravel().tolist())
    return image.convert("RGB", values)
