"""A run in another process, as far as that can be seen without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distbelief.chaos.background import SMALL, Background, words
from distbelief.cli.train import parse
from distbelief.errors import DataError


def test_options_become_words() -> None:
    assert words({"snapshot_s": 5.0, "replicas": 3, "evaluate": False, "tensorboard": True}) == [
        "--snapshot-s",
        "5.0",
        "--replicas",
        "3",
        "--no-evaluate",
        "--tensorboard",
    ]


def test_the_small_run_is_one_that_the_command_knows() -> None:
    config = parse(["quickstart", *words(SMALL)]).config
    assert config.epochs == 1_000_000
    assert config.snapshots.snapshot_s == 5.0
    assert config.model.width == 0.0625


def test_a_folder_with_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="holds a run already"):
        Background(tmp_path, {}).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_events_are_read_as_they_come(tmp_path: Path) -> None:
    run = Background(tmp_path, {})
    assert run.events() == []
    first, second = ({"t": float(k), "kind": "items", "replicas": [k]} for k in range(2))
    with (tmp_path / "events.jsonl").open("w") as file:
        file.write(json.dumps(first) + "\n" + json.dumps(second)[:9])
        file.flush()
        assert run.events() == [first]
        assert run.events() == [first]
        file.write(json.dumps(second)[9:] + "\n")
        file.flush()
        assert run.events() == [first, second]


def test_before_a_run_has_told_anything(tmp_path: Path) -> None:
    run = Background(tmp_path, {})
    assert run.recoveries() == []
    assert run.serving() is None
    assert run.members() == []
    assert run.processes() == {}
