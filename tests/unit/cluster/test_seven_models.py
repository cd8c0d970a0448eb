"""The script for the paper's seven models, on a command that writes down how it was called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "cluster" / "seven_models.sh"

STUB = """\
#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$RECORD"
[[ $* != *"${FAIL:-no such argument}"* ]] || exit 130
"""


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stub = tmp_path / "bin" / "distbelief"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    return tmp_path / "record"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)


def evaluated(runs: Path) -> str:
    models = " ".join(f"{runs}/model-{k}" for k in range(1, 8))
    return f"evaluate {models} --data my images --crops 144"


def test_seven_models_of_one_start_and_other_orders(record: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert run("my images", str(runs), "--replicas", "8").returncode == 0
    assert record.read_text().splitlines() == [
        *(
            f"train ilsvrc14 --data my images --seed {k} --run-dir {runs}/model-{k} --replicas 8"
            for k in range(1, 8)
        ),
        evaluated(runs),
    ]


def test_it_goes_on_where_it_was(record: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for k, status in ((1, "finished"), (2, "interrupted"), (3, None)):
        (runs / f"model-{k}").mkdir(parents=True)
        (runs / f"model-{k}" / "config.json").write_text("{}")
        if status:
            summary = f'{{\n  "status": "{status}",\n  "wall_seconds": 1\n}}\n'
            (runs / f"model-{k}" / "summary.json").write_text(summary)
    assert run("my images", str(runs)).returncode == 0
    lines = record.read_text().splitlines()
    assert lines[:2] == [f"train --resume {runs}/model-2", f"train --resume {runs}/model-3"]
    assert [line.split()[5:7] for line in lines[2:6]] == [["--seed", str(k)] for k in (4, 5, 6, 7)]
    assert lines[6:] == [evaluated(runs)]


def test_it_stops_with_the_run_that_stops(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "--seed 2")
    assert run("images", str(tmp_path / "runs")).returncode == 130
    assert len(record.read_text().splitlines()) == 2


def test_usage(record: Path) -> None:
    done = run("images")
    assert done.returncode == 2
    assert "DATA RUNS" in done.stderr
    assert not record.exists()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    subprocess.run(["shellcheck", SCRIPT], check=True)
