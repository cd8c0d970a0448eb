"""``distbelief chaos``: its command line and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distbelief import cli
from distbelief.audit import Audit
from distbelief.chaos.members import Member
from distbelief.chaos.outcome import Done, Findings, Outcome
from distbelief.chaos.run import Plan, Result, Seen
from distbelief.chaos.schedule import Action
from distbelief.cli import chaos

TWIN = Member("twin", "shard 1", 13, 1, 3)


def result(**fields: Any) -> Result:
    done = Done(Action(20.0, "stop", "twin", 7, 2.5), 50.0, TWIN)
    good: dict[str, Any] = {
        "code": 130,
        "status": "interrupted",
        "examples_applied": 90,
        "audit": Audit(counter_example=None, n_shards=2, items=9, examples=90),
        "outcomes": [Outcome(done, "another twin follows", 8.0, 0)],
    }
    return Result(Findings(**{**good, **fields}), Seen(), {"pushes": {"refused": {"norm": 2}}})


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, Path]]:
    """What is asked to be run, and is not; the run finds a file that is left if its seed is 1."""
    asked: list[tuple[Plan, Path]] = []

    def run(plan: Plan, folder: Path, say: object) -> Result:
        asked.append((plan, folder))
        return result(files=["stop"] if plan.seed == 1 else [])

    monkeypatch.setattr(chaos, "run_chaos", run)
    return asked


def test_a_clean_run(
    plans: list[tuple[Plan, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["chaos", "--minutes", "3", "--run-dir", str(tmp_path)]) == 0
    ((plan, folder),) = plans
    assert (plan.seconds, plan.seed, plan.every_s, folder) == (180.0, 0, 20.0, tmp_path)
    assert (plan.replicas, plan.twins) == (3, 2)
    assert plan.options["address"] == "local"
    out = capsys.readouterr().out
    assert "stopped for 2.5 s" in out
    assert "the twin of shard 1" in out
    assert "9 applied on each of 2 shards, 90 examples" in out
    assert "2 refused" in out
    assert "clean       nothing lost" in out


def test_one_that_is_not_says_how_to_do_it_again(
    plans: list[tuple[Plan, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--minutes", "1.5", "--seed", "1", "--run-dir", str(tmp_path), "--every-s", "15"]
    assert cli.main(["chaos", *options]) == 1
    out = capsys.readouterr().out
    assert "problem     a file is left: stop" in out
    (again,) = [line for line in out.splitlines() if line.startswith("again")]
    *_, folder_line, _ = out.splitlines()
    assert folder_line == f"not clean   the run is kept in {tmp_path}"
    command = "--minutes 1.5 --seed 1 --every-s 15 --replicas 3 --shards 2 --shard-replication 2"
    assert again == f"again       distbelief chaos {command}"


def test_as_json(
    plans: list[tuple[Plan, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--minutes", "1", "--seed", "1", "--run-dir", str(tmp_path), "--json"]
    assert cli.main(["chaos", *options]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["clean"] is False
    assert found["problems"] == ["a file is left: stop"]
    (action,) = found["actions"]
    assert action["whom"]["pid"] == 13
    assert action["seconds"] == 8.0


def test_without_twins(plans: list[tuple[Plan, Path]], tmp_path: Path) -> None:
    options = ["--minutes", "9", "--shard-replication", "1", "--run-dir", str(tmp_path)]
    assert cli.main(["chaos", *options]) == 0
    ((plan, _),) = plans
    assert plan.twins == 0
    assert "twin" not in {action.kind for action in plan.actions}


@pytest.mark.parametrize(
    "arguments", [["--minutes", "0"], ["--minutes", "1", "--every-s", "-2"], ["--minuets", "1"]]
)
def test_impossible_options(arguments: list[str], plans: list[tuple[Plan, Path]]) -> None:
    assert cli.main(["chaos", *arguments]) == 2
    assert plans == []
