"""``distbelief bench``: its command line and what it prints."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from distbelief import cli
from distbelief.bench.heartbeats import Quiet
from distbelief.bench.recovery import Case
from distbelief.bench.strike import Measured
from distbelief.cli import bench


def test_it_tells_what_it_can_measure(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"]):
        assert cli.main(["bench", *arguments]) == 0
        assert "recovery" in capsys.readouterr().out
    assert cli.main(["bench", "recover"]) == 2
    assert "recovery or heartbeats, not 'recover'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["recovery", "--runs", "0"],
        ["heartbeats", "--minutes", "0"],
        ["heartbeats", "--burn", "-1"],
        ["recovery", "--run", "3"],
    ],
)
def test_impossible_options(arguments: list[str]) -> None:
    assert cli.main(["bench", *arguments]) == 2


@pytest.mark.parametrize(("seconds", "code"), [(2.0, 0), (4.0, 1)])
def test_the_table_and_the_file(
    seconds: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = Case("shard killed", 3.0)
    case.add(Measured(seconds, 0.5, "twin", 0))

    def measure(runs: int, folder: Path, say: object) -> list[Case]:
        assert (runs, folder) == (2, tmp_path / "runs")
        return [case]

    monkeypatch.setattr(bench, "measure_recovery", measure)
    file = tmp_path / "found.json"
    options = ["--runs", "2", "--json", str(file), "--run-dir", str(tmp_path / "runs")]
    assert cli.main(["bench", "recovery", *options]) == code
    assert f"{seconds:.2f}s" in capsys.readouterr().out
    (written,) = json.loads(file.read_text())["cases"]
    assert written["median_seconds"] == seconds
    assert written["kept"] is (code == 0)
    assert written["recoveries"] == [
        {"seconds": seconds, "found_s": 0.5, "how": "twin", "items": 0}
    ]


def test_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "measure_recovery", lambda *arguments: [])
    assert cli.main(["bench", "recovery", "--json", str(tmp_path / "no" / "x.json")]) == 2


@pytest.mark.parametrize(("alarms", "code"), [([], 0), ([{"kind": "shard_lost"}], 1)])
def test_alarms(
    alarms: list[dict[str, str]],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measure(seconds: float, run_dir: Path, *, burn: int, say: object) -> Quiet:
        assert (seconds, burn) == (30.0, 4)
        return Quiet(seconds, 7.0, 1234, alarms)

    monkeypatch.setattr(bench, "measure_heartbeats", measure)
    options = ["--minutes", "0.5", "--burn", "4", "--run-dir", str(tmp_path)]
    assert cli.main(["bench", "heartbeats", *options]) == code
    out = capsys.readouterr().out
    assert f"{len(alarms)} false alarms in 0.5 minutes" in out
    assert ("shard_lost" in out) is bool(alarms)


def test_what_was_not_measured_is_left_blank() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(bench.table([Case("node removed", 15.0), Case("evaluator")]))
    lines = console.export_text().splitlines()
    assert lines[1].split() == ["node", "removed", "15s", "no"]
    assert lines[2].split() == ["evaluator"]
