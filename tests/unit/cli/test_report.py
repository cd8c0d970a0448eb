"""``distbelief report``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distbelief import cli


def run_folder(folder: Path, started_at: float = 1000.0) -> Path:
    folder.mkdir(parents=True)
    plan = {"n_examples": 100, "batch_size": 10, "n_push": 1, "n_items": 30}
    record = {"config": {"recipe": "quickstart"}, "plan": plan, "started_at": started_at}
    (folder / "config.json").write_text(json.dumps(record))
    return folder


def test_a_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = run_folder(tmp_path / "one")
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == "report: report.html\n"
    assert "<title>one</title>" in (tmp_path / "report.html").read_text()
    other = run_folder(tmp_path / "two")
    assert cli.main(["report", str(folder), str(other), "--output", "both.html"]) == 0
    assert "2 runs compared" in (tmp_path / "both.html").read_text()


def test_the_newest_run_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder(tmp_path / "runs" / "new", started_at=2000.0)
    run_folder(tmp_path / "runs" / "old")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report"]) == 0
    assert "<title>new</title>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "runs: holds no run; name a run's folder"),
        (["NOWHERE"], "NOWHERE: is no run's folder"),
        (["one", "one"], "the same run is named twice"),
        (["one", "--output", "nowhere/x.html"], "--output: cannot write nowhere/x.html"),
    ],
)
def test_bad_usage(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_folder(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "report.html").exists()
