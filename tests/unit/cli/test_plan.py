"""``distbelief plan``."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from distbelief import cli
from distbelief.cli import plan
from distbelief.planner import Measured

TINY = [
    *("quickstart", "--width", "0.0625", "--no-heads", "--image-size", "16", "--batch-size", "8"),
    *("--drawn-train", "16", "--drawn-val", "8", "--device", "cpu", "--precision", "fp32"),
]


def planned(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert plan.main(["stages", *TINY, *options, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_two_stages_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    found = planned(capsys)
    assert torch.get_num_threads() == threads
    assert found["recipe"] == "quickstart"
    (one,) = found["plans"]
    assert (one["replicas"], one["threads"], one["chosen_by"]) == (2, 1, "time")
    assert [stage["stage"] for stage in one["stages"]] == [0, 1]
    assert len(one["boundaries"]) == 1
    for name in ("step_seconds", "one_process_seconds", "speed_up", "images_per_second"):
        assert one[name] > 0
    assert all(stage["memory_bytes"] > 0 for stage in one["stages"])


def test_a_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "stages", *TINY, "--stages", "3", "--boundaries", "inception4a,inception5a"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 stages of googlenet: batch 8 in 8 micro-batches of 1, 1f1b, fp32")
    assert "inception4a to pool4" in said
    assert "--boundaries inception4a,inception5a" in said
    assert "predicted" in said


def test_unequal_replicas_are_planned_each(capsys: pytest.CaptureFixture[str]) -> None:
    groups = ("--replica-group", "2x stages=2", "--replica-group", "1x stages=3")
    found = planned(capsys, *groups, "--replica-group", "1x stages=1")
    assert [(p["replicas"], len(p["stages"])) for p in found["plans"]] == [(2, 2), (1, 3)]
    assert plan.main(["stages", *TINY, *groups]) == 0
    said = capsys.readouterr().out
    assert "2 of 3 replicas: 2 stages of googlenet" in said
    assert "\n\n1 of 3 replicas: 3 stages of googlenet" in said


def test_what_is_measured_stands_beside(capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, Any] = {}

    def measure(config: Any, task: Any, stages: Any, batch: Any, **others: Any) -> Any:
        asked.update(others, boundaries=stages.boundaries, images=batch.images.shape)
        return Measured(
            step_seconds=2.0,
            one_process_seconds=5.0,
            memory_bytes=(40, 50),
            one_process_memory_bytes=100,
        )

    options = ["stages", *TINY, "--boundaries", "inception4a", "--measure", "--threads", "2"]
    assert plan.main([*options, "--json"], measure=measure) == 0
    (found,) = json.loads(capsys.readouterr().out)["plans"]
    assert asked == {
        "boundaries": ("inception4a",),
        "images": (8, 16, 16, 3),
        "n_outputs": found["classes"] if "classes" in found else asked["n_outputs"],
        "slot": 0,
        "n_threads": 2,
    }
    assert found["measured"] == {
        "step_seconds": 2.0,
        "one_process_seconds": 5.0,
        "memory_bytes": [40, 50],
        "one_process_memory_bytes": 100,
        "images_per_second": 4.0,
        "speed_up": 2.5,
    }
    assert plan.main(options, measure=measure) == 0
    assert "measured     2.00 s a step, 4.0 images/s, 2.50 x one process" in capsys.readouterr().out


def test_a_recipe_that_needs_data_is_planned_on_drawn_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--width", "0.0625", "--drawn-train", "8", "--batch-size", "2", "--device", "cpu"]
    assert plan.main(["stages", "cifar10", "--image-size", "16", *options]) == 0
    assert "note: drawn images stand for those of --data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say what to plan; distbelief plan stages [RECIPE] [OPTIONS]"),
        (["stage"], "there is no plan of 'stage'; did you mean stages? distbelief plan stages"),
        (["quickstart"], "there is no plan of 'quickstart'; distbelief plan stages [RECIPE]"),
        (["stages", "quickstrat"], "did you mean quickstart?"),
        (["stages", "--stagse", "3"], "there is no option --stagse; did you mean --stages?"),
        (["stages", "--stages", "1"], "--stages: one stage is not divided; take 2 or more"),
        (["stages", "--device", "cpu+cpu+cpu"], "--device: names 3 devices for 2 stages"),
        (["stages", *TINY, "--boundaries", "inception9z"], "no block 'inception9z'; did you mean"),
        (["stages", *TINY, "--device-memory-gb", "1e-5"], "--device-memory-gb: stage "),
    ],
)
def test_what_cannot_be_planned(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["stages", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        plan.main(arguments)
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "--divide-by" in said
    assert "--measure runs the stages" in said
