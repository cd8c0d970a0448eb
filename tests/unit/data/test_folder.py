import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from distbelief.data.folder import ImageFolder, open_folder
from distbelief.data.images import UnreadableImage
from distbelief.errors import DataError


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)


def no_root(root: Path) -> str:
    return "does not exist: --data wants a folder with train/CLASS"


def root_is_file(root: Path) -> str:
    root.write_bytes(b"archive")
    return "is not a folder .unpack it, if it is an archive"


def no_train(root: Path) -> str:
    put(root / "val" / "cat" / "1.png")
    return "has no folder train/: --data wants"


def train_is_file(root: Path) -> str:
    root.mkdir()
    (root / "train").write_bytes(b"")
    return "train: is not a folder: --data wants"


def empty_train(root: Path) -> str:
    (root / "train").mkdir(parents=True)
    return "train: has no class folders: put the images into train/CLASS/"


def images_without_classes(root: Path) -> str:
    put(root / "train" / "1.png")
    return "train: has no class folders: put the images into train/CLASS/"


def only_hidden_classes(root: Path) -> str:
    put(root / "train" / ".cache" / "1.png")
    return "train: has no class folders"


def empty_class(root: Path) -> str:
    put(root / "train" / "cat" / "1.png")
    (root / "train" / "dog").mkdir()
    return r"train/dog: has no images \(.jpg .* add some or remove the folder"


def class_without_images(root: Path) -> str:
    put(root / "train" / "cat" / "1.png", root / "train" / "cat" / "._2.png")
    (root / "train" / "cat" / "1.png").rename(root / "train" / "cat" / "1.txt")
    return "train/cat: has no images"


def unknown_class_in_val(root: Path) -> str:
    put(root / "train" / "cat" / "1.png", root / "val" / "dog" / "1.png")
    return "val/dog: is a class that train/ lacks: add its images to train/ or remove this folder"


def val_without_classes(root: Path) -> str:
    put(root / "train" / "cat" / "1.png", root / "val" / "1.png")
    return "val: has no class folders: put the images into val/CLASS/"


def empty_class_in_val(root: Path) -> str:
    put(root / "train" / "cat" / "1.png")
    (root / "val" / "cat").mkdir(parents=True)
    return "val/cat: has no images"


def val_is_file(root: Path) -> str:
    put(root / "train" / "cat" / "1.png")
    (root / "val").write_bytes(b"")
    return "val: is not a folder"


@pytest.mark.parametrize(
    "make",
    [
        no_root,
        root_is_file,
        no_train,
        train_is_file,
        empty_train,
        images_without_classes,
        only_hidden_classes,
        empty_class,
        class_without_images,
        unknown_class_in_val,
        val_without_classes,
        empty_class_in_val,
        val_is_file,
    ],
)
def test_bad_folder(tmp_path: Path, make: Callable[[Path], str]) -> None:
    root = tmp_path / "data"
    sentence = make(root)
    with pytest.raises(DataError, match=sentence) as caught:
        open_folder(root)
    assert str(root) in caught.value.path
    assert caught.value.exit_code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_folder_that_may_not_be_listed(tmp_path: Path) -> None:
    put(tmp_path / "train" / "cat" / "1.png")
    (tmp_path / "train" / "cat").chmod(0)
    with pytest.raises(DataError, match=r"cannot be listed .* make it readable"):
        open_folder(tmp_path)


