"""Which images a model is evaluated on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distbelief.config import DataConfig, TrainConfig
from distbelief.data.dataset import open_data
from distbelief.errors import ConfigError, DataError
from distbelief.product.images import open_images
from distbelief.product.weights import Trained

Make = Callable[..., Trained]


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(**splits: Sequence[str]) -> Path:
        for split, classes in splits.items():
            for name in classes:
                place = tmp_path / "images" / split / name
                place.mkdir(parents=True)
                Image.new("RGB", (20, 20)).save(place / "x.png")
        return tmp_path / "images"

    return make


def test_a_folder(make_trained: Make, make_folder: Callable[..., Path]) -> None:
    folder = make_folder(train=["a", "b"], val=["b"])
    trained = make_trained(classes=("a", "b"))
    val = open_images([trained], data=str(folder))
    assert (val.n_examples, val.read(0)[1]) == (1, 1)
    assert open_images([trained], data=str(folder), split="train").n_examples == 2
    for classes in (("a",), ("a", "b", "c"), ("b", "a")):
        with pytest.raises(DataError, match=f"^{folder}: has other classes than model-0"):
            open_images([make_trained(classes=classes)], data=str(folder))


def test_a_folder_with_nothing_but_val(
    make_trained: Make, make_folder: Callable[..., Path]
) -> None:
    folder = make_folder(val=["b"])
    val = open_images([make_trained(classes=("a", "b"))], data=str(folder))
    assert (val.classes, val.read(0)[1]) == (("a", "b"), 1)
    with pytest.raises(DataError, match=r"val/b: is a class that model-0 was not trained on"):
        open_images([make_trained(classes=("a", "c"))], data=str(folder))


def test_a_folder_without_val(make_trained: Make, make_folder: Callable[..., Path]) -> None:
    folder = make_folder(train=["a"])
    with pytest.raises(DataError, match=r"has no val/: .* --split train"):
        open_images([make_trained(classes=("a",))], data=str(folder))
    with pytest.raises(DataError, match="does not exist"):
        open_images([make_trained()], data=str(folder / "nowhere"))


def test_by_default_those_of_the_run(
    make_trained: Make, write_run: Callable[..., Path], make_folder: Callable[..., Path]
) -> None:
    drawn = TrainConfig(seed=3, data=DataConfig(image_size=16, drawn_val=7, drawn_train=9))
    run = write_run(drawn.to_dict())
    for split, n in (("val", 7), ("train", 9)):
        images = open_images([make_trained(name=str(run))], split=split)  # type: ignore[arg-type]
        expected = getattr(open_data(drawn.data, 3), split)
        assert (images.n_examples, images.digest) == (n, expected.digest)
    folder = make_folder(train=["a"], val=["a"])
    config = TrainConfig(data=DataConfig(data=str(folder)))
    other = write_run(config.to_dict(), "other")
    trained = make_trained(name=f"{other}/model.safetensors", classes=("a",))
    (other / "model.safetensors").touch()
    assert open_images([trained]).n_examples == 1


def test_a_file_without_its_run_needs_data(make_trained: Make, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ConfigError, match=r"--data: name the folder of the images"):
        open_images([make_trained(name=str(path))])


def test_objects_that_a_program_gave_are_nowhere(
    make_trained: Make, write_run: Callable[..., Path]
) -> None:
    """Its record names neither a folder nor an import path; it must not pass for drawn shapes."""
    run = write_run(TrainConfig().to_dict(), data_digests=["of the objects"])
    with pytest.raises(ConfigError, match=r"--data: name the images: .* on objects of a program"):
        open_images([make_trained(name=str(run))])


def numbers(split: str) -> list[tuple[np.ndarray, int]] | None:
    """A data set by import path, of one picture or two."""
    return [(np.zeros((20, 20, 3), np.uint8), 1)] * (2 if split == "train" else 1)


def test_an_import_path(make_trained: Make) -> None:
    trained = make_trained(classes=tuple("0123456789"))
    path = f"{__name__}:numbers"
    assert open_images([trained], dataset=path).n_examples == 1
    assert open_images([trained], dataset=path, split="train").n_examples == 2
    with pytest.raises(ConfigError, match="--dataset: cannot be given together with --data"):
        open_images([trained], data="x", dataset=path)
    with pytest.raises(ConfigError, match="--dataset: cannot import 'nowhere'"):
        open_images([trained], dataset="nowhere:at_all")
