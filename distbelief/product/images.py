"""The images that trained models are evaluated on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Literal

from distbelief.config import DataConfig
from distbelief.data.dataset import open_data
from distbelief.data.folder import ImageFolder
from distbelief.data.places import is_url
from distbelief.data.source import ImageSource
from distbelief.errors import ConfigError, DataError
from distbelief.product.weights import Trained, run_record


def open_images(
    models: Sequence[Trained],
    *,
    data: str | None = None,
    dataset: str | None = None,
    split: Literal["val", "train"] = "val",
) -> ImageSource:
    """The images to evaluate on.

    Args:
        models: Those that will be evaluated.
        data: A folder, or what else training takes; by default that of the first model's run. One
            with ``val/CLASS`` alone will do, and may lack some of the classes.
        dataset: Data sets by import path, as training takes them.
        split: Which part.

    Raises:
        UsageError: there are no such images, or they have other classes than the models.
    """
    if data is None and dataset is None:
        config, seed = _own_data(models[0])
    else:
        seed = 0
        data = data if data is None or is_url(data) else os.path.expanduser(data)
        config = DataConfig(
            data=data,
            dataset=dataset,
            image_size=models[0].image_size,
            classes=models[0].n_outputs if dataset is not None else None,
        )
    where = config.source
    if split == "val" and data and _has_val_alone(data):
        return _only_val(data, models[0])
    if data and not is_url(data) and os.path.isdir(data) and not _has_images(data):
        raise DataError(data, "has neither val/ nor train/ nor tars: give the folder above them")
    opened = open_data(config, seed)
    images = opened.train if split == "train" else opened.val
    if images is None:
        problem = "has no val/: add val/CLASS/*.jpg, or evaluate with --split train"
        raise DataError(where, problem)
    check_classes(models[0], images, where)
    return images


def check_classes(trained: Trained, images: ImageSource, where: str) -> None:
    """Raises DataError if the model and ``images``, from ``where``, name classes that differ."""
    found = tuple(images.classes)
    if found and trained.classes and found != trained.classes:
        raise DataError(
            where,
            f"has other classes than {trained.name} was trained on: "
            f"{difference(found, trained.classes)}",
        )


def difference(found: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """How two lists of classes differ, in a few words."""
    if extra := [name for name in found if name not in wanted]:
        return f"{extra[0]!r} is only here ({len(extra)} such, of {len(found)})"
    if lacking := [name for name in wanted if name not in found]:
        return f"{lacking[0]!r} is lacking ({len(lacking)} such, of {len(wanted)})"
    return "their order differs"


def _own_data(trained: Trained) -> tuple[DataConfig, int]:
    found = run_record(trained.name)
    if found is None:
        raise ConfigError(
            "data", f"name the folder of the images: no run's config.json lies by {trained.name}"
        )
    config, record = found
    own = dataclasses.replace(config.data, classes=trained.n_outputs)
    if own.data is None and own.dataset is None:
        # Objects that a Python program gave leave no name behind, as drawn shapes do.
        drawn = open_data(own, config.seed).train.digest
        if drawn not in record.get("data_digests", [drawn]):
            raise ConfigError(
                "data", f"name the images: {trained.name} was trained on objects of a program"
            )
    return own, config.seed


def _has_images(data: str) -> bool:
    return any(name in ("train", "val") or name.endswith(".tar") for name in os.listdir(data))


def _has_val_alone(data: str) -> bool:
    train, val = os.path.join(data, "train"), os.path.join(data, "val")
    if os.path.lexists(train) or not os.path.isdir(val):
        return False
    return any(os.path.isdir(os.path.join(val, name)) for name in os.listdir(val))


def _only_val(data: str, trained: Trained) -> ImageSource:
    unknown = sorted(set(ImageFolder(data, "val").classes) - set(trained.classes))
    if unknown:
        problem = f"is a class that {trained.name} was not trained on: remove this folder"
        raise DataError(os.path.join(data, "val", unknown[0]), problem)
    return ImageFolder(data, "val", trained.classes)
