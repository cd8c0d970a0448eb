"""The data set that a configuration asks for."""

from __future__ import annotations

from dataclasses import dataclass

from distbelief.config import DataConfig
from distbelief.data.cache import CachedSource
from distbelief.data.folder import open_folder
from distbelief.data.shapes import DrawnShapes
from distbelief.data.source import ImageSource
from distbelief.data.transforms import SMALL
from distbelief.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Training and validation images.

    Attributes:
        train: Images to train on.
        val: Images to evaluate on, if there are any.
        classes: Class names in the order of their labels.
        n_outputs: Outputs of the network: at least as many as classes; those beyond stay unused.
    """

    train: ImageSource
    val: ImageSource | None
    classes: tuple[str, ...]
    n_outputs: int


def open_data(config: DataConfig, seed: int) -> Dataset:
    """List the images of ``config.data``, or get ready to draw some where it is None.

    Args:
        config: The data of the run.
        seed: Seed of the drawn images; a folder does not use it.

    Raises:
        DataError: the folder is not as it should be, or has more classes than outputs.
    """
    train: ImageSource
    val: ImageSource | None
    if config.data is None:
        train = DrawnShapes("train", config.drawn_train, seed, config.image_size)
        val = DrawnShapes("val", config.drawn_val, seed, config.image_size)
        path = "the drawn shapes"
    else:
        train, val = open_folder(config.data)
        path = config.data
    n_classes = len(train.classes)
    n_outputs = n_classes if config.classes is None else config.classes
    if n_classes > n_outputs:
        raise DataError(
            path,
            f"there are {n_classes} classes, more than --classes {n_outputs}: raise it to at least"
            f" {n_classes}, or leave it out",
        )
    if config.image_size <= SMALL:
        train = CachedSource(train)
    return Dataset(train=train, val=val, classes=train.classes, n_outputs=n_outputs)
