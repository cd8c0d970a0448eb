"""A run's folder as train would have left it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRESS: dict[str, Any] = {"t": 9.0, "kind": "progress", "examples_applied": 120}
SUMMARY: dict[str, Any] = {
    "examples_applied": 120,
    "wall_seconds": 9.0,
    "images_per_second": 40.0,
    "snapshot": {"number": 3, "examples_applied": 120},
}
PLAN = {"n_examples": 100, "batch_size": 10, "n_push": 1, "n_items": 30}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with some events; with a status the run has ended so and has a summary."""

    def make(
        *events: dict[str, Any], status: str = "", silent: bool = False, name: str = "run"
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        record = {"config": {"recipe": "quickstart"}, "plan": PLAN, "started_at": 1000.0}
        (folder / "config.json").write_text(json.dumps(record))
        ends: list[dict[str, Any]] = []
        if status == "failed":
            ends = [{"t": 10.0, "kind": "failure", "cause": "no room left"}]
        elif status:
            ends = [{"t": 10.0, "kind": "end", "status": status}]
            (folder / "summary.json").write_text(json.dumps({**SUMMARY, "status": status}))
        lines = [json.dumps(event) + "\n" for event in (PROGRESS, *events, *ends)]
        (folder / "events.jsonl").write_text("".join(lines))
        if silent:
            for file in folder.iterdir():
                os.utime(file, (1000.0, 1000.0))
        return folder

    return make
