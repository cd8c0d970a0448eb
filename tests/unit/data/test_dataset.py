from pathlib import Path

import pytest
from PIL import Image

from distbelief.config import DataConfig
from distbelief.data import DrawnShapes, ImageFolder, open_data
from distbelief.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for below in ("train/cat", "train/dog", "val/dog"):
        (tmp_path / below).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / below / "1.png")
    return tmp_path


def test_drawn_shapes_where_there_is_no_folder() -> None:
    data = open_data(DataConfig(image_size=32, drawn_train=30, drawn_val=20), seed=5)
    assert data.train.n_examples == 30
    assert data.train.name(3) == DrawnShapes("train", 30, 5, 32).name(3)
    assert data.val is not None
    assert (data.train.n_examples, data.val.n_examples) == (30, 20)
    assert data.train.read(0)[0].size == (32, 32)
    assert data.n_outputs == len(data.classes) == 10
    assert data.train.digest == DrawnShapes("train", 30, 5, 32).digest
    assert data.val.digest == DrawnShapes("val", 20, 5, 32).digest


def test_folder(folder: Path) -> None:
    data = open_data(DataConfig(data=str(folder)), seed=0)
    assert isinstance(data.train, ImageFolder)
    assert data.classes == ("cat", "dog")
    assert data.n_outputs == 2
    assert data.val is not None
    assert data.val.read(0)[1] == 1


def test_outputs_beyond_the_classes(folder: Path) -> None:
    data = open_data(DataConfig(data=str(folder), classes=5), seed=0)
    assert data.n_outputs == 5
    assert data.classes == ("cat", "dog")


def test_more_classes_than_outputs(folder: Path) -> None:
    with pytest.raises(DataError, match="there are 2 classes, more than --classes 1: raise it"):
        open_data(DataConfig(data=str(folder), classes=1), seed=0)
    with pytest.raises(DataError, match="the drawn shapes: there are 10 classes"):
        open_data(DataConfig(classes=9), seed=0)
