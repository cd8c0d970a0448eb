"""Named points: the planned process, at the planned pass, and nobody else."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from distbelief.faults.points import NONE, POINTS, Fault, InjectedError, Injector


def passes_until_death(injector: Injector, point: str, limit: int = 10) -> int | None:
    """At which pass the process dies; None if it lives."""
    for n in range(1, limit + 1):
        try:
            injector.at(point)
        except InjectedError:
            return n
    return None


def test_a_process_dies_at_the_pass_that_was_planned() -> None:
    for nth in (1, 2, 7):
        plan = [Fault("before_apply", "shard 0", nth=nth, action="die")]
        assert passes_until_death(Injector(plan, "shard 0"), "before_apply") == nth


def test_every_point_counts_by_itself() -> None:
    injector = Injector(
        [Fault(point, "shard 0", nth=2, action="die") for point in POINTS], "shard 0"
    )
    for point in POINTS:
        injector.at(point)
    for point in POINTS:
        with pytest.raises(InjectedError, match=point):
            injector.at(point)


@pytest.mark.parametrize(
    ("who", "start", "dies"),
    [("shard 1", 1, True), ("shard 1", 2, False), ("shard 0", 1, False), ("replica 1", 1, False)],
)
def test_a_fault_is_of_one_process_and_one_start_of_it(who: str, start: int, dies: bool) -> None:
    plan = [Fault("after_push", "shard 1", action="die")]
    injector = Injector(plan, who, start)
    assert passes_until_death(injector, "after_push") == (1 if dies else None)
    assert injector.plans("after_push") is dies
    assert not injector.plans("before_push")


def test_a_fault_of_start_0_is_of_each_start() -> None:
    plan = [Fault("before_lease", "coordinator", nth=2, action="die", start=0)]
    found = [
        passes_until_death(Injector(plan, "coordinator", start), "before_lease")
        for start in (1, 2, 9)
    ]
    assert found == [2, 2, 2]


def test_a_failure_is_the_systems_and_the_process_goes_on() -> None:
    injector = Injector([Fault("before_save", "shard 0", nth=2, action="fail")], "shard 0")
    injector.at("before_save")
    with pytest.raises(OSError, match="injected at before_save"):
        injector.at("before_save")
    injector.at("before_save")


def test_a_death_is_caught_by_no_handler_of_errors() -> None:
    assert not issubclass(InjectedError, Exception)


def test_passes_of_many_threads_are_counted_once_each(
    in_threads: Callable[..., list[Any]],
) -> None:
    injector = Injector([Fault("before_push", "replica 0", nth=150, action="die")], "replica 0")

    def passes() -> int:
        n_deaths = 0
        for _ in range(50):
            try:
                injector.at("before_push")
            except InjectedError:
                n_deaths += 1
        return n_deaths

    assert sum(in_threads([passes] * 4)) == 1


def test_without_a_plan_nothing_happens() -> None:
    for point in POINTS:
        NONE.at(point)
    assert not any(NONE.plans(point) for point in POINTS)


def test_a_point_that_there_is_none_of_is_refused() -> None:
    with pytest.raises(ValueError, match="no point 'before_aply'; there are before_compute, "):
        Fault("before_aply", "shard 0")


def test_a_plan_travels() -> None:
    plan = (Fault("before_apply", "shard 0", nth=3, action="stop", start=2),)
    assert pickle.loads(pickle.dumps(plan)) == plan


SCRIPT = """
    from distbelief.faults.points import Fault, Injector

    injector = Injector([Fault("before_apply", "shard 0", nth=2, action="{action}")], "shard 0")
    for n in (1, 2, 3):
        injector.at("before_apply")
        print(n, flush=True)
"""


def start_process(action: str) -> subprocess.Popen[str]:
    script = textwrap.dedent(SCRIPT.format(action=action))
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_a_killed_process_has_no_last_word() -> None:
    with start_process("kill") as process:
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (-signal.SIGKILL, "1\n")


def test_a_stopped_process_waits_at_the_point_until_it_is_woken() -> None:
    with start_process("stop") as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "1\n2\n3\n")
