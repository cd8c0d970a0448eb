"""What ``distbelief audit`` prints."""

import json
from dataclasses import replace

import pytest

from distbelief.audit import Audit, CounterExample, ItemAside, Redone
from distbelief.cli import audit as module
from distbelief.cli.audit import main

CLEAN = Audit(
    counter_example=None,
    n_shards=2,
    items=6,
    examples=50,
    epochs_finished=2,
    forgotten=3,
    twins=1,
    redone=(
        Redone(1, 1, 2, "shard 1 was lost (killed) and went on from snapshot 3"),
        Redone(0, 2, 1, "the run was resumed from snapshot 4"),
    ),
    set_aside=12,
    aside=(
        ItemAside(0, "norm, 3 times", tuple(f"{i}.jpg" for i in range(12))),
        *(ItemAside(i, "its replica died 3 times", ("a.jpg",)) for i in range(1, 11)),
        ItemAside(11, "norm, 3 times"),
    ),
)


def printed(
    result: Audit,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[int, str]:
    monkeypatch.setattr(module, "audit", lambda run: result)
    return main(["RUN", *arguments]), capsys.readouterr().out


def test_it_says_what_was_redone_and_set_aside(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = printed(CLEAN, [], monkeypatch, capsys)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("clean: 2 whole epochs; 6 items, 50 examples")
    names = ", ".join(f"{i}.jpg" for i in range(10))
    assert lines[1:] == [
        "  done again: 2 pushes of shard 1 (start 1): shard 1 was lost (killed) and went on from "
        "snapshot 3",
        "  done again: 1 push of shard 0 (start 2): the run was resumed from snapshot 4",
        f"  set aside: item 0: norm, 3 times ({names} and 2 more)",
        *(f"  set aside: item {i}: its replica died 3 times (a.jpg)" for i in range(1, 10)),
        "  and 2 more",
    ]


def test_without_any_of_that_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = replace(CLEAN, forgotten=0, redone=(), set_aside=0, aside=(), twins=0)
    code, out = printed(plain, [], monkeypatch, capsys)
    expected = (
        "clean: 2 whole epochs; 6 items, 50 examples, each applied once on every one of 2 shards"
    )
    assert (code, out) == (0, f"{expected}\n")


def test_a_counter_example_is_the_first_line_and_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flawed = Audit(counter_example=CounterExample("a.jsonl", 4, "clock 4 follows 2"))
    code, out = printed(flawed, [], monkeypatch, capsys)
    assert (code, out) == (1, "not clean: a.jsonl, line 4: clock 4 follows 2\n")


def test_json_has_it_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = printed(CLEAN, ["--json"], monkeypatch, capsys)
    found = json.loads(out)
    assert (code, found["clean"], found["counter_example"], found["forgotten"]) == (
        0,
        True,
        None,
        3,
    )
    assert found["redone"][1] == {
        "shard": 0,
        "incarnation": 2,
        "pushes": 1,
        "why": "the run was resumed from snapshot 4",
    }
    assert found["aside"][1] == {
        "item": 1,
        "reason": "its replica died 3 times",
        "files": ["a.jpg"],
    }
    assert len(found["aside"]) == 12
