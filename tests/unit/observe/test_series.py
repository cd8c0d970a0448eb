"""Series to plot, from events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distbelief.observe import series
from distbelief.observe.record import read_record
from distbelief.observe.series import (
    Done,
    Life,
    Lives,
    evaluation_points,
    incidents,
    items_done,
    lives,
    loss_points,
    shard_points,
    smoothed,
    staleness_points,
    throughput_points,
    waiting_points,
)

MakeRun = Callable[..., Path]


def test_items_count_from_the_snapshot_that_a_run_was_resumed_from(make_run: MakeRun) -> None:
    assert items_done(read_record(make_run())) == [
        Done(2.0, 10, 4.0),
        Done(2.0, 20, 2.0),
        # The time goes on from 8 s, when it was interrupted.
        Done(10.0, 110, 1.0),
        Done(10.0, 120, None),
    ]


def test_losses_of_one_moment_are_one_point_in_time(make_run: MakeRun) -> None:
    done = items_done(read_record(make_run()))
    assert loss_points(done, "seconds") == [(2.0, 3.0), (10.0, 1.0)]
    assert loss_points(done, "examples") == [(10.0, 4.0), (20.0, 2.0), (110.0, 1.0)]


def test_many_losses_are_averaged_into_few_points() -> None:
    done = [Done(float(i), 10 * i, float(i % 3)) for i in range(3 * series.MOST_POINTS)]
    points = loss_points(done, "examples")
    assert len(points) == series.MOST_POINTS
    assert {loss for _, loss in points} == {1.0}
    assert points[0][0] == 20.0


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), None])
def test_losses_that_are_none_are_left_out(loss: float | None) -> None:
    assert loss_points([Done(1.0, 10, loss), Done(2.0, 20, 0.5)], "examples") == [(20.0, 0.5)]


def test_smoothing_keeps_a_constant_and_short_series_as_they_are() -> None:
    short = [(float(i), float(i)) for i in range(series.SMOOTH_FROM - 1)]
    assert smoothed(short) is short
    long = [(float(i), 2.0) for i in range(100)]
    assert [y for _, y in smoothed(long)] == pytest.approx(100 * [2.0])
    step = smoothed([(float(i), float(i >= 50)) for i in range(100)])
    assert step[49][1] == 0.0
    assert 0.0 < step[50][1] < 1.0
    assert step[99][1] == pytest.approx(1.0, abs=1e-3)


def test_throughput_is_what_was_done_over_the_time() -> None:
    # 10 images every half second, from 1 s to 9 s.
    done = [Done(1 + i / 2, 10 * (i + 1), None) for i in range(17)]
    points = throughput_points(done)
    assert points == [(2.0, 20.0), (4.0, 20.0), (6.0, 20.0), (8.0, 20.0)]
    assert throughput_points(done[:1]) == throughput_points([]) == []
    # Images that are done again after a resumption do not count against it.
    again = throughput_points([Done(1.0, 100, None), Done(3.0, 50, None)])
    assert again == [(2.0, 0.0)]


@pytest.mark.parametrize(
    ("figure", "axis", "expected"),
    [
        ("top1", "examples", [(110.0, 0.5)]),
        ("top5", "seconds", [(6.0, 0.75)]),
        ("nothing", "seconds", []),
    ],
)
def test_evaluations(
    figure: str, axis: series.Axis, expected: series.Points, make_run: MakeRun
) -> None:
    assert evaluation_points(read_record(make_run()), figure, axis) == expected


def test_staleness_shards_and_waiting_over_time(make_run: MakeRun) -> None:
    record = read_record(make_run())
    assert staleness_points(record) == [(2.0, 0.5), (11.0, 0.0)]
    assert shard_points(record, "queued") == {"shard 0": [(2.0, 3.0), (11.0, 3.0)]}
    assert waiting_points(record) == [(2.0, 0.25), (11.0, 0.25)]


def test_many_shards_are_summed(make_run: MakeRun) -> None:
    shards = [{"shard": i, "mb_per_second": float(i)} for i in range(9)]
    record = read_record(make_run(events=[{"t": 1.0, "kind": "progress", "shards": shards}]))
    assert shard_points(record, "mb_per_second") == {"9 shards": [(1.0, 36.0)]}


def test_lives_from_the_beginning_to_the_end(make_run: MakeRun) -> None:
    found = [
        (x.name, x.where, x.began, x.ended, x.end, x.cause) for x in lives(read_record(make_run()))
    ]
    assert found == [
        ("shard 0", "n0", 0.5, 8.0, "ended", ""),
        ("replica 0", "h0", 1.0, 8.0, "ended", ""),
        ("replica 1", "h1", 1.0, 3.0, "lost", "<b>"),
        ("replica 2", "h1", 4.0, 8.0, "ended", ""),
        ("replica 0", "h0", 9.0, 12.0, "ended", ""),
    ]


def test_who_lives_in_a_run_that_goes_on_and_in_one_that_was_killed(make_run: MakeRun) -> None:
    joined = {"t": 1.0, "kind": "replica_joined", "replica": 0, "host": "h", "pid": 1}
    later = {"t": 5.0, "kind": "epoch", "epoch": 1}
    going = lives(read_record(make_run("a", events=[joined, later])))
    assert [(x.ended, x.end) for x in going] == [(5.0, "running")]
    resumed = {"t": 5.0, "kind": "resumed", "snapshot": 0, "examples_applied": 0}
    again = lives(read_record(make_run("b", events=[joined, later, resumed, {**joined, "t": 6}])))
    assert [(x.began, x.ended, x.end) for x in again] == [(1, 5, "ended"), (6, 6, "running")]


def test_a_shard_that_is_started_again_ends_its_former_life(make_run: MakeRun) -> None:
    started = {"kind": "shard_started", "shard": 1, "address": "a:1"}
    events = [{**started, "t": 1.0, "incarnation": 1}, {**started, "t": 4.0, "incarnation": 2}]
    found = lives(read_record(make_run(events=events)))
    assert [(x.name, x.where, x.ended, x.end) for x in found] == [
        ("shard 1", "a:1", 4.0, "lost"),
        ("shard 1", "a:1", 4.0, "running"),
    ]


def began(t: float, shard: int, incarnation: int, role: str) -> dict[str, Any]:
    return {
        "t": t,
        "kind": "shard_started",
        "shard": shard,
        "incarnation": incarnation,
        "role": role,
        "node": f"n{incarnation}",
    }


def lost(t: float, shard: int, incarnation: int, role: str) -> dict[str, Any]:
    return {
        "t": t,
        "kind": "shard_lost",
        "shard": shard,
        "incarnation": incarnation,
        "role": role,
        "cause": "its process died",
    }


def recovered(t: float, shard: int, how: str) -> dict[str, Any]:
    return {"t": t, "kind": "recovered", "what": f"shard {shard}", "how": how, "seconds": 0.5}


TAKEN_OVER = [
    began(1.0, 0, 1, "primary"),
    began(2.0, 0, 2, "twin"),
    lost(5.0, 0, 1, "primary"),
    recovered(5.5, 0, "twin"),
    began(7.0, 0, 3, "twin"),
]


def life(life: Life) -> tuple[str, str, float, float, str]:
    return life.name, life.where, life.began, life.ended, life.end


def test_a_twin_that_takes_over_goes_on_as_the_shard(make_run: MakeRun) -> None:
    found = lives(read_record(make_run(events=TAKEN_OVER)))
    assert [life(x) for x in found] == [
        ("shard 0", "n1", 1.0, 5.0, "lost"),
        ("shard 0", "n2", 2.0, 7.0, "running"),
        ("twin of shard 0", "n3", 7.0, 7.0, "running"),
    ]
    assert [x.cause for x in found] == ["its process died", "", ""]


def test_it_can_be_lost_as_any_shard_and_its_twin_take_over_in_turn(make_run: MakeRun) -> None:
    events = [*TAKEN_OVER, lost(9.0, 0, 2, "primary"), recovered(9.5, 0, "twin")]
    assert [life(x) for x in lives(read_record(make_run(events=events)))] == [
        ("shard 0", "n1", 1.0, 5.0, "lost"),
        ("shard 0", "n2", 2.0, 9.0, "lost"),
        ("shard 0", "n3", 7.0, 9.5, "running"),
    ]


def test_a_lost_twin_leaves_its_shard_alone(make_run: MakeRun) -> None:
    events = [*TAKEN_OVER[:2], lost(4.0, 0, 2, "twin"), began(6.0, 0, 3, "twin")]
    record = read_record(make_run(events=events))
    assert [life(x) for x in lives(record)] == [
        ("shard 0", "n1", 1.0, 6.0, "running"),
        ("twin of shard 0", "n2", 2.0, 4.0, "lost"),
        ("twin of shard 0", "n3", 6.0, 6.0, "running"),
    ]
    assert [i.text for i in incidents(record)] == ["twin of shard 0 was lost: its process died"]


def test_a_shard_that_starts_from_a_snapshot_takes_nobodys_life(make_run: MakeRun) -> None:
    events = [
        *TAKEN_OVER[:2],
        lost(5.0, 0, 1, "primary"),
        lost(5.1, 0, 2, "twin"),
        began(6.0, 0, 3, "primary"),
        recovered(6.5, 0, "snapshot"),
        began(7.0, 1, 1, "twin"),
    ]
    assert [life(x) for x in lives(read_record(make_run(events=events)))] == [
        ("shard 0", "n1", 1.0, 5.0, "lost"),
        ("twin of shard 0", "n2", 2.0, 5.1, "lost"),
        ("shard 0", "n3", 6.0, 7.0, "running"),
        ("twin of shard 1", "n1", 7.0, 7.0, "running"),
    ]


def test_a_life_that_is_renamed_keeps_its_beginning_and_ends_who_had_the_name() -> None:
    known = Lives()
    known.begin("shard 0", 1.0, "n1")
    known.begin("twin of shard 0", 2.0, "n2")
    known.rename("twin of shard 0", "shard 0", 5.0)
    assert list(known.open) == ["shard 0"]
    known.close("twin of shard 0", 6.0, "lost", "there is none")
    known.close("shard 0", 8.0, "lost", "killed")
    assert [life(x) for x in known.all] == [
        ("shard 0", "n1", 1.0, 5.0, "lost"),
        ("shard 0", "n2", 2.0, 8.0, "lost"),
    ]


def test_what_happened(make_run: MakeRun) -> None:
    found = [(i.t, i.text) for i in incidents(read_record(make_run()))]
    assert found == [
        (3.0, "replica 1 was lost: <b>; 1 item went to others"),
        (4.5, "replica 1 replaced by replica 2 after 1.5 s"),
        (8.0, "interrupted"),
        (8.0, "resumed from snapshot 2 at 100 images"),
        (12.0, "finished"),
    ]
