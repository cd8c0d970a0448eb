import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from distbelief.data.dataset import dataset_of
from distbelief.data.images import UnreadableImage
from distbelief.data.permutation import epoch_permutation, example_rng
from distbelief.data.source import RandomSource
from distbelief.data.torchdata import TorchDataset, seeded, source_of
from distbelief.errors import ConfigError, DataError


class Items:
    """A data set of given items; an exception is raised."""

    def __init__(self, *items: Any, classes: Any = None) -> None:
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


class Random:
    """Items of what the global generators give."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Any, float]:
        return np.array([np.random.random(), torch.rand(()).item()]), random.random()


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Has a length, and yet gives nothing by number."""

    def __iter__(self) -> Any:
        return iter([])

    def __len__(self) -> int:
        return 3


class Generator:
    def __iter__(self) -> Any:
        return iter([])


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)
COLOUR = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)


@pytest.mark.parametrize(
    ("given", "pixels"),
    [
        (GREY, GREY),
        (COLOUR, COLOUR),
        (torch.from_numpy(COLOUR), COLOUR),
        (Image.fromarray(COLOUR), COLOUR),
    ],
)
def test_images(given: Any, pixels: np.ndarray) -> None:
    image, label = source_of(Items((given, 2))).read(0)
    assert isinstance(image, Image.Image)
    assert (np.asarray(image) == pixels).all()
    assert label == 2


@pytest.mark.parametrize(
    ("given", "dtype", "shape"),
    [
        (COLOUR.transpose(2, 0, 1), np.uint8, (3, 3, 4)),
        (COLOUR.astype(np.float32), np.float32, (3, 4, 3)),
        (GREY.astype(np.int64), np.int64, (3, 4)),
        (torch.ones(2, dtype=torch.float16), np.float16, (2,)),
        (np.zeros(3, dtype=np.uint8), np.uint8, (3,)),
        (1.5, np.float64, ()),
        ([1, 2], np.int64, (2,)),
    ],
)
def test_other_inputs_stay_what_they_are(given: Any, dtype: type, shape: tuple[int, ...]) -> None:
    value, _ = source_of(Items((given, 0))).read(0)
    assert isinstance(value, np.ndarray)
    assert (value.dtype, value.shape) == (dtype, shape)
    assert (value == np.asarray(given)).all()


