"""Images in tars: shards in the layout of WebDataset, or trees of class folders."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distbelief.data.images import UnreadableImage, open_content
from distbelief.data.permutation import Stream, keyed_philox
from distbelief.data.places import (
    RangeReader,
    is_url,
    list_files,
    load_beside,
    local_path,
    opened,
    save_beside,
    state_of,
)
from distbelief.data.tarindex import TarIndex, build_index
from distbelief.errors import DataError

INDEX_SUFFIX = ".index"
"""The index of ``NAME.tar`` is kept as ``NAME.tar.index``."""

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_SUFFIXES = (".tar", *_COMPRESSED)
_WANTED = (
    "--data wants tars at a URL: train/*.tar and val/*.tar, or train-*.tar and val-*.tar, or one"
    " tar"
)


class TarShards:
    """The images of some tars, in the order of the tars and of the members within each.

    Classes are sorted by number if all of them are given as integers (class ``i`` then has label
    ``i``, whether or not the ones below it occur), by bytes otherwise. The listing is kept as a few
    arrays (about 60 bytes an image), which pickle in milliseconds for a million images.

    Attributes:
        classes: Class names in the order of their labels.
        n_examples: Number of images.
        digest: SHA-256 of the classes, of the names of tars and members and of their sizes.
    """

    def __init__(self, paths: Sequence[str], classes: tuple[str, ...] | None = None) -> None:
        """List the tars; makes an index of each that has none yet, which reads its headers.

        Args:
            paths: Local paths or URLs of the tars.
            classes: The classes to hold them to; without them, their own.

        Raises:
            DataError: a tar is not as it should be; the message says what to mend.
        """
        self._paths = tuple(paths)
        indices = [index_of(path) for path in paths]
        self.classes = _classes(indices) if classes is None else classes
        numbers = {name: label for label, name in enumerate(self.classes)}
        for path, index in zip(paths, indices, strict=True):
            unknown = sorted(set(index.classes) - numbers.keys())
            if unknown:
                raise DataError(
                    path, f"has the class {unknown[0]!r}, which the training images lack"
                )
        self._tar_ends = np.cumsum([len(index.offsets) for index in indices], dtype=np.int64)
        self.n_examples = int(self._tar_ends[-1])
        self._offsets = np.concatenate([index.offsets for index in indices])
        self._sizes = np.concatenate([index.sizes for index in indices])
        self._labels = np.concatenate(
            [
                np.array([numbers[name] for name in index.classes], dtype=np.int32)[index.labels]
                for index in indices
            ]
        )
        self._names = b"".join(index.names for index in indices)
        shifts = np.cumsum([0, *(len(index.names) for index in indices[:-1])], dtype=np.int64)
        self._name_ends = np.concatenate(
            [index.name_ends + shift for index, shift in zip(indices, shifts, strict=True)]
        )
        self.digest = self._digest()
        self._reader = RangeReader()

    def read(self, index: int) -> tuple[Image.Image, int]:
        """See :class:`distbelief.data.source.ImageSource`."""
        name, size = self.name(index), int(self._sizes[index])
        try:
            content = self._reader.read(self._tar(index), int(self._offsets[index]), size)
        except OSError as error:
            raise UnreadableImage(name, f"cannot be read ({error})") from error
        if len(content) < size:
            raise UnreadableImage(name, "lies beyond the end of its tar, which has changed")
        return open_content(content, name), self.label(index)

    def label(self, index: int) -> int:
        """The label of an image, without reading it."""
        self._check(index)
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """The tar's path, and the member's name in it."""
        tar = self._tar(index)
        begin = self._name_ends[index - 1] if index else 0
        member = self._names[begin : self._name_ends[index]]
        return f"{tar}/{member.decode('utf-8', 'surrogateescape')}"

    def holds(self, part: str) -> bool:
        """Whether that is part of some member's name."""
        return part.encode() in self._names

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """A permutation of the tars, and of the members within each of them.

        Consecutive examples are of one tar, so that it is read while the host has it in memory.
        Classes are to be mixed within the tars: two tars are never mixed.
        """
        n_tars = len(self._paths)
        ranks = np.empty(n_tars, dtype=np.int64)
        # Raw words, as for other orders: they stay the same from one version of numpy to another.
        words = keyed_philox(seed, Stream.ORDER, epoch, 1).random_raw(n_tars)
        ranks[np.argsort(words, kind="stable")] = np.arange(n_tars)
        rank_of = np.repeat(ranks, np.diff(self._tar_ends, prepend=0))
        words = keyed_philox(seed, Stream.ORDER, epoch).random_raw(self.n_examples)
        return np.lexsort((words, rank_of)).astype(np.int64, copy=False)

    def _tar(self, index: int) -> str:
        self._check(index)
        return self._paths[int(np.searchsorted(self._tar_ends, index, side="right"))]

    def _check(self, index: int) -> None:
        if not 0 <= index < self.n_examples:
            raise IndexError(f"image {index} of {self.n_examples}")

    def _digest(self) -> str:
        digest = hashlib.sha256()
        tars = [path.rpartition("/")[2] for path in self._paths]
        for name in (*self.classes, "", *tars):
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        for array in (self._tar_ends, self._labels, self._sizes, self._name_ends):
            digest.update(array.tobytes())
        digest.update(self._names)
        return digest.hexdigest()


