"""What each replica of a run is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from distbelief.errors import ConfigError
from distbelief.replication import ClusterConfig, ReplicaConfig, slots_of


def slots(*groups: str, replicas: int = 2, **replica: Any) -> tuple[ReplicaConfig, ...]:
    cluster = ClusterConfig(replicas=replicas, replica_group=groups)
    return slots_of(ReplicaConfig(**replica), cluster)


# One replica


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"stages": 0}, "--stages: must be greater than 0, not 0"),
        ({"micro_batches": 0}, "--micro-batches: must be greater than 0, not 0"),
        ({"device_memory_gb": -1.0}, "--device-memory-gb: must be greater than 0, not -1.0"),
        (
            {"device": "cpu+gpu", "stages": 2},
            "--device: must be auto, cpu or cuda, not 'cpu+gpu'",
        ),
        ({"device": "cpu+cuda"}, "--device: names 2 devices for 1 stages"),
        ({"device": "cpu+cuda", "stages": 3}, "--device: names 2 devices for 3 stages"),
        (
            {"micro_batches": 9, "batch_size": 8},
            "--micro-batches: 9 for a batch of 8; take fewer",
        ),
        (
            {"micro_batches": 2, "stages": 3},
            "--micro-batches: 1f1b needs one for each of 3 stages, not 2",
        ),
        (
            {"stages": 3, "batch_size": 2},
            "--stages: 3 stages for a batch of 2; take fewer",
        ),
        (
            {"boundaries": "a,b", "stages": 2},
            "--boundaries: a,b divides into 3 stages, not 2; give --stages 3",
        ),
        ({"boundaries": "a"}, "--boundaries: a divides into 2 stages, not 1; give --stages 2"),
    ],
)
def test_what_a_replica_cannot_be(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ReplicaConfig(**options)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    "options",
    [
        {"stages": 4, "batch_size": 4, "micro_batches": 4},
        {"stages": 3, "pipeline": "gpipe", "micro_batches": 1},
        {"stages": 2, "device": "cpu+cuda:1"},
        {"stages": 3, "device": "cuda"},
        {"stages": 3, "boundaries": "a,b"},
        {"micro_batches": 8, "batch_size": 8},
    ],
)
def test_what_a_replica_can_be(options: dict[str, Any]) -> None:
    config = ReplicaConfig(**options)
    assert {name: getattr(config, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1),
        ({"stages": 2}, 8),
        ({"stages": 3}, 12),
        ({"stages": 4, "batch_size": 6}, 6),
        ({"stages": 2, "micro_batches": 3}, 3),
        ({"micro_batches": 5}, 5),
    ],
)
def test_how_many_micro_batches(options: dict[str, Any], expected: int) -> None:
    assert ReplicaConfig(**options).n_micro_batches == expected


def test_the_device_of_each_stage() -> None:
    mixed = ReplicaConfig(stages=3, device="cpu+cuda:1+auto")
    assert [mixed.device_of(stage) for stage in range(3)] == ["cpu", "cuda:1", "auto"]
    alike = ReplicaConfig(stages=3, device="cuda")
    assert [alike.device_of(stage) for stage in range(3)] == 3 * ["cuda"]


# Groups


def test_without_groups_all_are_alike() -> None:
    replica = ReplicaConfig(stages=2, batch_size=16)
    assert slots_of(replica, ClusterConfig(replicas=3)) == 3 * (replica,)


def test_groups_follow_one_another_and_take_the_rest_from_the_options() -> None:
    found = slots("2x stages=2,device=cuda", "1x device=cpu", batch_size=16, threads=3)
    base = ReplicaConfig(batch_size=16, threads=3)
    staged = dataclasses.replace(base, stages=2, device="cuda")
    assert found == (staged, staged, dataclasses.replace(base, device="cpu"))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("1x", {}),
        ("  1 x  ", {}),
        ("1x stages=2", {"stages": 2}),
        ("1xstages=2", {"stages": 2}),
        ("1x stages=2 micro_batches=4", {"stages": 2, "micro_batches": 4}),
        ("1x stages=2, micro-batches=4", {"stages": 2, "micro_batches": 4}),
        ("1x threads=2", {"threads": 2}),
        ("1x stages=3,boundaries=a.b+c", {"stages": 3, "boundaries": "a.b,c"}),
        ("1x stages=2,device=cpu+cuda:1", {"stages": 2, "device": "cpu+cuda:1"}),
        (
            "1x stages=2,pipeline=gpipe,divide_by=memory",
            {"stages": 2, "pipeline": "gpipe", "divide_by": "memory"},
        ),
        ("1x device-memory-gb=0.5", {"device_memory_gb": 0.5}),
    ],
)
def test_what_a_group_may_say(text: str, options: dict[str, Any]) -> None:
    assert slots(text) == (ReplicaConfig(**options),)


def test_boundaries_go_with_a_number_of_stages() -> None:
    """A group of another number has its own, or chosen ones."""
    found = slots("1x device=cpu", "1x stages=3", "1x stages=1", stages=2, boundaries="a")
    assert [(slot.stages, slot.boundaries) for slot in found] == [(2, "a"), (3, None), (1, None)]


def test_boundaries_stay_with_a_group_of_as_many_stages() -> None:
    (slot,) = slots("1x stages=2,device=cpu", stages=2, boundaries="a")
    assert slot.boundaries == "a"


def test_the_count_of_a_group_may_have_several_digits() -> None:
    assert len(slots("12x", "3x stages=2")) == 15


FORM = "write it as '2x stages=2,device=cuda'"
TAKE = (
    "take stages, device, micro_batches, threads, pipeline, boundaries, divide_by, device_memory_gb"
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", f"does not say how many; {FORM}"),
        ("stages=2", f"does not say how many; {FORM}"),
        ("0x stages=2", f"does not say how many; {FORM}"),
        ("-1x stages=2", f"does not say how many; {FORM}"),
        ("two x stages=2", f"does not say how many; {FORM}"),
        ("2x stage=2", "no 'stage' differs by group; did you mean stages?"),
        ("2x micro-batch=2", "no 'micro_batch' differs by group; did you mean micro_batches?"),
        ("2x batch_size=2", f"no 'batch_size' differs by group; {TAKE}"),
        ("2x n_push=2", f"no 'n_push' differs by group; {TAKE}"),
        ("2x overlap", f"no 'overlap' differs by group; {TAKE}"),
        ("2x stages", f"stages has no value; {FORM}"),
        ("2x stages=", f"stages has no value; {FORM}"),
        ("2x stages=two", "stages must be a number"),
        ("2x stages=2.5", "stages must be a number"),
        ("2x device_memory_gb=much", "device_memory_gb must be a number"),
        ("2x pipeline=1F1B", "pipeline is 1f1b or gpipe"),
        ("2x divide_by=speed", "divide_by is time or memory"),
        ("2x stages=0", "--stages: must be greater than 0, not 0"),
        ("2x device=gpu", "--device: must be auto, cpu or cuda, not 'gpu'"),
        ("2x device=cpu+cuda", "--device: names 2 devices for 1 stages"),
        (
            "2x stages=2,micro_batches=1",
            "--micro-batches: 1f1b needs one for each of 2 stages, not 1",
        ),
        (
            "2x stages=2,boundaries=a+b",
            "--boundaries: a,b divides into 3 stages, not 2; give --stages 3",
        ),
    ],
)
def test_a_group_that_cannot_be_is_told_with_its_text(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        slots("1x", text)
    assert caught.value.field == "replica_group"
    between = " " if problem.startswith("does not") else ": "
    assert str(caught.value) == f"--replica-group: {text!r}{between}{problem}"


def test_a_group_is_refused_for_what_the_options_say_of_all() -> None:
    with pytest.raises(ConfigError) as caught:
        slots("1x stages=3", batch_size=2)
    assert str(caught.value) == (
        "--replica-group: '1x stages=3': --stages: 3 stages for a batch of 2; take fewer"
    )
