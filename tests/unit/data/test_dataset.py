import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from distbelief.config import DataConfig
from distbelief.data import DrawnShapes, ImageFolder, TarShards, epoch_permutation, open_data
from distbelief.data.cache import CachedSource
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


def test_tars(tmp_path: Path, folder: Path) -> None:
    for name in ("train-0", "val-0"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            archive.add(folder / name[:-2], arcname=".")
    # Class folders in train/ would come first.
    shutil.move(folder / "train", folder / "old")
    for root in (str(tmp_path), f"local://{tmp_path}"):
        data = open_data(DataConfig(data=root), seed=0)
        assert isinstance(data.train, TarShards)
        assert (data.classes, data.n_outputs) == (("cat", "dog"), 2)
        assert data.val is not None
        assert data.val.read(0)[1] == 1
    one = open_data(DataConfig(data=f"file://{tmp_path}/train-0.tar"), seed=0)
    assert (one.train.n_examples, one.val) == (2, None)


def test_a_file_url_is_a_folder(folder: Path) -> None:
    assert isinstance(open_data(DataConfig(data=f"file://{folder}"), 0).train, ImageFolder)


def test_small_images_are_kept_wherever_they_come_from(folder: Path) -> None:
    data = open_data(DataConfig(data=str(folder), image_size=32), seed=0)
    assert isinstance(data.train, CachedSource)
    plain = open_data(DataConfig(data=str(folder)), seed=0).train
    assert (data.train.epoch_order(1, 2) == plain.epoch_order(1, 2)).all()
    assert (plain.epoch_order(1, 2) == epoch_permutation(1, 2, 2)).all()


def test_outputs_beyond_the_classes(folder: Path) -> None:
    data = open_data(DataConfig(data=str(folder), classes=5), seed=0)
    assert data.n_outputs == 5
    assert data.classes == ("cat", "dog")


def test_more_classes_than_outputs(folder: Path) -> None:
    with pytest.raises(DataError, match="there are 2 classes, more than --classes 1: raise it"):
        open_data(DataConfig(data=str(folder), classes=1), seed=0)
    with pytest.raises(DataError, match="the drawn shapes: there are 10 classes"):
        open_data(DataConfig(classes=9), seed=0)
