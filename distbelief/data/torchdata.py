"""Data sets in the manner of ``torch.utils.data.Dataset``: objects, or functions that make them.

Nothing here needs torch: such a data set is whatever has a length and gives pairs by number.
"""

from __future__ import annotations

import hashlib
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distbelief.data.images import UnreadableImage
from distbelief.data.permutation import Stream, epoch_permutation, example_rng, keyed_philox
from distbelief.data.source import Input, Target
from distbelief.errors import ConfigError, DataError

Split = Literal["train", "val"]

# The generators that a data set may draw from belong to the whole process.
_generators = threading.Lock()


class TorchDataset:
    """The examples of a map-style data set, whose items are pairs of an input and a target.

    A PIL image and a ``uint8`` array ``(h, w, 3)`` or ``(h, w)`` are images, to be transformed; any
    other array, tensor or number is handed on as it is. Integers as targets become ``int64``, other
    single numbers ``float32``; arrays and tensors stay what they are.

    While it gives an example, ``random``, numpy's and torch's global generators are seeded for
    that example, and afterwards they are as before: its own random transforms repeat, whoever reads
    it. Generators of its own are beyond that.

    Attributes:
        classes: The data set's ``classes``, or the numbers below ``n_classes``, or none.
        n_examples: Its length.
        digest: SHA-256 of its length, classes and name.
    """

    def __init__(self, dataset: Any, name: str, n_classes: int | None = None) -> None:
        """Take a data set.

        Args:
            dataset: Has ``__len__`` and ``__getitem__``; must not change from now on.
            name: What messages call it, the same on every host.
            n_classes: Number of classes, if it is known and the data set does not tell their names.

        Raises:
            ConfigError: it is not a map-style data set.
            DataError: it is empty.
        """
        _check_map_style(dataset, name)
        self._dataset = dataset
        self._name = name
        self.n_examples = len(dataset)
        if self.n_examples == 0:
            raise DataError(name, "is empty: give it at least one example")
        self.classes = _classes_of(dataset, n_classes)
        facts = [name, str(self.n_examples), *self.classes]
        self.digest = hashlib.sha256("\0".join(facts).encode()).hexdigest()

    def read(self, index: int) -> tuple[Input, Target]:
        """See :class:`distbelief.data.source.ImageSource`; as in epoch 0 of seed 0."""
        self._check(index)
        return self.read_with(index, example_rng(0, 0, index))

    def read_with(self, index: int, rng: np.random.Generator) -> tuple[Input, Target]:
        """See :class:`distbelief.data.source.RandomSource`.

        Raises:
            UnreadableImage: the data set raised it.
            DataError: the data set raised anything else, or gave what cannot be used.
        """
        self._check(index)
        name = self.name(index)
        with seeded(rng):
            try:
                pair = self._dataset[index]
            except UnreadableImage:
                raise
            except Exception as error:  # whatever a stranger's code raises
                raise DataError(name, f"cannot be read ({_text(error)}): mend --dataset") from error
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            kind = type(pair).__name__
            raise DataError(name, f"must be a pair (input, target), not a {kind}: mend --dataset")
        return _input(pair[0], name), _target(pair[1], name)

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """See :class:`distbelief.data.source.ImageSource`."""
        return epoch_permutation(seed, epoch, self.n_examples)

    def name(self, index: int) -> str:
        """What a message calls the example."""
        return f"{self._name}[{index}]"

    def _check(self, index: int) -> None:
        if not 0 <= index < self.n_examples:
            raise IndexError(f"example {index} of {self.n_examples}")


def source_of(dataset: Any, split: Split = "train", n_classes: int | None = None) -> TorchDataset:
    """A data set object as a source of examples.

    Args:
        dataset: A map-style data set.
        split: What it is for; part of its name.
        n_classes: Number of classes, if it is known and the data set does not tell their names.

    Raises:
        ConfigError: it is not a map-style data set.
        DataError: it is empty.
    """
    kind = type(dataset)
    return TorchDataset(dataset, f"{kind.__module__}.{kind.__qualname__} ({split})", n_classes)


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """The process's global generators are seeded from ``rng`` inside, and as before afterwards.

    They are those of ``random``, numpy and, where it has been imported, torch's on the CPU. One
    thread at a time.
    """
    seed = int(rng.integers(2**63))
    # A process that has not imported torch has none to seed, and does not pay for the import. Not
    # torch.manual_seed: it also seeds the accelerators, where the network may be at work.
    generator: Any = getattr(sys.modules.get("torch"), "default_generator", None)
    with _generators:
        python, legacy = random.getstate(), np.random.get_state()
        state = None if generator is None else generator.get_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        if generator is not None:
            generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
            if generator is not None:
                generator.set_state(state)


def making_rng(seed: int) -> np.random.Generator:
    """What the global generators are seeded with while a data set is made."""
    return np.random.Generator(keyed_philox(seed, Stream.DATASET, 0))


def _check_map_style(dataset: Any, name: str) -> None:
    kind = type(dataset)
    iterable = any(base.__name__ == "IterableDataset" for base in kind.__mro__)
    if iterable or not (hasattr(kind, "__len__") and hasattr(kind, "__getitem__")):
        what = "is iterable" if iterable or hasattr(kind, "__iter__") else "is no data set"
        raise ConfigError(
            "dataset",
            f"{name} {what} ({kind.__qualname__}): examples are read by number, each once an epoch,"
            f" so that it must have __len__ and __getitem__",
        )


def _classes_of(dataset: Any, n_classes: int | None) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None)
    if isinstance(names, Sequence) and not isinstance(names, str) and names:
        return tuple(str(name) for name in names)
    return tuple(str(label) for label in range(n_classes or 0))


def _input(value: Any, name: str) -> Input:
    if isinstance(value, Image.Image):
        return value
    array = _array(value, name, "input")
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        return Image.fromarray(array)
    return array


def _target(value: Any, name: str) -> Target:
    array = _array(value, name, "target")
    if array.ndim:
        return array
    return array.astype(np.int64 if array.dtype.kind in "iub" else np.float32)


def _array(value: Any, name: str, what: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            name, f"its {what} does not become an array ({_text(error)}): mend --dataset"
        ) from error
    if array.dtype.kind not in "biufc":
        kind = type(value).__name__
        raise DataError(
            name, f"its {what} is a {kind}; give an image, an array, a tensor or a number"
        )
    return array


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
