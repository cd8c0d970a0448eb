import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distbelief.config import DataConfig
from distbelief.data.images import decode, open_image
from distbelief.data.transforms import (
    Box,
    EvalTransform,
    TrainTransform,
    Transform,
    central_box,
    reduction_for,
    resized,
    resized_image,
    sample_box,
)


def ramp(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards; blue is constant."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None, :]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = 77
    return Image.fromarray(pixels)


@settings(max_examples=200, deadline=None)
@given(width=st.integers(100, 3000), height=st.integers(100, 3000), seed=st.integers(0, 2**32))
def test_sampled_box_keeps_to_the_paper(width: int, height: int, seed: int) -> None:
    box = sample_box(width, height, np.random.default_rng(seed))
    assert box.left >= 0
    assert box.top >= 0
    assert box.left + box.width <= width * (1 + 1e-12)
    assert box.top + box.height <= height * (1 + 1e-12)
    assert 3 / 4 - 1e-9 <= box.width / box.height <= 4 / 3 + 1e-9
    area = box.width * box.height / (width * height)
    # The fallback of very long images is the only one below 8 %.
    if max(width, height) < 8 * min(width, height):
        assert 0.08 - 1e-9 <= area <= 1 + 1e-9


def test_sampled_areas_aspects_and_places_are_uniform() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([sample_box(400, 400, rng) for _ in range(8000)])
    left, top, width, height = boxes.T
    aspect = np.log(width / height) / np.log(4 / 3)
    small = width * height / 160_000 < 0.5
    # Of a square every sample up to 3/4 of the area fits at the first try, so nothing is biased;
    # above it one of area a fits with probability -log(a) / log(4/3), whose integral is this.
    area = (width * height / 160_000)[small]
    fitting = 0.75 - 0.08 + (0.25 + 0.75 * math.log(0.75)) / math.log(4 / 3)
    share = 0.42 / fitting
    assert abs(np.mean(small) - share) < 5 * (share * (1 - share) / len(small)) ** 0.5
    for value, low, high in [
        (area, 0.08, 0.5),
        (aspect[small], -1, 1),
        ((left / (400 - width))[small], 0, 1),
        ((top / (400 - height))[small], 0, 1),
    ]:
        unit = np.sort((value - low) / (high - low))
        # Kolmogorov-Smirnov: beyond 2.2/sqrt(n) once in ten thousand.
        assert np.abs(unit - np.linspace(0, 1, len(unit))).max() < 2.2 / len(unit) ** 0.5


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (6000, 100, Box(2933 + 1 / 3, 0, 133 + 1 / 3, 100)),
        (100, 6000, Box(0, 2933 + 1 / 3, 100, 133 + 1 / 3)),
    ],
)
def test_fallback_is_central(width: int, height: int, box: Box) -> None:
    assert sample_box(width, height, np.random.default_rng(0)) == pytest.approx(box)


@pytest.mark.parametrize(
    ("size", "width", "height", "box"),
    [
        (224, 256, 256, Box(16, 16, 224, 224)),
        (224, 512, 256, Box(144, 16, 224, 224)),
        (224, 500, 1000, Box(31.25, 281.25, 437.5, 437.5)),
        (128, 146, 292, Box(9, 82, 128, 128)),
        (32, 32, 32, Box(0, 0, 32, 32)),
        (32, 64, 48, Box(8, 0, 48, 48)),
        (64, 10, 30, Box(0, 10, 10, 10)),
    ],
)
def test_central_crop(size: int, width: int, height: int, box: Box) -> None:
    assert EvalTransform(size).box(width, height) == box


def test_central_box_of_a_fraction() -> None:
    assert central_box(100, 50, 0.5) == Box(37.5, 12.5, 25, 25)


@pytest.mark.parametrize(
    "transform",
    [
        TrainTransform(16),
        TrainTransform(96),
        TrainTransform(96, interpolation="random"),
        EvalTransform(16),
        EvalTransform(96),
    ],
)
@pytest.mark.parametrize("size", [(16, 16), (96, 96), (1, 1), (300, 20), (7, 500)])
def test_result_has_the_size_and_type(transform: Transform, size: tuple[int, int]) -> None:
    pixels = pickle.loads(pickle.dumps(transform))(ramp(*size), np.random.default_rng(0))
    assert pixels.shape == (transform.size, transform.size, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[..., 2] == 77).all()


def test_a_configuration_has_its_transform() -> None:
    assert TrainTransform.of(DataConfig(image_size=96)) == TrainTransform(96)
    config = DataConfig(image_size=96, photometric=True, interpolation="random")
    assert TrainTransform.of(config) == TrainTransform(96, True, "random")


def test_without_the_switches_a_crop_is_a_flip_and_a_box_and_no_more() -> None:
    image = ramp(200, 150)
    for seed in range(8):
        rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
        pixels = TrainTransform(96)(image, rng)
        flip = other.random() < 0.5
        expected = resized(image, sample_box(200, 150, other), 96)
        assert (pixels == (expected[:, ::-1] if flip else expected)).all()
        assert rng.random() == other.random()


