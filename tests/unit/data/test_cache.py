from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from distbelief.data import cache
from distbelief.data.cache import CachedSource


class Counting:
    """A source that counts how often each image is read."""

    classes = ("one",)
    digest = "d"
    n_examples = 4

    def __init__(self, side: int) -> None:
        self.side = side
        self.reads: list[int] = []

    def read(self, index: int) -> tuple[Image.Image, int]:
        self.reads.append(index)
        pixels = np.full((self.side, self.side), index, dtype=np.uint8)
        return Image.fromarray(pixels), 0

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        return np.array([seed, epoch])

    def name(self, index: int) -> str:
        return str(index)


def test_a_small_image_is_read_once_and_stays_the_same() -> None:
    source = Counting(side=8)
    cached = CachedSource(source)
    first = np.asarray(cached.read(3)[0])
    second = np.asarray(cached.read(3)[0])
    assert source.reads == [3]
    assert (first == second).all()
    assert (first == 3).all()
    assert first.shape == (8, 8, 3)


def test_a_large_image_is_read_each_time() -> None:
    source = Counting(side=129)
    cached = CachedSource(source)
    cached.read(1)
    cached.read(1)
    assert source.reads == [1, 1]


def test_a_full_cache_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CACHE_NBYTES", 3 * 8 * 8)
    source = Counting(side=8)
    cached = CachedSource(source)
    for index in (0, 1, 0, 1):
        cached.read(index)
    assert source.reads == [0, 1, 1]


def test_the_order_is_the_sources() -> None:
    assert CachedSource(Counting(side=8)).epoch_order(5, 3).tolist() == [5, 3]


def test_it_is_sent_without_what_it_keeps() -> None:
    cached = CachedSource(Counting(side=8))
    cached.read(2)
    sent = pickle.loads(pickle.dumps(cached))
    sent.read(2)
    assert sent._source.reads == [2, 2]
