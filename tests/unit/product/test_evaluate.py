"""Evaluation against the same figures computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from distbelief.data.crops import CropsTransform
from distbelief.data.images import UnreadableImage
from distbelief.data.normalize import normalization
from distbelief.data.shapes import CLASSES, DrawnShapes
from distbelief.data.transforms import EvalTransform
from distbelief.errors import ConfigError, DataError, UsageError
from distbelief.product.evaluate import Evaluation, evaluate
from distbelief.product.weights import Trained

Make = Callable[..., Trained]


def probabilities(trained: Trained, images: DrawnShapes, n_crops: Any = 1) -> Tensor:
    """``(n, n_outputs)``: each picture alone, its crops one after another."""
    size = trained.image_size
    transform = EvalTransform(size) if n_crops == 1 else CropsTransform(size, n_crops)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in normalization(trained.normalize))
    rows = []
    for index in range(images.n_examples):
        pixels = transform(images.read(index)[0], np.random.default_rng(0)).copy()
        crops = torch.from_numpy(pixels).reshape(-1, size, size, 3)
        with torch.no_grad():
            one_by_one = [
                trained.model(((crop.permute(2, 0, 1) - mean) / deviation)[None]).softmax(dim=1)
                for crop in crops
            ]
        rows.append(torch.cat(one_by_one).mean(dim=0))
    return torch.stack(rows)


def check(found: Evaluation, expected: Tensor) -> None:
    """``expected``: ``(n, n_outputs)`` probabilities of pictures whose labels are ``i % 10``."""
    labels = torch.arange(len(expected)) % 10
    best = expected.topk(min(5, expected.shape[1]), dim=1).indices
    assert found.n_examples == len(expected)
    top1 = float((best[:, 0] == labels).double().mean())
    assert math.isclose(found.top1, top1, rel_tol=1e-12)
    top5 = float((best == labels[:, None]).any(dim=1).double().mean())
    assert math.isclose(found.top5, top5, rel_tol=1e-12)
    loss = -float(expected[torch.arange(len(labels)), labels].log().mean())
    assert math.isclose(found.loss, loss, rel_tol=1e-5)
    counts = torch.zeros(len(found.confusion), len(found.confusion[0]), dtype=torch.int64)
    for label, guess in zip(labels.tolist(), best[:, 0].tolist(), strict=True):
        counts[label, min(guess, counts.shape[1] - 1)] += 1
    assert found.confusion == tuple(tuple(row) for row in counts.tolist())


@pytest.mark.parametrize("batch_size", [1, 7, 23, 64])
@pytest.mark.parametrize("normalize", ["unit", "caffe"])
def test_one_model(make_trained: Make, drawn: DrawnShapes, batch_size: int, normalize: str) -> None:
    trained = make_trained(normalize=normalize)
    found = evaluate([trained], drawn, batch_size=batch_size)
    check(found, probabilities(trained, drawn))
    assert (found.crops, found.weights, found.skipped) == (1, "averaged", 0)
    assert [c.n for c in found.classes] == [3, 3, 3] + [2] * 7
    assert len({guess for row in found.confusion for guess, n in enumerate(row) if n}) > 1


@pytest.mark.parametrize("batch_size", [1, 7, 200])
@pytest.mark.parametrize("n_crops", [10, 144])
def test_crops(make_trained: Make, n_crops: int, batch_size: int) -> None:
    images = DrawnShapes("val", 4, 5, 40)
    trained = make_trained()
    found = evaluate([trained], images, crops=n_crops, batch_size=batch_size)
    check(found, probabilities(trained, images, n_crops))
    assert found.crops == n_crops


def test_ten_crops_are_ten_times_the_compute(make_trained: Make, drawn: DrawnShapes) -> None:
    seen: list[int] = []
    trained = make_trained()
    trained.model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    evaluate([trained], drawn, batch_size=20)
    assert seen == [20, 3]
    seen.clear()
    evaluate([trained], drawn, crops=10, batch_size=20)
    assert seen == [20] * 11 + [10]


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_an_ensemble_is_the_mean_of_its_models(
    make_trained: Make, drawn: DrawnShapes, batch_size: int
) -> None:
    models = [
        make_trained(0),
        make_trained(1, normalize="caffe", weights="latest"),
        make_trained(2, image_size=24),
    ]
    found = evaluate(models, drawn, batch_size=batch_size)
    each = [probabilities(trained, drawn) for trained in models]
    check(found, torch.stack(each).mean(dim=0))
    assert found.weights == "mixed"
    for model, row, alone in zip(models, found.models, each, strict=True):
        expected = evaluate([model], drawn)
        assert (row.name, row.weights) == (model.name, model.weights)
        assert (row.top1, row.top5) == (expected.top1, expected.top5)
        assert math.isclose(row.loss, expected.loss, rel_tol=1e-6)
        check(expected, alone)


def test_pictures_are_decoded_once_for_each_image_size(
    make_trained: Make, drawn: DrawnShapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = DrawnShapes.read

    def counted(self: DrawnShapes, index: int) -> Any:
        read.append(index)
        return original(self, index)

    monkeypatch.setattr(DrawnShapes, "read", counted)
    evaluate([make_trained(0), make_trained(1, normalize="caffe")], drawn)
    assert read == list(range(23))
    read.clear()
    evaluate([make_trained(0), make_trained(1, image_size=24)], drawn)
    assert sorted(read) == sorted([*range(23), *range(23)])


def test_outputs_beyond_the_classes(make_trained: Make, drawn: DrawnShapes) -> None:
    models = [make_trained(0, n_outputs=13), make_trained(1)]
    wide = probabilities(models[0], drawn)
    narrow = torch.nn.functional.pad(probabilities(models[1], drawn), (0, 3))
    check(evaluate(models[:1], drawn), wide)
    check(evaluate(models, drawn), (wide + narrow) / 2)
    assert {len(row) for row in evaluate(models, drawn).confusion} == {11}


def test_a_loader_process_finds_the_same(make_trained: Make, drawn: DrawnShapes) -> None:
    models = [make_trained(0), make_trained(1, image_size=24)]
    here, there = evaluate(models, drawn), evaluate(models, drawn, n_loaders=1)
    assert {**here.to_dict(), "seconds": 0, "images_per_second": 0} == {
        **there.to_dict(),
        "seconds": 0,
        "images_per_second": 0,
    }


class Damaged(DrawnShapes):
    """Some of its pictures cannot be read."""

    def __init__(self, n_examples: int, damaged: Sequence[int]) -> None:
        super().__init__("val", n_examples, 5, 20)
        self._damaged = frozenset(damaged)

    def read(self, index: int) -> tuple[Image.Image, int]:
        if index in self._damaged:
            raise UnreadableImage(self.name(index), "is damaged")
        return super().read(index)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_pictures_that_cannot_be_read_are_counted(make_trained: Make, batch_size: int) -> None:
    trained = make_trained()
    damaged = [0, 4, 5, 6, 22]
    told: list[tuple[int, int]] = []
    found = evaluate(
        [trained],
        Damaged(23, damaged),
        batch_size=batch_size,
        progress=lambda done, n: told.append((done, n)),
    )
    assert (found.n_examples, found.skipped) == (18, 5)
    assert found.skipped_images[0] == "drawn val image 0 (arrow)"
    assert sum(map(sum, found.confusion)) == 18
    assert told[-1] == (23, 23)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    whole = evaluate([trained], DrawnShapes("val", 23, 5, 20))
    assert found.confusion[1] == whole.confusion[1]  # none of its pictures is damaged


def test_a_class_without_pictures_has_no_accuracy(make_trained: Make) -> None:
    found = evaluate([make_trained()], Damaged(23, [3, 13])).to_dict()
    assert found["classes"][3] == {"class": CLASSES[3], "n": 0, "top1": None, "top5": None}
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))
    assert set(found) == {
        *("top1", "top5", "loss", "n_examples", "skipped", "skipped_images", "crops", "weights"),
        *("models", "classes", "confusion", "seconds", "images_per_second"),
    }


def test_no_picture_at_all(make_trained: Make) -> None:
    with pytest.raises(DataError, match=r"image 0 \(arrow\): none of the 5 images can be read"):
        evaluate([make_trained()], Damaged(5, range(5)), batch_size=2)


def test_bfloat16_is_near(make_trained: Make, drawn: DrawnShapes) -> None:
    exact = evaluate([make_trained()], drawn)
    rough = evaluate([make_trained()], drawn, precision="bf16")
    assert rough.loss != exact.loss
    assert math.isclose(rough.loss, exact.loss, rel_tol=0.05)


def test_models_stay_in_the_mode_that_they_had(make_trained: Make, drawn: DrawnShapes) -> None:
    trained = make_trained()
    trained.model.train()
    evaluate([trained], drawn)
    assert trained.model.training


class Numbers(DrawnShapes):
    """Targets that are no classes."""

    def __init__(self, target: Any) -> None:
        super().__init__("val", 4, 5, 20)
        self._target = target

    def read(self, index: int) -> Any:
        return super().read(index)[0], self._target


@pytest.mark.parametrize("target", [10, -1, np.zeros(3), np.float32(0.5)])
def test_targets_that_are_no_classes(make_trained: Make, target: Any) -> None:
    with pytest.raises(DataError, match="targets must be classes, whole numbers from 0 to 9"):
        evaluate([make_trained()], Numbers(target))


def test_what_cannot_be_evaluated(make_trained: Make, drawn: DrawnShapes) -> None:
    trained = make_trained()
    for option, value in (("crops", 5), ("batch_size", 0), ("n_loaders", -1)):
        with pytest.raises(ConfigError, match=f"--{option.removeprefix('n_').replace('_', '-')}"):
            evaluate([trained], drawn, **{option: value})
    with pytest.raises(UsageError, match="at least one model"):
        evaluate([], drawn)
    other = make_trained(1, classes=("dog", *CLASSES[1:]))
    with pytest.raises(DataError, match=r"model-1: has other classes than model-0: 'dog' is only"):
        evaluate([trained, other], drawn)
    with pytest.raises(DataError, match=r"than model-1 was trained on: 'arrow' is only here"):
        evaluate([other], drawn)
    turned = make_trained(2, classes=CLASSES[::-1])
    with pytest.raises(DataError, match="their order differs"):
        evaluate([turned], drawn)
