"""A run that no terminal holds: detached, watched, ended; and one whose terminal is closed."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distbelief.audit import audit
from distbelief.observe.events import read_events
from distbelief.storage import LocalStorage

SMALL = ("--batch-size", "8", "--image-size", "16", "--width", "0.0625", "--drawn-train", "80")
HANG_S = 90.0


def distbelief(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "distbelief", *arguments]


def until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def is_pending(pid: int, number: signal.Signals) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    pending = next(line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd"))
    return bool(int(pending, 16) >> (number - 1) & 1)


@pytest.mark.timeout(240)
def has_done_items(run: Path) -> bool:
    return any(event["kind"] == "items" for event in read_events(LocalStorage(run)))


def test_detach_attach_stop(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    options = ("--address", "inprocess", "--epochs", "5000", "--run-dir", run, *SMALL)
    begun = subprocess.run(
        distbelief("train", "--detach", "--json", *options),
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert begun.returncode == 0, begun.stdout + begun.stderr
    told = json.loads(begun.stdout)
    assert told == {"run_dir": run, "pid": told["pid"], "log": f"{run}/driver.log"}
    attached = subprocess.Popen(
        distbelief("attach", run), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert os.getsid(told["pid"]) == told["pid"]
        assert attached.stdout is not None
        for line in attached.stdout:
            if "running" in line or "last wrote" in line:
                break
        stopped = subprocess.run(
            distbelief("stop", "--wait", run), capture_output=True, text=True, timeout=HANG_S
        )
        assert stopped.returncode == 0, stopped.stderr
        out, err = attached.communicate(timeout=HANG_S)
        assert attached.returncode == 130, err
        for said in (stopped.stdout, out, Path(told["log"]).read_text()):
            assert "interrupted: " in said
            assert f"distbelief train --resume {run}" in said
    finally:
        attached.kill()
        attached.communicate()
        if Path(f"/proc/{told['pid']}").exists():
            os.kill(told["pid"], signal.SIGKILL)
    assert not (tmp_path / "run" / "stop").exists()
    found = audit(run)
    assert found.clean, found.counter_example
    again = subprocess.run(distbelief("stop", run), capture_output=True, text=True, timeout=HANG_S)
    assert again.returncode == 2
    assert "does not run: it was interrupted" in again.stderr


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_is_closed(number: signal.Signals, tmp_path: Path) -> None:
    """The run ends in order though nobody can read what it says of that.

    SIGHUP comes twice: from the shell, and from the system when the shell has ended.
    """
    run = tmp_path / "run"
    options = ("--address", "inprocess", "--epochs", "5000", "--run-dir", str(run), *SMALL)
    there, here = pty.openpty()
    process = subprocess.Popen(
        distbelief("train", *options),
        stdin=here,
        stdout=here,
        stderr=here,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
        # Whoever runs the tests may be deaf to it, as under nohup, which a child inherits.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    try:
        os.close(here)
        said = b""
        while b"images/s" not in said or not has_done_items(run):
            said += os.read(there, 1 << 16)
        os.close(there)
        process.send_signal(number)
        if number is signal.SIGHUP:
            until(lambda: not is_pending(process.pid, number))
            process.send_signal(number)
        assert process.wait(HANG_S) == 130
    finally:
        process.kill()
        process.wait()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    found = audit(run)
    assert found.clean, found.counter_example
    assert found.examples == summary["examples_applied"] > 0
