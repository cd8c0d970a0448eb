"""Models that nobody trained, and pictures that anybody could draw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distbelief.config import ModelConfig
from distbelief.data.shapes import CLASSES, DrawnShapes
from distbelief.models.registry import build
from distbelief.product.weights import Trained

TINY = ModelConfig(width=0.0625, lrn=False, heads=False, init="he")


@pytest.fixture
def make_trained() -> Callable[..., Trained]:
    """A small network with random weights, large enough that its predictions differ."""

    def make(seed: int = 0, **changes: Any) -> Trained:
        network = changes.pop("network", TINY)
        fields: dict[str, Any] = {
            "name": f"model-{seed}",
            "network": network,
            "classes": CLASSES,
            "n_outputs": 10,
            "image_size": 16,
            "normalize": "unit",
            "weights": "averaged",
            **changes,
        }
        model = build(
            network, classes=fields["n_outputs"], image_size=fields["image_size"], seed=seed
        ).eval()
        with torch.no_grad():
            # The classifier's weights, so that its predictions differ, whatever the pixels' scale.
            list(model.parameters())[-2].mul_(50.0 if fields["normalize"] == "unit" else 1.0)
        return Trained(model=model, **fields)

    return make


@pytest.fixture
def drawn() -> DrawnShapes:
    """23 pictures: no multiple of the batches that are tried."""
    return DrawnShapes("val", 23, 5, 20)


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """A run's folder with ``config.json`` alone; keywords change the record's fields."""

    def write(config: dict[str, Any], name: str = "run", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        record = {"config": config, "classes": list(CLASSES), "n_outputs": 10, **changes}
        (folder / "config.json").write_text(json.dumps(record))
        return folder

    return write
