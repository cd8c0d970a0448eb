"""The crops of an image: where they are, and that the transform cuts them there."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distbelief.data.crops import CropsTransform, crop_boxes
from distbelief.data.images import UnreadableImage

# Left, top, right, bottom in a picture of 300 x 400 resized to width and height: the four corners
# and the centre at 224 and the whole square, of the top, the centre and the bottom square.
TABLE: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {
    (256, 341): [
        *[(0, 0, 224, 224), (32, 0, 256, 224), (0, 32, 224, 256), (32, 32, 256, 256)],
        *[(16, 16, 240, 240), (0, 0, 256, 256)],
        *[(0, 42, 224, 266), (32, 42, 256, 266), (0, 74, 224, 298), (32, 74, 256, 298)],
        *[(16, 58, 240, 282), (0, 42, 256, 298)],
        *[(0, 85, 224, 309), (32, 85, 256, 309), (0, 117, 224, 341), (32, 117, 256, 341)],
        *[(16, 101, 240, 325), (0, 85, 256, 341)],
    ],
    (288, 384): [
        *[(0, 0, 224, 224), (64, 0, 288, 224), (0, 64, 224, 288), (64, 64, 288, 288)],
        *[(32, 32, 256, 256), (0, 0, 288, 288)],
        *[(0, 48, 224, 272), (64, 48, 288, 272), (0, 112, 224, 336), (64, 112, 288, 336)],
        *[(32, 80, 256, 304), (0, 48, 288, 336)],
        *[(0, 96, 224, 320), (64, 96, 288, 320), (0, 160, 224, 384), (64, 160, 288, 384)],
        *[(32, 128, 256, 352), (0, 96, 288, 384)],
    ],
    (320, 427): [
        *[(0, 0, 224, 224), (96, 0, 320, 224), (0, 96, 224, 320), (96, 96, 320, 320)],
        *[(48, 48, 272, 272), (0, 0, 320, 320)],
        *[(0, 53, 224, 277), (96, 53, 320, 277), (0, 149, 224, 373), (96, 149, 320, 373)],
        *[(48, 101, 272, 325), (0, 53, 320, 373)],
        *[(0, 107, 224, 331), (96, 107, 320, 331), (0, 203, 224, 427), (96, 203, 320, 427)],
        *[(48, 155, 272, 379), (0, 107, 320, 427)],
    ],
    (352, 469): [
        *[(0, 0, 224, 224), (128, 0, 352, 224), (0, 128, 224, 352), (128, 128, 352, 352)],
        *[(64, 64, 288, 288), (0, 0, 352, 352)],
        *[(0, 58, 224, 282), (128, 58, 352, 282), (0, 186, 224, 410), (128, 186, 352, 410)],
        *[(64, 122, 288, 346), (0, 58, 352, 410)],
        *[(0, 117, 224, 341), (128, 117, 352, 341), (0, 245, 224, 469), (128, 245, 352, 469)],
        *[(64, 181, 288, 405), (0, 117, 352, 469)],
    ],
}


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def run(image: Image.Image, size: int, n_crops: Any) -> Any:
    return CropsTransform(size, n_crops)(image, np.random.default_rng(0))


def test_144_crops_of_an_upright_picture() -> None:
    rows = [(*scaled, *box) for scaled, boxes in TABLE.items() for box in boxes]
    expected = [
        (*row, number % 6 == 5, mirrored)
        for number, row in enumerate(rows)
        for mirrored in (False, True)
    ]
    assert len(expected) == 144
    assert [tuple(crop) for crop in crop_boxes(300, 400, 224, 144)] == expected


def test_a_picture_on_its_side_has_the_same_crops_turned() -> None:
    upright = {tuple(crop) for crop in crop_boxes(300, 400, 224, 144)}
    turned = {
        (h, w, top, left, bottom, right, resize, mirrored)
        for w, h, left, top, right, bottom, resize, mirrored in crop_boxes(400, 300, 224, 144)
    }
    assert turned == upright


def test_10_crops() -> None:
    boxes = [
        (0, 42, 224, 266),
        (32, 42, 256, 266),
        (0, 74, 224, 298),
        (32, 74, 256, 298),
        (16, 58, 240, 282),
    ]
    assert [tuple(crop) for crop in crop_boxes(300, 400, 224, 10)] == [
        (256, 341, *box, False, mirrored) for box in boxes for mirrored in (False, True)
    ]


def test_sides_follow_the_size_of_the_crop() -> None:
    sides = [crop.height for crop in crop_boxes(400, 300, 32, 144)[::36]]
    assert sides == [37, 41, 46, 50]


@pytest.mark.parametrize("n_crops", [0, 1, 5, 143])
def test_other_numbers_are_refused(n_crops: int) -> None:
    with pytest.raises(ValueError, match="10 or 144"):
        crop_boxes(300, 400, 224, n_crops)


@settings(max_examples=200, deadline=None)
@given(
    width=st.integers(1, 2000),
    height=st.integers(1, 2000),
    size=st.integers(16, 300),
    n_crops=st.sampled_from([10, 144]),
)
def test_every_box_is_a_square_inside(width: int, height: int, size: int, n_crops: int) -> None:
    crops = crop_boxes(width, height, size, n_crops)
    assert len(crops) == n_crops
    for crop in crops:
        assert 0 <= crop.left < crop.right <= crop.width
        assert 0 <= crop.top < crop.bottom <= crop.height
        side = crop.right - crop.left
        assert side == crop.bottom - crop.top
        assert side == (min(crop.width, crop.height) if crop.resize else size)


@pytest.mark.parametrize("n_crops", [10, 144])
@pytest.mark.parametrize(("width", "height", "size"), [(90, 120, 64), (50, 40, 32), (21, 21, 16)])
def test_the_transform_cuts_the_boxes(width: int, height: int, size: int, n_crops: int) -> None:
    image = noise(width, height)
    found = run(image, size, n_crops)
    assert found.shape == (n_crops, size, size, 3)
    assert found.dtype == np.uint8
    bilinear = Image.Resampling.BILINEAR
    for pixels, crop in zip(found, crop_boxes(width, height, size, n_crops), strict=True):
        box = (crop.left, crop.top, crop.right, crop.bottom)
        expected = image.resize((crop.width, crop.height), bilinear).crop(box)
        if crop.resize:
            expected = expected.resize((size, size), bilinear)
        if crop.mirrored:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert np.array_equal(pixels, np.asarray(expected))


def test_a_picture_of_the_right_size_is_not_resized() -> None:
    image = noise(256, 300)
    assert np.array_equal(run(image, 224, 10)[0], np.asarray(image)[22:246, :224])


def test_a_large_jpeg_is_decoded_reduced_and_looks_the_same() -> None:
    gradient = np.zeros((1601, 1203, 3), dtype=np.uint8)
    gradient[..., 0] = np.linspace(0, 255, 1203)[None, :]
    gradient[..., 1] = np.linspace(0, 255, 1601)[:, None]
    content = io.BytesIO()
    Image.fromarray(gradient).save(content, "JPEG", quality=95)
    found = run(Image.open(io.BytesIO(content.getvalue())), 224, 144).astype(int)
    expected = run(Image.fromarray(gradient), 224, 144).astype(int)
    assert np.abs(found - expected).max() <= 4


def test_a_picture_that_is_too_long_is_unreadable() -> None:
    with pytest.raises(UnreadableImage, match="too long"):
        run(Image.new("RGB", (1, 2000)), 224, 144)


def test_a_damaged_picture_is_unreadable() -> None:
    content = io.BytesIO()
    noise(300, 300).save(content, "JPEG")
    with pytest.raises(UnreadableImage):
        run(Image.open(io.BytesIO(content.getvalue()[:2000])), 224, 10)


def test_it_travels_to_the_loader_processes() -> None:
    transform = CropsTransform(32, 10)
    assert pickle.loads(pickle.dumps(transform)) == transform
