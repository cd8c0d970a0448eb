"""Signals to the command: Ctrl-C as a terminal sends it, to the whole foreground group; SIGTERM."""

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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(tmp_path: Path, address: str, number: signal.Signals) -> None:
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
        if number is signal.SIGINT:
            os.killpg(process.pid, number)
        else:  # as a spot machine or a batch system sends it: to the command alone
            process.send_signal(number)
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
    assert summary["snapshot"]["examples_applied"] == summary["examples_applied"]
    assert f"distbelief train --resume {run_dir}" in out