def test_each_interpolation_has_its_chance() -> None:
    # Of this size every crop is shrunk: enlarged by area is by the nearest pixel.
    noise = np.random.default_rng(0).integers(0, 256, (500, 600, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ways = ("BILINEAR", "BOX", "NEAREST", "BICUBIC")
    counts = dict.fromkeys(ways, 0)
    n = 200
    for seed in range(n):
        other = np.random.default_rng(seed)
        flip = other.random() < 0.5
        box = sample_box(600, 500, other)
        pixels = TrainTransform(96, interpolation="random")(image, np.random.default_rng(seed))
        pixels = pixels[:, ::-1] if flip else pixels
        fitting = [
            way
            for way in ways
            if (np.asarray(resized_image(image, box, 96, Image.Resampling[way])) == pixels).all()
        ]
        assert len(fitting) == 1
        counts[fitting[0]] += 1
    # Five deviations of a quarter.
    assert all(abs(count - n / 4) < 5 * (n * 3 / 16) ** 0.5 for count in counts.values())


def test_the_nearest_pixel_is_one_of_the_images(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    path = tmp_path / "image.jpg"
    Image.fromarray(noise).resize((800, 600), Image.Resampling.NEAREST).save(path, quality=95)
    box = Box(10, 10, 700, 500)
    assert reduction_for(box, 96) > 1
    found = resized_image(open_image(str(path)), box, 96, Image.Resampling.NEAREST)
    whole = np.asarray(decode(open_image(str(path)))[0])
    colours = {tuple(pixel) for pixel in whole.reshape(-1, 3).tolist()}
    assert all(tuple(pixel) in colours for pixel in np.asarray(found).reshape(-1, 3).tolist())


@pytest.mark.parametrize("size", [32, 96])
def test_colours_are_changed_of_crops_and_of_shifts(size: int) -> None:
    image = ramp(size, size)
    same = TrainTransform(size)
    changed = TrainTransform(size, photometric=True)
    first, again, other = (changed(image, np.random.default_rng(s)) for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert (first != same(image, np.random.default_rng(1))).any()
    # The image itself, which may be kept, is as it was.
    assert (np.asarray(image) == np.asarray(ramp(size, size))).all()


@pytest.mark.parametrize("size", [32, 96])
def test_half_are_flipped(size: int) -> None:
    image = ramp(150, 150)
    rng = np.random.default_rng(0)
    n = 400
    flipped = 0
    for _ in range(n):
        pixels = TrainTransform(size)(image, rng).astype(int)
        middle = pixels[size // 2, size // 4 : -size // 4]
        flipped += int(middle[0, 0] > middle[-1, 0])
        assert pixels[size // 4, 0, 1] < pixels[-size // 4, 0, 1]
    # Five deviations of a fair coin.
    assert abs(flipped - n / 2) < 5 * (n / 4) ** 0.5


def test_shift_shows_each_place_and_mirrors_the_border() -> None:
    image = ramp(32, 32)
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    places = {
        (padded[y : y + 32, x : x + 32][:, ::step]).tobytes(): (y, x, step)
        for y in range(9)
        for x in range(9)
        for step in (1, -1)
    }
    assert len(places) == 162
    rng = np.random.default_rng(0)
    seen = {places[TrainTransform(32)(image, rng).tobytes()] for _ in range(2500)}
    # Each of the 162 is missed once in five million runs of 2500.
    assert seen == set(places.values())


def test_evaluation_of_the_right_size_is_the_image_itself() -> None:
    image = ramp(32, 32)
    assert (EvalTransform(32)(image, np.random.default_rng(0)) == np.asarray(image)).all()


def test_evaluation_is_resizing_the_shorter_side_then_cropping() -> None:
    image = ramp(400, 300)
    whole = np.asarray(image.resize((round(256 * 4 / 3), 256), Image.Resampling.BILINEAR))
    left = (whole.shape[1] - 224) // 2
    expected = whole[16:240, left : left + 224].astype(int)
    result = EvalTransform(224)(image, np.random.default_rng(0)).astype(int)
    assert np.abs(result - expected).max() <= 2


@pytest.mark.parametrize(
    ("width", "height", "size", "reduction"),
    [
        (223, 900, 224, 1),
        (448, 448, 224, 2),
        (447.9, 900, 224, 1),
        (2000, 900, 224, 4),
        (9000, 9000, 96, 8),
    ],
)
def test_reduction_keeps_the_resolution(
    width: float, height: float, size: int, reduction: int
) -> None:
    assert reduction_for(Box(0, 0, width, height), size) == reduction


@pytest.mark.parametrize(
    "box", [Box(0, 0, 801, 601), Box(100.5, 50.25, 500, 420), Box(601, 401, 200, 200)]
)
def test_reduced_decoding_shows_the_same_part(tmp_path: Path, box: Box) -> None:
    path = tmp_path / "image.jpg"
    ramp(801, 601).save(path, quality=95)
    whole, _ = decode(open_image(str(path)))
    assert reduction_for(box, 96) > 1
    reduced = resized(open_image(str(path)), box, 96).astype(int)
    assert np.abs(reduced - resized(whole, box, 96)).mean() < 1.5