def test_listing_is_sorted_by_class_then_path(tmp_path: Path) -> None:
    train = tmp_path / "train"
    put(
        train / "dog" / "b.JPG",
        train / "dog" / "a.png",
        train / "cat" / "deep" / "er" / "1.webp",
        train / "cat" / "b.bmp",
        train / "cat" / "a.jpeg",
        train / "Zebra" / "1.ppm",
    )
    (train / "cat" / "notes.txt").write_text("not an image")
    (train / "README").write_text("not a class")
    source = ImageFolder(tmp_path, "train")
    assert source.classes == ("Zebra", "cat", "dog")
    assert source.n_examples == 6
    expected = [
        ("Zebra/1.ppm", 0),
        ("cat/a.jpeg", 1),
        ("cat/b.bmp", 1),
        ("cat/deep/er/1.webp", 1),
        ("dog/a.png", 2),
        ("dog/b.JPG", 2),
    ]
    listed = [(source.name(i), source.label(i)) for i in range(6)]
    assert listed == [(str(train / below), label) for below, label in expected]
    assert [source.read(i)[1] for i in range(6)] == [label for _, label in expected]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "train" / "cat")
    os.makedirs(folder)
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    os.rename(os.fsencode(tmp_path / "one.png"), folder + b"/\xff\xfe.png")
    source = ImageFolder(tmp_path, "train")
    image, label = source.read(0)
    assert (image.size, label) == ((4, 4), 0)
    assert len(source.digest) == 64


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "1.png", tmp_path / "more" / "2.png")
    train = tmp_path / "data" / "train"
    train.mkdir(parents=True)
    (train / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "more").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "back").symlink_to(tmp_path / "elsewhere")
    source = ImageFolder(tmp_path / "data", "train")
    assert [source.name(i) for i in range(source.n_examples)] == [
        str(train / "cat" / "1.png"),
        str(train / "cat" / "more" / "2.png"),
    ]


def test_broken_link_is_listed_and_unreadable(tmp_path: Path) -> None:
    put(tmp_path / "train" / "cat" / "1.png")
    (tmp_path / "train" / "cat" / "2.png").symlink_to(tmp_path / "gone.png")
    source = ImageFolder(tmp_path, "train")
    with pytest.raises(UnreadableImage, match=r"2\.png: cannot be opened .No such file"):
        source.read(1)


def test_val_has_the_labels_of_train(tmp_path: Path) -> None:
    for name in ("cat", "dog", "eel"):
        put(tmp_path / "train" / name / "1.png")
    put(tmp_path / "val" / "eel" / "1.png", tmp_path / "val" / "cat" / "1.png")
    train, val = open_folder(tmp_path)
    assert val is not None
    assert train.classes == val.classes == ("cat", "dog", "eel")
    assert [val.label(i) for i in range(val.n_examples)] == [0, 2]


def test_no_val(tmp_path: Path) -> None:
    put(tmp_path / "train" / "cat" / "1.png")
    assert open_folder(tmp_path)[1] is None


@pytest.mark.parametrize("index", [-1, 2, 10**9])
def test_no_such_index(tmp_path: Path, index: int) -> None:
    put(tmp_path / "train" / "cat" / "1.png", tmp_path / "train" / "dog" / "1.png")
    source = ImageFolder(tmp_path, "train")
    with pytest.raises(IndexError):
        source.read(index)


def test_digest_follows_the_listing_wherever_it_lies(tmp_path: Path) -> None:
    def digest(root: str, *below: str) -> str:
        put(*(tmp_path / root / "train" / path for path in below))
        return ImageFolder(tmp_path / root, "train").digest

    assert digest("a", "cat/1.png", "dog/2.png") == digest("b", "cat/1.png", "dog/2.png")
    others = [
        digest("c", "cat/1.png", "dog/3.png"),
        digest("d", "cat/1.png", "dog/2.png", "dog/3.png"),
        digest("e", "cat/1.png", "dot/2.png"),
        digest("f", "cat/1.png", "cat/2.png", "dog/2.png"),
    ]
    assert len({digest("a"), *others}) == 5


def test_pickled_listing_is_small_and_needs_no_folder(tmp_path: Path) -> None:
    train = tmp_path / "train" / "cat"
    train.mkdir(parents=True)
    for i in range(2000):
        (train / f"{i:04}.jpg").touch()
    source = ImageFolder(tmp_path, "train")
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000 * 20
    tmp_path.joinpath("train").rename(tmp_path / "moved")
    copy = pickle.loads(pickled)
    assert [copy.name(i) for i in (0, 1999)] == [source.name(i) for i in (0, 1999)]
    assert copy.digest == source.digest
