"""``distbelief train --detach``, of runs that do not come to begin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distbelief import cli
from distbelief.cli.train import parse
from distbelief.errors import ConfigError
from distbelief.runtime.folder import LOG, require_free
from distbelief.storage import LocalStorage


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--detach"], ()),
        (["cifar10", "--lr", "0.5", "--detach"], ("cifar10", "--lr", "0.5")),
        (["--run-dir", "x", "--detach", "--json", "--no-live"], ()),
        (["--run-dir=x", "--lr=0.5", "--detach"], ("--lr=0.5",)),
        (
            ["--replica-group", "2x device=cpu", "--detach", "--seed", "3"],
            ("--replica-group", "2x device=cpu", "--seed", "3"),
        ),
        (["--lr", "0.5"], None),
    ],
)
def test_what_the_process_of_its_own_is_told(
    arguments: list[str], expected: tuple[str, ...] | None
) -> None:
    assert parse(arguments).detached == expected


def test_a_resumed_run_is_named_by_its_folder(tmp_path: Path) -> None:
    config = parse(["--seed", "3"]).config
    (tmp_path / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    command = parse(["--resume", str(tmp_path), "--detach", "--replicas", "3"])
    assert command.detached == ("--replicas", "3")
    assert command.resume is not None
    assert command.resume.run == str(tmp_path)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("there", [False, True])
def test_what_a_run_says_that_cannot_begin(
    there: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its words, its exit code, and nothing else that was not there before."""
    folder = tmp_path / "a" / "run"
    if there:
        folder.mkdir(parents=True)
        (folder / LOG).write_text("of an earlier attempt\n")
    options = ["--address", "inprocess", "--data", str(tmp_path / "nothing")]
    assert cli.main(["train", "cifar10", "--detach", "--run-dir", str(folder), *options]) == 2
    out, err = capfd.readouterr()
    assert out.startswith("distbelief: ")
    assert str(tmp_path / "nothing") in out
    assert "earlier" not in out
    assert not err
    if there:
        assert (folder / LOG).read_text() == f"of an earlier attempt\n{out}"
    else:
        assert not folder.parent.exists()


def test_a_folder_with_the_words_of_an_attempt_is_free(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("distbelief: --data: nothing there\n")
    require_free(LocalStorage(tmp_path))
    (tmp_path / "stop").write_text("{}")
    with pytest.raises(ConfigError, match="holds a run already"):
        require_free(LocalStorage(tmp_path))


@pytest.mark.parametrize(
    ("run_dir", "sentence"),
    [("memory://run", "memory:// is seen by one process alone"), ("FILE/run", "cannot make")],
)
def test_a_folder_that_cannot_be(
    run_dir: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    run_dir = run_dir.replace("FILE", str(tmp_path / "file"))
    options = ["--address", "inprocess", "--run-dir", run_dir]
    assert cli.main(["train", "--detach", *options]) == 2
    assert sentence in capsys.readouterr().err
