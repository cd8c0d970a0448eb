"""The data set that a configuration asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distbelief.config import DataConfig
from distbelief.data.cache import CachedSource
from distbelief.data.folder import open_folder
from distbelief.data.imported import open_imported
from distbelief.data.places import local_path
from distbelief.data.shapes import DrawnShapes
from distbelief.data.source import ImageSource
from distbelief.data.tars import find_tars, open_tars
from distbelief.data.torchdata import source_of
from distbelief.data.transforms import SMALL
from distbelief.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Training and validation examples.

    Attributes:
        train: Examples to train on.
        val: Examples to evaluate on, if there are any.
        classes: Class names in the order of their labels; none, if they are not known.
        n_outputs: Outputs of the network: at least as many as classes, those beyond stay unused;
            0 where neither the data set nor ``--classes`` tells how many there are.
    """

    train: ImageSource
    val: ImageSource | None
    classes: tuple[str, ...]
    n_outputs: int


def open_data(config: DataConfig, seed: int) -> Dataset:
    """List the examples of ``config.data``, or make ``config.dataset``; without both, draw some.

    Args:
        config: The data of the run.
        seed: Seed of the drawn images, and of the making of a data set; files do not use it.

    Raises:
        ConfigError: ``config.dataset`` cannot be made.
        DataError: files are not as they should be, or there are more classes than outputs.
    """
    train: ImageSource
    val: ImageSource | None
    if config.dataset is not None:
        train, val = open_imported(config.dataset, seed, config.classes)
        return _dataset(train, val, config.classes, config.dataset)
    if config.data is None:
        train = DrawnShapes("train", config.drawn_train, seed, config.image_size)
        val = DrawnShapes("val", config.drawn_val, seed, config.image_size)
    elif tars := find_tars(config.data):
        train, val = open_tars(*tars)
    else:
        train, val = open_folder(local_path(config.data))
    if config.image_size <= SMALL:
        train = CachedSource(train)
    return _dataset(train, val, config.classes, config.data or "the drawn shapes")


def dataset_of(train: Any, val: Any = None, n_classes: int | None = None) -> Dataset:
    """Data set objects in place of what a configuration names.

    Args:
        train: A map-style data set, in the manner of ``torch.utils.data.Dataset``.
        val: Another one to evaluate on, or None.
        n_classes: Outputs of the network; by default as many as ``train.classes``.

    Raises:
        ConfigError: it is not a map-style data set.
        DataError: it is empty, or has more classes than outputs.
    """
    source = source_of(train, "train", n_classes)
    other = None if val is None else source_of(val, "val", n_classes)
    return _dataset(source, other, n_classes, source.name(0).removesuffix("[0]"))


def _dataset(
    train: ImageSource, val: ImageSource | None, n_outputs: int | None, path: str
) -> Dataset:
    if val is not None and val.classes != train.classes:
        raise DataError(path, "has other classes for validation than for training: make them equal")
    n_classes = len(train.classes)
    if n_outputs is None:
        n_outputs = n_classes
    if n_classes > n_outputs:
        raise DataError(
            path,
            f"there are {n_classes} classes, more than --classes {n_outputs}: raise it to at least"
            f" {n_classes}, or leave it out",
        )
    return Dataset(train=train, val=val, classes=train.classes, n_outputs=n_outputs)
