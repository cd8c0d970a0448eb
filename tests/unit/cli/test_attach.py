"""``distbelief attach``."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from distbelief import cli
from distbelief.cli import attach
from distbelief.cli.watching import watch
from distbelief.runtime.claim import claimed
from distbelief.storage import LocalStorage

MakeRun = Callable[..., Path]
END = {"t": 10.0, "kind": "end", "status": "finished"}
REPLACED = {"t": 8.0, "kind": "replica_replaced", "what": "replica 1", "cause": "killed"}


@pytest.mark.parametrize(
    ("status", "silent", "code", "said"),
    [
        ("finished", False, 0, "finished: 120 images in 9 s"),
        ("interrupted", False, 130, "go on from 120 images with: distbelief train --resume"),
        ("failed", False, 1, "distbelief: no room left"),
        ("", True, 1, "the process that trained has died without a word"),
    ],
)
def test_a_run_that_has_ended(
    status: str,
    silent: bool,
    code: int,
    said: str,
    make_run: MakeRun,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_run(status=status, silent=silent)
    assert cli.main(["attach", str(folder)]) == code
    out, err = capsys.readouterr()
    assert said in (err if code == 1 else out)
    assert "120/300" in out


def test_until_the_run_has_let_go_of_its_folder(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is replaced meanwhile is told once; the end counts when the folder is free."""
    folder = make_run(REPLACED)
    steps: list[str] = []
    with ExitStack() as stack:
        claim = stack.enter_context(ExitStack())
        claim.enter_context(claimed(LocalStorage(folder)))

        def sleep(seconds: float) -> None:
            steps.append("slept")
            if len(steps) == 1:
                with (folder / "events.jsonl").open("a") as file:
                    file.write(json.dumps({**REPLACED, "what": "replica 2"}) + "\n")
            elif len(steps) == 2:
                with (folder / "events.jsonl").open("a") as file:
                    file.write(json.dumps(END) + "\n")
            elif len(steps) == 3:
                claim.close()

        monkeypatch.setattr(attach, "watch", partial(watch, sleep=sleep))
        assert cli.main(["attach", str(folder)]) == 0
    assert len(steps) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [("120/300" in line) for line in lines] == [True, False, True, True, True, False]
    assert "replica 2 replaced: killed" in lines[1]
    assert lines[-1] == f"finished: {folder}"


def test_ctrl_c_leaves_it_running(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run()

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(attach, "watch", partial(watch, sleep=sleep))
    with claimed(LocalStorage(folder)):
        assert cli.main(["attach", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"left it running: {folder}; to end it: distbelief stop {folder}" in said


def test_a_run_that_takes_its_record_back(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run()

    def sleep(seconds: float) -> None:
        (folder / "config.json").unlink()

    monkeypatch.setattr(attach, "watch", partial(watch, sleep=sleep))
    with claimed(LocalStorage(folder)):
        assert cli.main(["attach", str(folder)]) == 1
    assert "the run failed before it began to train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "runs: holds no run; name a run's folder"),
        (["NOWHERE"], "NOWHERE: is no run's folder"),
        (["nosuch://x"], "cannot use nosuch://x"),
        (["--watch"], "there is no option --watch"),
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
    assert cli.main(["attach", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_the_newest_run_is_the_default(
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_run(status="finished", name="runs/one")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["attach"]) == 0
    assert capsys.readouterr().out.endswith(f"weights and record: {folder}\n")
