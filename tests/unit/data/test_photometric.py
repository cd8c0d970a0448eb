import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from distbelief.data.photometric import LUMA, distorted


class Fixed:
    """Gives the factors, the order and the normal numbers that it was made with."""

    def __init__(
        self,
        factors: tuple[float, float, float],
        order: tuple[int, int, int] = (0, 1, 2),
        normals: tuple[float, float, float] = (0, 0, 0),
    ) -> None:
        ranks = [order.index(change) for change in range(3)]
        self._uniform = [np.array(factors) - 0.5, np.array(ranks) / 3]
        self._normals = np.array(normals)

    def random(self, n: int) -> np.ndarray:
        assert n == 3
        return self._uniform.pop(0)

    def standard_normal(self, n: int) -> np.ndarray:
        assert n == 3
        return self._normals


def image(low: int = 0, high: int = 256, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(low, high, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def changed(picture: Image.Image, rng: Fixed) -> np.ndarray:
    return np.asarray(distorted(picture, rng)).astype(int)  # type: ignore[arg-type]


def test_nothing_is_changed_by_ones() -> None:
    assert (changed(image(), Fixed((1, 1, 1))) == np.asarray(image())).all()


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 1.5])
@pytest.mark.parametrize(
    ("change", "enhance"),
    [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)],
)
def test_one_change_is_pillows(change: int, enhance: type, factor: float) -> None:
    factors = [1.0, 1.0, 1.0]
    factors[change] = factor
    ours = changed(image(), Fixed((factors[0], factors[1], factors[2])))
    theirs = np.asarray(enhance(image()).enhance(factor)).astype(int)
    # Pillow rounds the grey, and cuts what it rounds down.
    assert np.abs(ours - theirs).max() <= 2


ORDERS = list(itertools.permutations(range(3)))
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("factors", [(1.2, 0.6, 1.4), (1.5, 1.5, 1.5), (0.5, 0.5, 0.5)])
def test_changes_are_pillows_in_their_order(
    order: tuple[int, int, int], factors: tuple[float, float, float]
) -> None:
    theirs = image()
    for change in order:
        theirs = ENHANCERS[change](theirs).enhance(factors[change])
    ours = changed(image(), Fixed(factors, order))
    # Pillow cuts where we round.
    assert np.abs(ours - np.asarray(theirs).astype(int)).max() <= 4


def test_the_order_tells_where_values_are_clipped() -> None:
    found = {changed(image(), Fixed((1.5, 0.5, 1.5), order)).tobytes() for order in ORDERS}
    assert len(found) == 6


def test_lighting_shifts_all_pixels_along_the_components() -> None:
    flat = Image.new("RGB", (3, 2), (100, 110, 120))
    first = changed(flat, Fixed((1, 1, 1), normals=(1, 0, 0))) - (100, 110, 120)
    # -0.1 * 0.2175 * 255 * (0.5675, 0.5808, 0.5836), rounded.
    assert (first == np.round([-3.147, -3.221, -3.237])).all()
    assert (first == first[0, 0]).all()
    second = changed(flat, Fixed((1, 1, 1), normals=(0, 10, 0))) - (100, 110, 120)
    assert (second == np.round(255 * 0.0188 * np.array([0.7192, -0.0045, -0.6948]))).all()


def test_contrast_keeps_the_mean_grey_and_colour_keeps_each_grey() -> None:
    before = np.asarray(image(100, 150)).astype(int)
    after = changed(image(100, 150), Fixed((1, 0.5, 1)))
    assert (after @ LUMA).mean() == pytest.approx((before @ LUMA).mean(), abs=0.5)
    assert after.std() == pytest.approx(0.5 * before.std(), rel=0.02)
    after = changed(image(100, 150), Fixed((1, 1, 0.5)))
    assert np.abs((after - before) @ LUMA).max() <= 0.5


def test_it_is_clipped_not_wrapped() -> None:
    white, black = Image.new("RGB", (2, 2), (250, 250, 250)), Image.new("RGB", (2, 2))
    assert (changed(white, Fixed((1.5, 1, 1))) == 255).all()
    assert (changed(black, Fixed((1, 1, 1), normals=(9, 0, 0))) == 0).all()


def test_factors_orders_and_lighting_are_as_announced() -> None:
    rng = np.random.default_rng(0)
    grey = Image.new("RGB", (1, 1), (128, 128, 128))
    # Of a single grey pixel contrast and colour change nothing.
    found = np.array([np.asarray(distorted(grey, rng))[0, 0] for _ in range(4000)]) / 128
    green = found[:, 1]
    assert green.mean() == pytest.approx(1, abs=0.03)
    # Uniform in 0.5 to 1.5, and 0.1 * 0.2175 * 0.5808 * 255 / 128 of lighting.
    assert green.std() == pytest.approx((1 / 12 + 0.0252**2) ** 0.5, rel=0.05)
    assert 0.4 < green.min() < 0.55
    assert 1.45 < green.max() < 1.6
    # What the channels do not share is the second and the third component.
    apart = (found[:, 0] - found[:, 2]) * 128 / 255
    expected = ((0.00188 * 1.414) ** 2 + (0.00045 * 0.0194) ** 2 + (0.02175 * 0.0161) ** 2) ** 0.5
    assert apart.std() == pytest.approx(expected, rel=0.4)


def test_the_same_generator_gives_the_same() -> None:
    first, again, other = (distorted(image(), np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.asarray(first).tobytes() == np.asarray(again).tobytes()
    assert np.asarray(first).tobytes() != np.asarray(other).tobytes()


def test_the_image_itself_is_left_alone() -> None:
    picture = image()
    before = np.asarray(picture).copy()
    distorted(picture, np.random.default_rng(3))
    assert (np.asarray(picture) == before).all()
