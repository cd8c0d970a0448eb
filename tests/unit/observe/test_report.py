"""Figures for a person and for ``summary.json``."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.observe.report import (
    Report,
    duration,
    progress_event,
    progress_line,
    staleness_since,
    staleness_summary,
    summary,
)


def report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "elapsed_s": 65.4321,
        "finished": False,
        "failure": "",
        "epoch": 2,
        "n_epochs": 8,
        "examples_applied": 4096,
        "examples_skipped": 7,
        "examples_set_aside": 32,
        "total_examples": 32768,
        "images_per_second": 1234.5,
        "mean_images_per_second": 1000.126,
        "left_s": 185.4,
        "losses": {"loss": 1.23456, "aux": 2.0},
        "learning_rate": 0.019876,
        "staleness": {0: 3, 2: 1},
        "applied": 256,
        "repeated": 3,
        "refused": {"stale": 1},
        "replicas": ({"replica": 0}, {"replica": 1}),
        "shards": (),
        "snapshot": None,
        "validation": None,
        "mean_waiting": 0.0,
    }
    return Report(**{**fields, **changes})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (42.4, "42s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185.4, "3m05s"),
        (3599.4, "59m59s"),
        (3599.6, "1h00m"),
        (7620, "2h07m"),
        (360_000, "100h00m"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_staleness_of_nothing() -> None:
    assert staleness_summary({}) == {"mean": 0.0, "p50": 0, "p99": 0, "max": 0}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({3: 7}, {"mean": 3.0, "p50": 3, "p99": 3, "max": 3}),
        ({0: 1, 1: 1}, {"mean": 0.5, "p50": 0, "p99": 1, "max": 1}),
        ({0: 1, 1: 2}, {"mean": 0.6667, "p50": 1, "p99": 1, "max": 1}),
        ({5: 1, 0: 99}, {"mean": 0.05, "p50": 0, "p99": 0, "max": 5}),
        ({5: 2, 0: 98}, {"mean": 0.1, "p50": 0, "p99": 5, "max": 5}),
    ],
)
def test_staleness(counts: dict[int, int], expected: dict[str, float]) -> None:
    assert staleness_summary(counts) == expected


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=200))
def test_staleness_is_that_of_the_sorted_values(values: list[int]) -> None:
    found = staleness_summary(Counter(values))
    ordered = sorted(values)
    assert found["mean"] == round(sum(values) / len(values), 4)
    assert found["p50"] == ordered[-(-50 * len(values) // 100) - 1]
    assert found["p99"] == ordered[-(-99 * len(values) // 100) - 1]
    assert found["max"] == ordered[-1]


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        ({}, {}, {}),
        ({0: 3, 1: 2}, {}, {0: 3, 1: 2}),
        ({1: 2, 0: 3}, {0: 1, 1: 2}, {0: 2}),
        ({0: 1}, {0: 5}, {}),  # of a shard that was started anew
    ],
)
def test_staleness_since(
    now: dict[int, int], before: dict[int, int], expected: dict[int, int]
) -> None:
    assert staleness_since(now, before) == expected


def test_a_progress_event_is_json_and_has_what_a_report_needs() -> None:
    replica = {
        "replica": 3,
        "host": "h",
        "pid": 7,
        "state": "working",
        "items": 5,
        "examples": 50,
        "seconds_per_item": 0.1,
        "images_per_second": 100.126,
        "parameters_age_s": None,
        "waiting": 0.123456,
    }
    shard = {
        "shard": 0,
        "incarnation": 1,
        "clock": 5,
        "queued": 2,
        "applied": 5,
        "repeated": 1,
        "refused": 0,
        "mb_per_second": 1.23456,
    }
    found = progress_event(
        report(replicas=(replica,), shards=(shard,), mean_waiting=0.1), {0: 2, 3: 1}
    )
    assert json.loads(json.dumps(found)) == found
    assert found == {
        "examples_applied": 4096,
        "examples_skipped": 7,
        "examples_set_aside": 32,
        "images_per_second": 1234.5,
        "mean_images_per_second": 1000.13,
        "left_s": 185.4,
        "losses": {"loss": 1.23456, "aux": 2.0},
        "learning_rate": 0.019876,
        "staleness": {"0": 2, "3": 1},
        "pushes": {"applied": 256, "repeated": 3, "refused": {"stale": 1}},
        "waiting": 0.1,
        "replicas": [3],
        "members": [
            {
                "replica": 3,
                "stages": 1,
                "state": "working",
                "items": 5,
                "images_per_second": 100.13,
                "parameters_age_s": None,
                "waiting": 0.1235,
            }
        ],
        "shards": [{**shard, "mb_per_second": 1.235}],
    }


def test_progress_line() -> None:
    assert progress_line(report()) == (
        " 1m05s  epoch 2/8  4,096/32,768 (12%)  1,234 images/s  left 3m05s  loss 1.2346  "
        "rate 0.01988  staleness 0.50 (max 2)  2 replicas"
    )


def test_progress_line_before_anything_is_known() -> None:
    line = progress_line(
        report(
            elapsed_s=0.2,
            examples_applied=0,
            total_examples=0,
            images_per_second=0.0,
            left_s=None,
            losses={},
            staleness={},
            replicas=({"replica": 0},),
        )
    )
    assert line == (
        "    0s  epoch 2/8  0/0 (0%)  0 images/s  left ?  loss ?  "
        "rate 0.01988  staleness 0.00 (max 0)  1 replica"
    )


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"validation": {"top1": 0.9876}}, "  top-1 98.8%"),
        ({"validation": {"loss": 0.5}}, "  2 replicas"),  # of a loss without classes
        ({"mean_waiting": 0.1}, "  2 replicas"),
        ({"mean_waiting": 0.25}, "  waiting for data 25%"),
        (
            {"validation": {"top1": 0.5}, "mean_waiting": 0.5},
            "  top-1 50.0%  waiting for data 50%",
        ),
    ],
)
def test_progress_line_ends_with_what_matters(changes: dict[str, Any], end: str) -> None:
    assert progress_line(report(**changes)).endswith(end)


def test_summary() -> None:
    validation = {"top1": 0.5, "top5": 0.9, "loss": 1.5, "weights": "averaged"}
    recoveries = [{"what": "replica 1", "seconds": 2.0}]
    found = summary(
        report(validation=validation),
        status="finished",
        stages=[1, 1],
        shards=3,
        recoveries=recoveries,
    )
    assert found == {
        "status": "finished",
        "wall_seconds": 65.43,
        "examples_applied": 4096,
        "examples_skipped": 7,
        "examples_set_aside": 32,
        "images_per_second": 1000.13,
        "pushes": {"applied": 256, "repeated": 3, "refused": {"stale": 1}},
        "staleness": {"mean": 0.5, "p50": 0, "p99": 2, "max": 2},
        "replicas": 2,
        "stages": 1,
        "shards": 3,
        "learning_rate": 0.019876,
        "train_loss": 1.23456,
        "validation": validation,
        "snapshot": None,
        "waiting_for_data": 0.0,
        "recoveries": recoveries,
    }


def test_summary_of_unequal_replicas() -> None:
    found = summary(report(), status="finished", stages=[2, 1, 1], shards=1, recoveries=[])
    assert (found["replicas"], found["stages"]) == (3, [2, 1, 1])


def test_summary_before_the_first_loss() -> None:
    found = summary(report(losses={}), status="failed", stages=[1, 1], shards=1, recoveries=[])
    assert (found["train_loss"], found["validation"]) == (None, None)


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_summary_of_a_run_that_never_reported(status: str) -> None:
    recoveries = [{"what": "replica 1", "seconds": None}]
    found = summary(None, status=status, stages=[1, 1], shards=1, recoveries=recoveries)
    assert found == {"status": status, "examples_applied": 0, "recoveries": recoveries}
