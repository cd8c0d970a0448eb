"""The commands: what users get wrong is said in one sentence, with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distbelief import cli
from distbelief.cli.train import Command, parse
from distbelief.recipes import RECIPES


def test_options_change_what_the_recipe_says() -> None:
    config = parse(["cifar10", "--batch-size", "8", "--no-overlap", "--lr", "0.5"]).config
    assert config.recipe == "cifar10"
    assert config.replica.batch_size == 8
    assert not config.replica.overlap
    assert config.schedule.lr == 0.5
    assert config.model == RECIPES["cifar10"]().model


def test_quickstart_is_the_default() -> None:
    assert parse([]) == Command(RECIPES["quickstart"]())


GROUPS = ("2x stages=2", "1x device=cpu,threads=1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--replica-group", GROUPS[0], "--replica-group", GROUPS[1]],
        [f"--replica-group={GROUPS[0]}", f"--replica-group={GROUPS[1]}"],
        ["--replica-group", GROUPS[0], "--lr", "0.5", f"--replica-group={GROUPS[1]}"],
        ["--replica-group", *GROUPS],
        ["cifar10", "--replica-group", *GROUPS, "--lr", "0.5"],
    ],
)
def test_replica_groups_are_given_one_by_one_or_together(arguments: list[str]) -> None:
    config = parse(arguments).config
    assert config.cluster.replica_group == GROUPS
    assert config.cluster.replicas == 3
    assert [(slot.stages, slot.device) for slot in config.slots] == [
        (2, "auto"),
        (2, "auto"),
        (1, "cpu"),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--replica-group", "1x stages=40", "--batch-size", "64"],
        ["--batch-size", "64", "--replica-group", "1x stages=40"],
        ["--replica-group", "1x device=cpu+cuda", "--stages", "2"],
        ["--stages", "2", "--replica-group", "1x device=cpu+cuda"],
    ],
)
def test_replica_groups_go_with_the_other_options_in_any_order(arguments: list[str]) -> None:
    config = parse(arguments).config
    assert len(config.slots) == 1
    assert config.slots[0].stages == (40 if "64" in arguments else 2)


BAD = [
    (["trian"], "did you mean train?"),
    (["train", "cifar"], "did you mean cifar10?"),
    (["train", "--replicas", "0"], "--replicas: must be greater than 0, not 0"),
    (["train", "--lr", "-0.1"], "--lr: must be greater than 0, not -0.1"),
    (["train", "--lr", "nan"], "--lr: must be greater than 0, not nan"),
    (["train", "--momentum", "1"], "--momentum: must be in [0, 1)"),
    (["train", "--data", "NOWHERE"], "NOWHERE"),
    (["train", "--shards", "99999999"], "--shards: 99999999 shards for"),
    (["train", "--batch-size", "5000"], "--batch-size: 5000 is more than the 4096"),
    (["train", "--model", "googlent"], "did you mean 'googlenet'?"),
    (["train", "--model", "no_such_module:f"], "cannot import 'no_such_module'"),
    (["train", "--address", "somewhere"], "say auto, local, inprocess or HOST:PORT"),
    (["train", "--classes", "3"], "more than --classes 3"),
    (["train", "--recipe", "cifar10"], "the recipe is the first argument: distbelief train NAME"),
    (["train", "--recipe=cifar10"], "the recipe is the first argument"),
    (["train", "cifar10", "--lr", "1", "--recipe", "cifar10"], "the recipe is the first argument"),
    (["train", "--device", "gpu"], "--device: must be auto, cpu or cuda, not 'gpu'"),
    (["train", "--lrr", "3"], "there is no option --lrr; did you mean --lr?"),
    (["train", "--replica", "3"], "there is no option --replica; did you mean --replicas?"),
    (["train", "--replica-group"], "--replica-group: has no value"),
    (["train", "--replica-group", "--lr", "1"], "--replica-group: has no value"),
    (["train", "--replica-group", "two"], "'two' does not say how many"),
    (
        ["train", "--replicas", "2", "--replica-group", "1x"],
        "--replicas: is told by --replica-group; leave one of them out",
    ),
    (["train", "--replica-groups", "1x"], "did you mean --replica-group?"),
    (["train", "--stages", "33"], "--stages: 33 stages for a batch of 32; take fewer"),
    (["train", "--boundaries", "a,b"], "--boundaries: a,b divides into 3 stages, not 1; give"),
    (["train", "--zzz"], "there is no option --zzz; see distbelief train --help"),
    (["train", "--epochs", "0"], "--epochs: must be greater than 0"),
    (["audit", "NOWHERE"], "NOWHERE: is no run's folder"),
    (["recipes", "x"], "takes no arguments"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=lambda v: " ".join(v)[:40])
def test_bad_usage(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where no cluster has left word
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists(), "something was left half-written"


def test_a_folder_that_holds_a_run_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["train", "--address", "inprocess", "--run-dir", str(tmp_path)]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_help_names_every_command_and_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    said = capsys.readouterr().out
    assert all(command in said for command in cli.COMMANDS)
    assert cli.main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in RECIPES)


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("interrupted", 130), ("failed", 1)])
def test_exit_codes_and_json(
    status: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result: dict[str, Any] = {"status": status, "run_dir": "runs/x"}

    def train(config: object, view: Any, *, resume: object) -> dict[str, Any]:
        assert resume is None
        view.say("a line of progress")
        return result

    monkeypatch.setattr("distbelief.runtime.train.train", train)
    assert cli.main(["train", "--json"]) == code
    printed = capsys.readouterr()
    assert json.loads(printed.out) == result
    assert "progress" in printed.err
