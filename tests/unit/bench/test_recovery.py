"""What is made of the seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from distbelief.bench import recovery
from distbelief.bench.recovery import Case, Say
from distbelief.bench.strike import Measured
from distbelief.errors import RunError


def test_the_median_counts() -> None:
    case = Case("x", 3.0)
    for seconds in (9.0, 1.0, 2.0):
        case.add(Measured(seconds, 0.5, "twin", 0))
    assert case.values == [9.0, 1.0, 2.0]
    assert [detail.seconds for detail in case.details] == case.values
    assert case.median_s == 2.0
    assert case.kept


@pytest.mark.parametrize(
    ("limit_s", "values", "kept"),
    [
        (3.0, [3.0], True),
        (3.0, [3.1], False),
        (3.0, [], False),
        (None, [100.0], True),
        (None, [], True),
    ],
)
def test_what_is_promised(limit_s: float | None, values: list[float], kept: bool) -> None:
    assert Case("x", limit_s, values).kept is kept


def test_what_failed_is_not_kept() -> None:
    assert not Case("x", None, [1.0], failure="the run ended").kept


def test_a_run_that_does_not_recover_costs_its_own_cases_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(runs: int, folder: Path, say: Say, cases: list[Case]) -> None:
        cases.append(Case("a", 1.0, [0.5]))
        raise RunError("it ended by itself")

    def works(runs: int, folder: Path, say: Say, cases: list[Case]) -> None:
        cases.append(Case(folder.name, 1.0, [float(runs)]))

    monkeypatch.setattr(recovery, "_with_twins", fails)
    monkeypatch.setattr(recovery, "_without_twins", works)
    monkeypatch.setattr(recovery, "_nodes_removed", works)
    said: list[str] = []
    found = recovery.measure_recovery(1, tmp_path, said.append)
    assert [(case.name, case.values, case.kept) for case in found] == [
        ("a", [0.5], False),
        ("single", [1.0], True),
        ("nodes", [1.0], True),
    ]
    assert said == ["twins: it ended by itself"]
