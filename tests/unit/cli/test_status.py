"""``distbelief status``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from distbelief import cli
from distbelief.cli import status
from distbelief.cli.watching import WATCH_S

PROGRESS: dict[str, Any] = {
    "t": 9.0,
    "kind": "progress",
    "examples_applied": 120,
    "images_per_second": 50.0,
    "mean_images_per_second": 40.0,
    "left_s": 3.6,
    "losses": {"loss": 1.5},
    "learning_rate": 0.01,
    "staleness": {"1": 4},
    "pushes": {"applied": 12, "repeated": 0, "refused": {}},
    "waiting": 0.0,
    "members": [{"replica": 0, "state": "working", "items": 12, "images_per_second": 50.0}],
    "shards": [{"shard": 0, "clock": 12, "queued": 0, "applied": 12, "mb_per_second": 1.5}],
}
REPLACED = {
    "t": 8.0,
    "kind": "replica_replaced",
    "what": "replica 1",
    "cause": "killed",
    "seconds": 2.5,
    "replica": 2,
}
END = {"t": 10.0, "kind": "end", "status": "finished"}
FAILURE = {"t": 10.0, "kind": "failure", "cause": "no room left"}


def run_folder(folder: Path, *events: dict[str, Any], started_at: float = 1000.0) -> Path:
    folder.mkdir(parents=True)
    plan = {"n_examples": 100, "batch_size": 10, "n_push": 1, "n_items": 30}
    record = {"config": {"recipe": "quickstart"}, "plan": plan, "started_at": started_at}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return folder


def test_a_run_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path / "run", PROGRESS, REPLACED)
    assert cli.main(["status", str(folder)]) == 0
    said = capsys.readouterr().out
    for part in (
        "distbelief quickstart",
        "running  9s",
        " 40%  120 of 300 images  left 4s",
        "images/s   50  mean 40",
        "loss       1.5000",
        "ago",
        "replica 1 replaced in 2.5 s: killed",
    ):
        assert part in said
    assert "\x1b" not in said


def test_a_run_that_has_fallen_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path / "run", PROGRESS)
    for file in folder.iterdir():
        os.utime(file, (1000.0, 1000.0))
    assert cli.main(["status", str(folder)]) == 0
    assert "it was killed, or it hangs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("last", "word", "cause"), [(END, "finished", ""), (FAILURE, "failed", "no room left")]
)
def test_a_run_that_has_ended(
    last: dict[str, Any],
    word: str,
    cause: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = run_folder(tmp_path / "run", PROGRESS, last)
    assert cli.main(["status", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"{word}  10s" in said
    assert cause in said
    assert cli.main(["status", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["cause"], found["silent_seconds"]) == (word, cause, None)
    assert (found["examples_applied"], found["total_examples"]) == (120, 300)
    assert found["staleness"] == {"1": 4}
    assert found["recoveries"] == []
    assert found["run_dir"] == str(folder)


def test_the_newest_run_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "runs" / "new", started_at=2000.0)
    run_folder(tmp_path / "runs" / "old")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run_dir"] == str(tmp_path / "runs" / "new")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "runs: holds no run; name a run's folder"),
        (["NOWHERE"], "NOWHERE: is no run's folder"),
        (["NOWHERE", "--watch"], "NOWHERE: is no run's folder"),
        (["nosuch://x"], "cannot use nosuch://x"),
    ],
)
def test_without_a_run(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["status", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_until_the_end(
    as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder(tmp_path / "run", PROGRESS)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            with (folder / "events.jsonl").open("a") as file:
                file.write(json.dumps(END) + "\n")

    assert status._watch(str(folder), as_json, sleep) == 0
    assert slept == [WATCH_S, WATCH_S]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    if as_json:
        assert [json.loads(line)["status"] for line in lines] == ["running", "running", "finished"]
    else:
        assert "120/300" in lines[0]
        assert lines[2].endswith("finished")


def test_watching_ends_by_the_users_will(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", PROGRESS)

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    assert status._watch(str(folder), False, sleep) == 0
