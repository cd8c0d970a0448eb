"""Ctrl-C on the command, as a terminal sends it: to every process of the foreground group."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distbelief.audit import audit


@pytest.mark.timeout(180)
@pytest.mark.parametrize("address", ["local", "inprocess"])
def test_ctrl_c_ends_in_order(tmp_path: Path, address: str) -> None:
    run_dir = tmp_path / "run"
    options = ["--address", address, "--run-dir", str(run_dir), "--epochs", "500"]
    small = ["--batch-size", "8", "--image-size", "16", "--width", "0.0625", "--drawn-train", "80"]
    process = subprocess.Popen(
        [sys.executable, "-m", "distbelief", "train", *options, *small],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "images/s" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in out
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert (run_dir / "model.safetensors").exists()
    found = audit(run_dir)
    assert found.clean, found.counter_example
    assert found.examples == summary["examples_applied"] > 0
