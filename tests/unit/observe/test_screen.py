"""The drawing of a run on a terminal."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from distbelief.observe.report import Report
from distbelief.observe.screen import ASCII_BLOCKS, Screen, bars, binned


def replica(number: int) -> dict[str, Any]:
    return {
        "replica": number,
        "host": f"worker-{number}.example.org",
        "state": "working" if number else "silent",
        "items": 100 + number,
        "images_per_second": 150.0,
        "parameters_age_s": 0.25,
        "waiting": 0.02,
    }


def shard(number: int) -> dict[str, Any]:
    return {
        "shard": number,
        "incarnation": 1,
        "clock": 1234 + number,
        "queued": 1,
        "applied": 1234,
        "repeated": 5,
        "refused": 6,
        "mb_per_second": 12.5,
    }


def report(n_replicas: int = 2, n_shards: int = 2, **changes: Any) -> Report:
    fields: dict[str, Any] = {
        "elapsed_s": 65.4,
        "finished": False,
        "failure": "",
        "epoch": 2,
        "n_epochs": 8,
        "examples_applied": 4096,
        "examples_skipped": 0,
        "examples_set_aside": 0,
        "total_examples": 32768,
        "images_per_second": 1234.6,
        "mean_images_per_second": 1000.1,
        "left_s": 185.4,
        "losses": {"loss": 1.23456, "main": 0.8},
        "learning_rate": 0.02,
        "staleness": {0: 30, 1: 50, 7: 1},
        "applied": 256,
        "repeated": 3,
        "refused": {"stale": 9},
        "replicas": tuple(map(replica, range(n_replicas))),
        "shards": tuple(map(shard, range(n_shards))),
        "snapshot": {"number": 3, "examples_applied": 4000, "t": 40.0},
        "validation": {"epoch": 1, "top1": 0.8731, "top5": 0.99},
        "mean_waiting": 0.25,
        "run_dir": "/runs/quickstart-1",
    }
    return Report(**{**fields, **changes})


def drawn(r: Report, width: int = 80, height: int = 40, **changes: Any) -> list[str]:
    console = Console(width=width, height=height, color_system=None, force_terminal=True)
    screen = Screen(**{"report": r, "recipe": "quickstart", "history": [1, 2, 4], **changes})
    with console.capture() as capture:
        console.print(screen)
    return capture.get().rstrip("\n").split("\n")


def test_everything_is_there() -> None:
    lines = drawn(report())
    text = "\n".join(lines)
    for part in (
        "distbelief quickstart",
        "running  1m05s",
        "/runs/quickstart-1",
        "12%  4,096 of 32,768 images  left 3m05s",
        "images/s   1,235  mean 1,000  waiting for data 25%  ▂▄█",
        "loss       1.2346  rate 0.02  epoch 2/8  (main 0.800)",
        "averaged   top-1 87.31%  top-5 99.00%  after epoch 1  snapshot 3, 25s ago",
        "staleness  0 ▅█     ▁ 7  mean 0.70  p99 7  refused 9",
    ):
        assert part in text
    rows = [line.split() for line in lines]
    assert ["0", "silent", "worker-0", "150.0", "100", "0.25", "s", "2%"] in rows
    assert ["1", "1,235", "1", "12.5", "1,234", "6", "5"] in rows


def test_nothing_is_known_yet() -> None:
    r = report(
        0,
        0,
        losses={},
        staleness={},
        validation=None,
        snapshot=None,
        left_s=None,
        total_examples=0,
        examples_applied=0,
    )
    text = "\n".join(drawn(r, history=()))
    for part in ("0%  0 of 0", "left ?", "loss       ?", "not evaluated yet", "no push yet"):
        assert part in text
    assert "replica" not in text
    assert "shard" not in text


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("height", [8, 12, 16, 24, 30, 60])
@pytest.mark.parametrize(("n_replicas", "n_shards"), [(0, 0), (1, 1), (3, 2), (60, 20)])
def test_it_fits_any_terminal(width: int, height: int, n_replicas: int, n_shards: int) -> None:
    lines = drawn(report(n_replicas, n_shards), width, height)
    assert len(lines) <= max(height, 9)
    assert max(map(len, lines)) <= width


def test_many_rows_are_folded_into_their_sums() -> None:
    rows = [line.split() for line in drawn(report(60, 20), 120, 60)]
    # 12 and 8 rows, the last of each for all that are left.
    assert ["and", "49", "more", "49", "working", "7,350.0", "6,615", "0.25", "s", "2%"] in rows
    assert ["and", "13", "more", "1,241-1,253", "13", "162.5", "16,042", "78", "65"] in rows


def test_an_end_has_a_note_and_no_present() -> None:
    text = "\n".join(drawn(report(), status="failed", note="no room [bold]left[/]"))
    assert "no room [bold]left[/]" in text
    assert "failed  1m05s" in text
    assert "images/s   1,000" in text
    assert "left 3m" not in text


def test_a_loss_of_ones_own_has_no_accuracy() -> None:
    assert "loss 0.2500  after epoch 3" in "\n".join(
        drawn(report(validation={"epoch": 3, "loss": 0.25}))
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], ""), ([0, 0], "  "), ([5], "█"), ([0, 1e-9, 4, 8], " ▁▄█")],
)
def test_bars(values: list[float], expected: str) -> None:
    assert bars(values) == expected


def test_bars_of_a_terminal_without_blocks() -> None:
    assert bars([1, 8], ascii_only=True) == ASCII_BLOCKS[0] + ASCII_BLOCKS[-1]


@pytest.mark.parametrize(
    ("counts", "most", "expected"),
    [
        ({}, 4, []),
        ({0: 2, 2: 1}, 4, [2, 0, 1]),
        ({0: 1, 1: 2, 2: 3, 3: 4}, 2, [3, 7]),
        ({4: 1}, 2, [0, 1]),
    ],
)
def test_binned(counts: dict[int, int], most: int, expected: list[int]) -> None:
    assert binned(counts, most) == expected
