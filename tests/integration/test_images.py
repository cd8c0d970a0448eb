"""From JPEGs to averaged weights: an image folder with an image that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from distbelief.audit import audit
from distbelief.config import TrainConfig
from distbelief.observe.events import read_events
from distbelief.observe.view import Lines
from distbelief.runtime.train import train
from distbelief.server.pushlog import LogEntry, read_log
from distbelief.storage import storage_at

N_TRAIN = 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, twenty training images each, of which one is damaged, and three to evaluate."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("bright", "dark")):
        for split, n in (("train", N_TRAIN), ("val", 3)):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 100, (40, 50, 3)) + 150 * (1 - label)
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i:02d}.jpg")
    damaged = tmp_path / "images" / "train" / "dark" / "07.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    return tmp_path / "images"


def test_an_image_folder(tiny: Callable[..., TrainConfig], folder: Path) -> None:
    """Decoded in processes, trained by the paper's network with its heads, evaluated, audited."""
    config = tiny(
        data=str(folder), image_size=32, heads=True, lrn=True, init="caffe", epochs=3, lr=1e-3
    )
    result = train(config, Lines(lambda line: None))
    run_dir = Path(result["run_dir"])
    assert result["status"] == "finished"
    assert result["examples_applied"] == 3 * 2 * N_TRAIN
    assert result["examples_skipped"] == 3
    assert result["validation"]["n_examples"] == 6
    found = audit(run_dir)
    assert found.clean, found.counter_example
    assert (found.examples, found.skipped) == (3 * (2 * N_TRAIN - 1), 3)
    storage = storage_at(run_dir)
    for name in storage.logs("pushes"):
        _, entries = read_log(storage, name)
        skipped = [i for e in entries if isinstance(e, LogEntry) for i in e.skipped]
        assert skipped == [N_TRAIN + 7] * 3
    losses = [e["losses"] for e in read_events(storage) if e["kind"] == "items"]
    assert all(set(found) == {"loss", "main", "aux1", "aux2"} for found in losses)
    assert json.loads((run_dir / "config.json").read_text())["classes"] == ["bright", "dark"]
    with safe_open(run_dir / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["bright", "dark"]
