"""What is taken from pixels before the network sees them; the device of the replica does it."""

from __future__ import annotations

from typing import Literal

Triple = tuple[float, float, float]


def normalization(kind: Literal["caffe", "unit"]) -> tuple[Triple, Triple]:
    """Mean and deviation of red, green and blue, in units of 0 to 255.

    The network sees ``(pixel - mean) / deviation``.

    ``caffe`` is what ``bvlc_googlenet`` was trained with: ImageNet's mean taken off, no division.
    ``unit`` gives ImageNet's pixels mean 0 and deviation 1.
    """
    if kind == "caffe":
        return (123.0, 117.0, 104.0), (1.0, 1.0, 1.0)
    return (
        (0.485 * 255, 0.456 * 255, 0.406 * 255),
        (0.229 * 255, 0.224 * 255, 0.225 * 255),
    )
