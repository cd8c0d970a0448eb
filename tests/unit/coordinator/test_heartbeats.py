"""Who is late, as tables of what was heard when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distbelief.coordinator.heartbeats import STALL_S, Beats, Silent

Call = tuple[Any, ...]
STEP_S = 0.25


def told(*calls: Call, until: float, watched: bool = True) -> dict[str, str]:
    """Plays calls (method, name, at), with looks between them; what is late at the end."""
    beats = Beats(silent_s=4.0, closed_s=1.5)
    looks: list[Call] = [("late", None, i * STEP_S) for i in range(int(until / STEP_S))]
    for method, name, at in sorted([*calls, *(looks if watched else [])], key=lambda c: c[2]):
        if method == "late":
            beats.late(at)
        elif method == "forget":
            beats.forget(name)
        else:
            getattr(beats, method)(name, at)
    return {silent.name: silent.what for silent in beats.late(until)}


ENDED = "its connection ended"


@pytest.mark.parametrize(
    ("calls", "until", "expected"),
    [
        ([], 60.0, {}),
        ([("opened", "a", 1.0)], 5.0, {}),
        ([("opened", "a", 1.0)], 5.25, {"a": "it did not say anything for 4.2 s"}),
        ([("opened", "a", 1.0), ("note", "a", 2.0)], 6.0, {}),
        ([("note", "a", 1.0)], 5.25, {"a": "it did not say anything for 4.2 s"}),
        ([("opened", "a", 1.0), ("closed", "a", 2.0)], 3.5, {}),
        ([("opened", "a", 1.0), ("closed", "a", 2.0)], 3.75, {"a": ENDED}),
        # Another connection, in time; and one that came before the end of the first was seen.
        ([("opened", "a", 1.0), ("closed", "a", 2.0), ("opened", "a", 3.0)], 6.0, {}),
        ([("opened", "a", 1.0), ("opened", "a", 2.0), ("closed", "a", 2.5)], 5.0, {}),
        (
            [("opened", "a", 1), ("opened", "a", 2), ("closed", "a", 2), ("closed", "a", 3)],
            5.0,
            {"a": ENDED},
        ),
        # Forgotten names stay so, whatever comes of them.
        ([("opened", "a", 1.0), ("forget", "a", 2.0), ("closed", "a", 2.0)], 9.0, {}),
        ([("opened", "a", 1.0), ("forget", "a", 2.0), ("note", "a", 3.0)], 9.0, {}),
        ([("forget", "a", 0.5), ("opened", "a", 1.0), ("closed", "a", 2.0)], 9.0, {}),
        ([("closed", "a", 1.0)], 9.0, {}),
        (
            [("opened", "b", 1), ("opened", "a", 1), ("closed", "b", 2), ("note", "c", 4)],
            6.0,
            {"a": "it did not say anything for 5.0 s", "b": ENDED},
        ),
    ],
)
def test_who_is_late(calls: list[Call], until: float, expected: dict[str, str]) -> None:
    assert told(*calls, until=until) == expected


def test_a_late_process_is_told_until_it_is_forgotten() -> None:
    beats = Beats(closed_s=0.5)
    beats.opened("a", 0.0)
    beats.closed("a", 0.25)
    assert [beats.late(at) for at in (0.5, 0.75, 1.0)] == [
        [],
        [],
        [Silent("a", 0.75, "its connection ended")],
    ]
    assert beats.late(1.5) == [Silent("a", 1.25, "its connection ended")]
    beats.forget("a")
    assert beats.late(1.75) == []


@pytest.mark.parametrize("closed", [False, True])
def test_what_the_watcher_slept_through_counts_against_nobody(closed: bool) -> None:
    beats = Beats(silent_s=4.0, closed_s=1.5)
    beats.opened("a", 0.0)
    if closed:
        beats.closed("a", 0.0)
    beats.late(1.0)
    assert beats.late(61.0) == []
    deadline = 60.0 + (1.5 if closed else 4.0)
    at = 61.0
    while at <= deadline:
        assert beats.late(at) == []
        at += STEP_S
    assert [silent.name for silent in beats.late(at)] == ["a"]


def test_beats_that_are_heard_show_that_the_watcher_was_awake() -> None:
    notes = [("note", "b", 0.5 * i) for i in range(20)]
    assert told(("opened", "a", 0.0), *notes, until=10.0, watched=False) == {
        "a": "it did not say anything for 10.0 s"
    }
    assert told(("opened", "a", 0.0), until=10.0, watched=False) == {}


@given(
    pauses=st.lists(st.floats(0.01, 100.0), min_size=1, max_size=60),
    silent_s=st.floats(0.5, 10.0),
)
def test_late_means_that_the_watcher_listened_for_so_long(
    pauses: list[float], silent_s: float
) -> None:
    """The rule, said as a sum: only gaps in which the watcher was awake count."""
    beats = Beats(silent_s=silent_s)
    at = listened = 0.0
    beats.opened("a", at)
    for pause in pauses:
        at += pause
        listened += pause if pause <= STALL_S else 0.0
        late = bool(beats.late(at))
        if abs(listened - silent_s) > 1e-6:
            assert late == (listened > silent_s)