@pytest.mark.parametrize(
    ("given", "dtype", "shape"),
    [
        (3, np.int64, ()),
        (True, np.int64, ()),
        (np.int32(3), np.int64, ()),
        (torch.tensor(3), np.int64, ()),
        (0.5, np.float32, ()),
        (torch.tensor(0.5, dtype=torch.float64), np.float32, ()),
        (np.array([1.0, 2.0]), np.float64, (2,)),
        (torch.zeros(2, 3, dtype=torch.int16), np.int16, (2, 3)),
    ],
)
def test_targets(given: Any, dtype: type, shape: tuple[int, ...]) -> None:
    _, target = source_of(Items((0.0, given))).read(0)
    target = np.asarray(target)
    assert (target.dtype, target.shape) == (dtype, shape)
    assert (target == np.asarray(given)).all()


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (ValueError("no file"), r"cannot be read \(ValueError: no file\): mend --dataset"),
        (5, r"must be a pair \(input, target\), not a int"),
        ((1, 2, 3), r"must be a pair \(input, target\), not a tuple"),
        (({"a": 1}, 0), "its input is a dict; give an image, an array, a tensor or a number"),
        (("words", 0), "its input is a str"),
        ((0.0, None), "its target is a NoneType"),
        (([[1], [1, 2]], 0), "its input does not become an array"),
        ((torch.ones(1, requires_grad=True), 0), "its input does not become an array"),
    ],
)
def test_an_item_that_cannot_be_used(item: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        source_of(Items((0.0, 0), item)).read(1)
    assert caught.value.path == f"{__name__}.Items (train)[1]"


def test_an_unreadable_image_is_that() -> None:
    with pytest.raises(UnreadableImage):
        source_of(Items(UnreadableImage("a.jpg", "cannot be decoded"))).read(0)


@pytest.mark.parametrize("index", [-1, 1])
def test_no_such_index(index: int) -> None:
    with pytest.raises(IndexError, match=f"example {index} of 1"):
        source_of(Items((0.0, 0))).read(index)


@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        (Stream(), r"test_torchdata.Stream \(train\) is iterable .*examples are read by number"),
        (Generator(), "is iterable .*it must have __len__ and __getitem__"),
        (7, r"builtins.int \(train\) is no data set"),
    ],
)
def test_only_map_style_data_sets(dataset: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        source_of(dataset)
    assert caught.value.field == "dataset"


def test_an_empty_one() -> None:
    with pytest.raises(DataError, match="is empty"):
        source_of(Items())


def test_classes() -> None:
    assert source_of(Items(0, classes=["cat", "dog"])).classes == ("cat", "dog")
    assert source_of(Items(0), n_classes=3).classes == ("0", "1", "2")
    assert source_of(Items(0, classes=["cat", "dog"]), n_classes=3).classes == ("cat", "dog")
    assert source_of(Items(0)).classes == ()


def test_the_digest_follows_length_classes_and_name() -> None:
    digests = [
        source_of(Items(0)).digest,
        source_of(Items(0, 0)).digest,
        source_of(Items(0), "val").digest,
        source_of(Items(0, classes=["cat"])).digest,
        source_of([0]).digest,
        TorchDataset(Items(0), "other").digest,
    ]
    assert len(set(digests)) == len(digests)
    assert source_of(Items(1)).digest == digests[0]


def test_its_own_randomness_repeats_and_leaves_no_trace() -> None:
    source = source_of(Random())
    assert isinstance(source, RandomSource)

    def read(seed: int, epoch: int, index: int) -> list[float]:
        value, target = source.read_with(index, example_rng(seed, epoch, index))
        return [*np.asarray(value).tolist(), float(np.asarray(target))]

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first = read(0, 0, 0)
    others = [read(0, 0, 1), read(0, 1, 0), read(1, 0, 0)]
    assert read(0, 0, 0) == first
    for other in others:
        assert all(x != y for x, y in zip(first, other, strict=True))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == states


def test_seeding_ends_with_an_error_too() -> None:
    state = random.getstate()
    with pytest.raises(IndexError), seeded(np.random.default_rng(0)):
        random.choice([])
    assert random.getstate() == state


def test_the_order_is_the_usual_one() -> None:
    assert (source_of(Random()).epoch_order(3, 2) == epoch_permutation(3, 2, 5)).all()


def test_a_data_set_of_tensors() -> None:
    data = TensorDataset(torch.arange(6.0).view(3, 2), torch.tensor([2, 0, 1]))
    source = pickle.loads(pickle.dumps(source_of(data)))
    value, target = source.read(1)
    assert (value.tolist(), int(target)) == ([2.0, 3.0], 0)


def test_objects_as_the_data_of_a_run() -> None:
    data = dataset_of(Items(0, classes=["cat", "dog"]), Items(0, 0, classes=("cat", "dog")))
    assert (data.classes, data.n_outputs) == (("cat", "dog"), 2)
    assert data.val is not None
    assert (data.train.n_examples, data.val.n_examples) == (1, 2)
    assert dataset_of(Items(0)).n_outputs == 0
    assert dataset_of(Items(0), n_classes=4).n_outputs == 4
    with pytest.raises(DataError, match="there are 2 classes, more than --classes 1"):
        dataset_of(Items(0, classes=["cat", "dog"]), n_classes=1)
    with pytest.raises(DataError, match="has other classes for validation than for training"):
        dataset_of(Items(0, classes=["cat", "dog"]), Items(0, classes=["cat"]))
