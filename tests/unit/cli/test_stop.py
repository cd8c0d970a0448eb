"""``distbelief stop``."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from distbelief import cli
from distbelief.cli.stop import _await_end
from distbelief.runtime.claim import claimed
from distbelief.storage import LocalStorage

MakeRun = Callable[..., Path]


@pytest.mark.parametrize("status", ["", "finished"])
def test_a_run_that_goes_on_is_asked(
    status: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is resumed at this moment too, which its record does not say yet."""
    folder = make_run(status=status, silent=True)
    with claimed(LocalStorage(folder)):
        assert cli.main(["stop", str(folder)]) == 0
    assert capsys.readouterr().out == f"asked to end: {folder}\n"
    assert set(json.loads((folder / "stop").read_text())) == {"host", "pid", "at"}


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ("finished", "it has finished"),
        ("interrupted", "it was interrupted"),
        ("failed", "it has failed"),
        ("", "the process that trained has died"),
    ],
)
def test_a_run_that_does_not_run(
    status: str, sentence: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(status=status, silent=True)
    assert cli.main(["stop", str(folder), "--wait"]) == 2
    assert capsys.readouterr().err == f"distbelief: {folder} does not run: {sentence}\n"
    assert not (folder / "stop").exists()


def test_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["stop"]) == 2
    assert "runs: holds no run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        ("interrupted", 0, "go on from 120 images"),
        ("finished", 0, "finished: 120 images"),
        ("failed", 1, "no room left"),
    ],
)
def test_waiting_for_the_end(
    status: str, code: int, said: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """A request that nobody has seen any more is taken back."""
    folder = make_run(status=status)
    (folder / "stop").write_text("{}")
    slept: list[float] = []
    with ExitStack() as stack:
        stack.enter_context(claimed(LocalStorage(folder)))

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 2:
                stack.close()

        if code:
            with pytest.raises(Exception, match=said) as caught:
                _await_end(LocalStorage(folder), sleep)
            assert getattr(caught.value, "exit_code", None) == code
        else:
            assert _await_end(LocalStorage(folder), sleep) == 0
            assert said in capsys.readouterr().out
    assert len(slept) == 2
    assert not (folder / "stop").exists()


def test_the_wait_ends_by_the_users_will(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run()
    (folder / "stop").write_text("{}")

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    with claimed(LocalStorage(folder)):
        assert _await_end(LocalStorage(folder), sleep) == 0
    assert "was asked, and will end" in capsys.readouterr().out
    assert (folder / "stop").exists()