def index_of(path: str) -> TarIndex:
    """The index of a tar: the saved one if the tar has not changed, else a new one, then saved.

    Raises:
        DataError: the tar is not as it should be.
    """
    state = state_of(path)
    for content in load_beside(path, INDEX_SUFFIX):
        saved = TarIndex.from_bytes(content, state)
        if saved is not None:
            return saved
    try:
        with opened(path) as file:
            index = build_index(file, path)
    except (OSError, ValueError) as error:  # the latter, where a server has no ranges
        raise DataError(path, f"cannot be read ({error}): put it on a disk") from error
    save_beside(path, INDEX_SUFFIX, index.to_bytes(state))
    return index


def find_tars(data: str) -> tuple[list[str], list[str]] | None:
    """The training and validation tars that ``--data`` means; None if it is no place of tars.

    Args:
        data: One tar; or a folder or URL with ``train/*.tar`` and perhaps ``val/*.tar``, or with
            ``train-*.tar`` (or ``*train*-*.tar``) and perhaps ``val-*.tar`` (``*val*-*.tar``).

    Raises:
        DataError: the tars are compressed, or lie beside class folders, or a URL has none.
    """
    data = local_path(data)
    remote = is_url(data)
    if not remote:
        data = os.path.normpath(data)
    # A signed URL has its signature after the name.
    bare = data.partition("?")[0] if remote else data
    if bare.lower().endswith(_SUFFIXES) and (remote or os.path.isfile(data)):
        return _plain([data]), []
    folder = f"{data}/train"
    within = _tars(folder, "*")
    class_folders = not remote and any(os.path.isdir(f"{folder}/{n}") for n in list_files(folder))
    if within and class_folders:
        raise DataError(folder, "has both tars and class folders: move one of the two away")
    if class_folders:
        return None
    train = within or _tars(data, "train-*") or _tars(data, "*train*-*")
    if not train:
        if remote:
            raise DataError(data, f"has no training tars: {_WANTED}")
        return None
    named = [path for path in _tars(data, "*val*-*") if path not in train]
    val = _tars(f"{data}/val", "*") or _tars(data, "val-*") or named
    return _plain(train), _plain(val)


def open_tars(train: Sequence[str], val: Sequence[str]) -> tuple[TarShards, TarShards | None]:
    """The images of the training tars, and of the validation tars if there are any.

    Labels of both follow the classes of train.

    Raises:
        DataError: a tar is not as it should be; the message says what to mend.
    """
    source = TarShards(train)
    if not val and source.holds("train/") and source.holds("val/"):
        raise DataError(
            train[0],
            "holds both train/ and val/, which would all be trained on: unpack it, or put the two "
            "into tars of their own, train-0.tar and val-0.tar",
        )
    return source, TarShards(val, source.classes) if val else None


def _tars(folder: str, pattern: str) -> list[str]:
    names = fnmatch.filter(list_files(folder), pattern)
    tars = [name for name in names if name.lower().endswith(_SUFFIXES)]
    return [f"{folder.rstrip('/')}/{name}" for name in tars]


def _plain(paths: list[str]) -> list[str]:
    for path in paths:
        if path.lower().endswith(_COMPRESSED):
            raise DataError(
                path,
                "is compressed, so that no image of it can be read by itself: unpack it to a plain"
                " .tar",
            )
    return paths


def _classes(indices: Sequence[TarIndex]) -> tuple[str, ...]:
    names = {name for index in indices for name in index.classes}
    if all(index.numeric for index in indices):
        return tuple(str(number) for number in range(max(map(int, names)) + 1))
    return tuple(sorted(names, key=lambda name: name.encode("utf-8", "surrogateescape")))
