"""Data sets by the import path of the function that makes them: ``package.module:function``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from distbelief.data.torchdata import Split, TorchDataset, making_rng, seeded
from distbelief.errors import ConfigError, DistBeliefError
from distbelief.importing import imported


class ImportedDataset(TorchDataset):
    """A data set whose pickle is its path: whoever unpickles it makes it anew."""

    def __init__(
        self, dataset: Any, path: str, split: Split, seed: int, n_classes: int | None
    ) -> None:
        """Take what ``path`` has made; see :func:`open_imported`."""
        self._made_by = (path, split, seed, n_classes)
        super().__init__(dataset, f"{path} ({split})", n_classes)

    def __reduce__(self) -> tuple[Callable[..., ImportedDataset], tuple[Any, ...]]:
        return _made_again, self._made_by


def open_imported(
    path: str, seed: int, n_classes: int | None = None
) -> tuple[ImportedDataset, ImportedDataset | None]:
    """The training examples, and the validation examples if there are any.

    The function is called with ``"train"`` and with ``"val"``, for which it may return None. One
    that takes no argument is called once, and returns the training examples, or a tuple of both.
    Meanwhile the global generators are seeded, so that every host makes the same.

    Args:
        path: ``package.module:function``.
        seed: Seed of the global generators.
        n_classes: Number of classes, if it is known and the data set does not tell their names.

    Raises:
        ConfigError: there is no such function, it raised, or gave no map-style data set.
        DataError: a data set is empty.
    """
    made = _make(path, ("train", "val"), seed)
    if made["train"] is None:
        raise ConfigError("dataset", f"{path} gave None for train; it must give a data set")
    train = ImportedDataset(made["train"], path, "train", seed, n_classes)
    if made["val"] is None:
        return train, None
    return train, ImportedDataset(made["val"], path, "val", seed, n_classes)


def _made_again(path: str, split: Split, seed: int, n_classes: int | None) -> ImportedDataset:
    made = _make(path, (split,), seed)
    return ImportedDataset(made[split], path, split, seed, n_classes)


def _make(path: str, splits: tuple[Split, ...], seed: int) -> dict[Split, Any]:
    function = imported(path, "dataset")
    if _takes_split(function, path):
        found: dict[Split, Any] = {}
        for split in splits:
            found[split] = _called(function, (split,), path, seed)
            if isinstance(found[split], tuple):
                raise ConfigError(
                    "dataset", f"{path} gave a tuple for {split!r}; it must give one data set"
                )
        return found
    both = _called(function, (), path, seed)
    if not isinstance(both, tuple):
        both = (both, None)
    if len(both) != 2:
        raise ConfigError("dataset", f"{path} gave {len(both)} data sets; train and val are wanted")
    return {"train": both[0], "val": both[1]}


def _takes_split(function: Callable[..., object], path: str) -> bool:
    try:
        signature = inspect.signature(function)
    except ValueError:
        # Some callables written in C do not tell.
        return True
    for arguments in (("train",), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return bool(arguments)
    raise ConfigError(
        "dataset", f"{path} must take one argument, 'train' or 'val', or none; it is {signature}"
    )


def _called(
    function: Callable[..., object], arguments: tuple[str, ...], path: str, seed: int
) -> object:
    call = f"{path}({', '.join(map(repr, arguments))})"
    with seeded(making_rng(seed)):
        try:
            return function(*arguments)
        except DistBeliefError:
            raise
        except Exception as error:  # whatever a stranger's code raises
            raise ConfigError(
                "dataset", f"{call} raised {type(error).__name__}: {error}; mend it"
            ) from error
