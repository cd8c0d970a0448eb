import hashlib
import pickle

import numpy as np
import pytest

from distbelief.data.shapes import CLASSES, DrawnShapes, draw


def prints(source: DrawnShapes) -> list[str]:
    return [
        hashlib.sha256(source.read(i)[0].tobytes()).hexdigest() for i in range(source.n_examples)
    ]


def test_classes_are_balanced() -> None:
    source = DrawnShapes("train", 104, 0, 16)
    labels = [source.read(i)[1] for i in range(source.n_examples)]
    counts = np.bincount(labels, minlength=len(CLASSES))
    assert counts.tolist() == [11] * 4 + [10] * 6
    assert source.classes == CLASSES == tuple(sorted(set(CLASSES)))


@pytest.mark.parametrize("size", [16, 32, 65])
def test_images_are_rgb_of_the_size(size: int) -> None:
    source = DrawnShapes("val", 10, 3, size)
    for i in range(10):
        image, _ = source.read(i)
        assert (image.mode, image.size) == ("RGB", (size, size))


def test_an_image_depends_on_seed_split_and_index_alone() -> None:
    source = DrawnShapes("train", 20, 1, 32)
    forwards = prints(source)
    copy = pickle.loads(pickle.dumps(source))
    assert [hashlib.sha256(copy.read(i)[0].tobytes()).hexdigest() for i in reversed(range(20))] == (
        forwards[::-1]
    )
    assert prints(DrawnShapes("train", 30, 1, 32))[:20] == forwards


def test_no_two_images_are_alike() -> None:
    sources = [DrawnShapes(split, 300, seed, 16) for split in ("train", "val") for seed in (0, 1)]
    seen = [each for source in sources for each in prints(source)]
    assert len(set(seen)) == 1200


def test_shapes_differ_where_all_else_is_the_same() -> None:
    for seed in range(20):
        drawn = np.stack(
            [np.asarray(draw(shape, 32, np.random.default_rng(seed))) for shape in CLASSES]
        ).astype(int)
        # Part of at least 2 % of the image differs by 40 of 255 in each channel.
        differs = np.abs(drawn[:, None] - drawn[None]).min(axis=4) > 40
        share = differs.mean(axis=(2, 3)) + np.eye(len(CLASSES))
        assert share.min() > 0.02, (seed, np.argwhere(share <= 0.02).tolist())


def test_digest_follows_every_argument() -> None:
    digests = {
        DrawnShapes(split, n, seed, size).digest
        for split in ("train", "val")
        for n in (10, 11)
        for seed in (0, 1)
        for size in (16, 17)
    }
    assert len(digests) == 16
    assert DrawnShapes("val", 10, 0, 16).digest in digests


@pytest.mark.parametrize("index", [-1, 10])
def test_no_such_index(index: int) -> None:
    with pytest.raises(IndexError):
        DrawnShapes("train", 10, 0, 16).read(index)


def test_name_tells_the_shape() -> None:
    assert DrawnShapes("val", 10, 0, 16).name(3) == "drawn val image 3 (disc)"
