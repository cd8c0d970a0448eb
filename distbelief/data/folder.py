"""Folders of images: ``ROOT/train/CLASS/...`` and ``ROOT/val/CLASS/...``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distbelief.data.images import open_image
from distbelief.data.permutation import epoch_permutation
from distbelief.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")

_WANTED = (
    "--data wants a folder with train/CLASS/*.jpg and, for validation, val/CLASS/*.jpg, or tars,"
    " train/*.tar and val/*.tar"
)


class ImageFolder:
    """The images of one split of a folder, sorted by class and then by path.

    Sorting is by bytes, so that every host numbers them alike whatever its locale. Names that start
    with a dot are ignored, links to folders are followed. The listing is kept as one block of bytes
    (about 30 a file), which pickles in milliseconds for a million files.

    Attributes:
        classes: Class names in the order of their labels.
        n_examples: Number of images.
        digest: SHA-256 of the classes and of the paths below the split, not of the files' contents.
    """

    def __init__(
        self, root: str | os.PathLike[str], split: str, classes: tuple[str, ...] | None = None
    ) -> None:
        """List ``ROOT/SPLIT``.

        Args:
            root: The data set's folder.
            split: ``train`` or ``val``.
            classes: The classes to hold the split to; without them, its own folders.

        Raises:
            DataError: the folder is not as it should be; the message says what to mend.
        """
        self._folder = os.path.abspath(os.path.join(root, split))
        found = _class_folders(os.fspath(root), split)
        unknown = sorted(set(found) - set(found if classes is None else classes))
        if unknown:
            raise DataError(
                os.path.join(self._folder, unknown[0]),
                "is a class that train/ lacks: add its images to train/ or remove this folder",
            )
        self.classes = tuple(found) if classes is None else classes
        names: list[bytes] = []
        counts = dict.fromkeys(self.classes, 0)
        for name in found:
            images = _images_below(os.path.join(self._folder, name))
            names.extend(images)
            counts[name] = len(images)
        self.n_examples = len(names)
        self._names = b"".join(names)
        self._name_ends = _running_sum([len(name) for name in names])
        self._class_ends = _running_sum(list(counts.values()))
        self.digest = self._digest()

    def read(self, index: int) -> tuple[Image.Image, int]:
        """See :class:`distbelief.data.source.ImageSource`."""
        return open_image(self.name(index)), self.label(index)

    def label(self, index: int) -> int:
        """The label of an image, without reading it."""
        self._check(index)
        return int(np.searchsorted(self._class_ends, index, side="right"))

    def name(self, index: int) -> str:
        """The image's path."""
        self._check(index)
        begin = self._name_ends[index - 1] if index else 0
        below = os.fsdecode(self._names[begin : self._name_ends[index]])
        return os.path.join(self._folder, self.classes[self.label(index)], below)

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """See :class:`distbelief.data.source.ImageSource`."""
        return epoch_permutation(seed, epoch, self.n_examples)

    def _check(self, index: int) -> None:
        if not 0 <= index < self.n_examples:
            raise IndexError(f"image {index} of {self.n_examples}")

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name in self.classes:
            digest.update(os.fsencode(name) + b"\0")
        digest.update(self._class_ends.tobytes())
        digest.update(self._name_ends.tobytes())
        digest.update(self._names)
        return digest.hexdigest()


def open_folder(root: str | os.PathLike[str]) -> tuple[ImageFolder, ImageFolder | None]:
    """The images of ``ROOT/train`` and of ``ROOT/val``, or None where there is no such folder.

    Labels of both follow the classes of train.

    Raises:
        DataError: the folder is not as it should be; the message says what to mend.
    """
    train = ImageFolder(root, "train")
    if not os.path.lexists(os.path.join(root, "val")):
        return train, None
    return train, ImageFolder(root, "val", train.classes)


def _class_folders(root: str, split: str) -> list[str]:
    if not os.path.exists(root):
        raise DataError(root, f"does not exist: {_WANTED}")
    if not os.path.isdir(root):
        raise DataError(root, f"is not a folder (unpack it, if it is an archive): {_WANTED}")
    folder = os.path.join(root, split)
    if not os.path.exists(folder):
        raise DataError(root, f"has no folder {split}/: {_WANTED}")
    if not os.path.isdir(folder):
        raise DataError(folder, f"is not a folder: {_WANTED}")
    classes = [entry.name for entry in _entries(folder) if entry.is_dir()]
    if not classes:
        raise DataError(folder, f"has no class folders: put the images into {split}/CLASS/")
    return sorted(classes, key=os.fsencode)


def _images_below(folder: str) -> list[bytes]:
    prefix = len(folder) + 1
    found = [os.fsencode(path[prefix:]) for path in _walk(folder, frozenset())]
    if not found:
        raise DataError(
            folder, f"has no images ({' '.join(SUFFIXES)}): add some or remove the folder"
        )
    return sorted(found)


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    # A link to a folder above itself would otherwise be followed for ever.
    if identity in above:
        return
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(entry.path, above | {identity})
        elif entry.name.lower().endswith(SUFFIXES):
            yield entry.path


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            folder, f"cannot be listed ({error.strerror}): make it readable for this user"
        ) from error


def _running_sum(lengths: list[int]) -> NDArray[np.int64]:
    return np.cumsum(np.array(lengths, dtype=np.int64))
