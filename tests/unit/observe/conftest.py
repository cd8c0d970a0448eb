"""A run's folder as train writes it, made of events."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

MakeRun = Callable[..., Path]

PLAN = {"n_examples": 100, "batch_size": 10, "n_push": 1, "n_items": 30}


def progress(t: float, examples: int, **changes: Any) -> dict[str, Any]:
    """An event as the coordinator writes it."""
    fields: dict[str, Any] = {
        "t": t,
        "kind": "progress",
        "examples_applied": examples,
        "examples_skipped": 1,
        "examples_set_aside": 10,
        "images_per_second": 50.0,
        "mean_images_per_second": 40.0,
        "left_s": 3.5,
        "losses": {"loss": 1.5, "main": 1.0},
        "learning_rate": 0.01,
        "staleness": {"0": 3, "2": 1},
        "pushes": {"applied": examples // 10, "repeated": 2, "refused": {"stale": 1}},
        "waiting": 0.25,
        "replicas": [0, 1],
        "members": [
            {
                "replica": replica,
                "state": "working",
                "items": 5,
                "images_per_second": 25.0,
                "parameters_age_s": 0.5,
                "waiting": 0.25,
            }
            for replica in (0, 1)
        ],
        "shards": [
            {
                "shard": 0,
                "incarnation": 1,
                "clock": examples // 10,
                "queued": 3,
                "applied": examples // 10,
                "repeated": 2,
                "refused": 1,
                "mb_per_second": 12.5,
            }
        ],
    }
    return {**fields, **changes}


def eventful() -> list[dict[str, Any]]:
    """A run in which a replica dies, that is interrupted, resumed, and ends."""
    return [
        {"t": 0.5, "kind": "shard_started", "shard": 0, "incarnation": 1, "node": "n0"},
        {"t": 1.0, "kind": "replica_joined", "replica": 0, "host": "h0", "pid": 1},
        {"t": 1.0, "kind": "replica_joined", "replica": 1, "host": "h1", "pid": 2},
        {
            "t": 2.0,
            "kind": "items",
            "items": [0, 1],
            "replicas": [0, 1],
            "losses": {"loss": [4.0, 2.0]},
        },
        progress(2.0, 20),
        {"t": 3.0, "kind": "replica_lost", "replica": 1, "cause": "<b>", "items_returned": [4]},
        {"t": 4.0, "kind": "replica_joined", "replica": 2, "host": "h1", "pid": 3},
        {
            "t": 4.5,
            "kind": "replica_replaced",
            "what": "replica 1",
            "cause": "<b>",
            "seconds": 1.5,
            "items_leased_again": 1,
            "replica": 2,
        },
        {"t": 5.0, "kind": "snapshot", "number": 2, "even": True, "examples_applied": 100},
        {"t": 6.0, "kind": "epoch", "epoch": 1},
        {
            "t": 6.0,
            "kind": "evaluation",
            "epoch": 1,
            "examples_applied": 110,
            "top1": 0.5,
            "top5": 0.75,
            "loss": 1.25,
            "n_examples": 64,
            "weights": "averaged",
            "seconds": 0.5,
        },
        {"t": 8.0, "kind": "end", "status": "interrupted"},
        {"t": 5.0, "kind": "resumed", "snapshot": 2, "examples_applied": 100},
        {"t": 6.0, "kind": "replica_joined", "replica": 0, "host": "h0", "pid": 4},
        {
            "t": 7.0,
            "kind": "items",
            "items": [10, 11],
            "replicas": [0, 0],
            "losses": {"loss": [1.0, None]},
        },
        progress(8.0, 290, staleness={"0": 1}),
        {"t": 9.0, "kind": "end", "status": "finished"},
    ]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run's folder of that name below the test's, and returns it."""

    def make(
        name: str = "run",
        events: Sequence[dict[str, Any]] | None = None,
        summary: dict[str, Any] | None = None,
        started_at: float = 1000.0,
        **options: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = {
            "config": {
                "recipe": "quickstart",
                "schedule": {"lr": 0.5},
                "cluster": {"replicas": 2, "shards": 1},
                **options,
            },
            "plan": PLAN,
            "started_at": started_at,
            "host": "h",
            "versions": {"distbelief": "0"},
            "parameters": 1234,
        }
        (folder / "config.json").write_text(json.dumps(config))
        lines = [json.dumps(event) + "\n" for event in (eventful() if events is None else events)]
        (folder / "events.jsonl").write_text("".join(lines))
        if summary is not None:
            (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return make
