"""The audit of runs that were gone on with: the surviving history over several logs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.audit import audit
from distbelief.config import AveragingConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.coordinator.snapshots import MANIFEST, Manifest
from distbelief.errors import DataError
from distbelief.items import ItemPlan
from distbelief.layout import Segment
from distbelief.runtime.snapshots import Progressed, Snapshots
from distbelief.server.pushlog import LogEntry, LogHeader, PushLog
from distbelief.server.restore import Restore
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.server.statefile import snapshot_folder
from distbelief.storage import LocalStorage, Storage, write_json
from distbelief.types import Push, PushStatus, ShardFile, ShardState, Version

# Two epochs of 25 examples in items of 10, 10 and 5; the rate halves after each.
PLAN = ItemPlan(n_examples=25, batch_size=10, n_push=1, n_items=6)
SCHEDULE = ScheduleConfig(lr=0.5, schedule="step", step_epochs=1, step_factor=0.5)
SIZE = 12


def rate(item: int) -> float:
    return Schedule(SCHEDULE, PLAN).rate(item)


def write_record(storage: Storage, plan: ItemPlan = PLAN, incarnation: int = 1) -> None:
    config = TrainConfig(schedule=SCHEDULE).to_dict()
    record = {
        "config": config,
        "plan": asdict(plan),
        "parameters": SIZE,
        "incarnation": incarnation,
    }
    write_json(storage, "config.json", record)


def cut(shard: int, n_shards: int) -> tuple[int, int]:
    return shard * SIZE // n_shards, (shard + 1) * SIZE // n_shards


# By hand


@dataclass
class Log:
    """One log as it is to be written; ``aside`` are set aside after so many of ``items``."""

    shard: int
    n_shards: int
    incarnation: int
    items: list[int]
    clock: int = 0
    sources: tuple[tuple[int, int, int, int], ...] = ()
    aside: dict[int, int] = field(default_factory=dict)
    before: tuple[int, ...] = ()
    """Items that were set aside in the snapshot that it starts from."""

    @property
    def header(self) -> LogHeader:
        begin, end = cut(self.shard, self.n_shards)
        return LogHeader(
            shard=self.shard,
            n_shards=self.n_shards,
            begin=begin,
            end=end,
            incarnation=self.incarnation,
            snapshot=1 if self.sources else None,
            clock=self.clock,
            sources=self.sources,
            set_aside=self.before,
        )

    @property
    def name(self) -> str:
        return self.header.file_name

    def write(self, storage: Storage) -> None:
        log = PushLog(storage, self.header)
        for number, item in enumerate(self.items):
            self._set_aside(log, number)
            log.append(
                LogEntry(
                    item=item,
                    clock=self.clock + number + 1,
                    base=(self.incarnation, self.clock + number),
                    rate=rate(item),
                    replica=0,
                    examples=PLAN.item(item).n_examples,
                )
            )
        self._set_aside(log, len(self.items))
        log.close()

    def _set_aside(self, log: PushLog, number: int) -> None:
        for item, at in self.aside.items():
            if at == number:
                log.set_aside(item, "norm, 3 times")


@dataclass
class Saved:
    """One shard's part of a snapshot, by hand."""

    shard: int
    n_shards: int
    incarnation: int
    applied: tuple[tuple[int, int], ...]
    aside: tuple[int, ...] = ()

    @property
    def file(self) -> ShardFile:
        begin, end = cut(self.shard, self.n_shards)
        state = ShardState(
            shard=self.shard,
            incarnation=self.incarnation,
            begin=begin,
            end=end,
            loaded=True,
            clock=sum(high - low for low, high in self.applied),
            examples=0,
            skipped=0,
            applied=self.applied,
            set_aside=dict.fromkeys(self.aside, "norm, 3 times"),
            repeated=0,
        )
        name = f"shard-{self.shard:05d}-of-{self.n_shards:05d}.safetensors"
        return ShardFile(name=name, nbytes=1, sha256="", n_shards=self.n_shards, state=state)


@dataclass
class Run:
    """A run's folder by hand."""

    logs: list[Log]
    snapshots: dict[int, list[Saved]] = field(default_factory=dict)
    even: dict[int, bool] = field(default_factory=dict)
    status: str | None = "finished"
    events: list[dict[str, Any]] = field(default_factory=list)

    def write(self, storage: Storage) -> str:
        write_record(storage)
        for log in self.logs:
            log.write(storage)
        for number, saved in self.snapshots.items():
            manifest = Manifest(
                number=number,
                even=self.even.get(number, True),
                examples_applied=0,
                layout="",
                n_parameters=SIZE,
                elapsed_s=1.0,
                files=tuple(s.file for s in saved),
            )
            write_json(storage, f"{snapshot_folder(number)}/{MANIFEST}", manifest.to_dict())
        if self.status is not None:
            write_json(storage, "summary.json", {"status": self.status})
        if self.events:
            text = "".join(json.dumps({"t": 1.0, **event}) + "\n" for event in self.events)
            log_ = storage.open_log("events.jsonl", new=True)
            log_.write(text)
            log_.close()
        return storage.url


def same() -> Run:
    """Two shards that applied four items, and went on from a snapshot of three."""
    return Run(
        [
            Log(0, 2, 1, [0, 1, 2, 3]),
            Log(1, 2, 1, [1, 0, 2, 3]),
            Log(0, 2, 2, [3, 4, 5], clock=3, sources=((0, 2, 1, 3),)),
            Log(1, 2, 2, [4, 3, 5], clock=3, sources=((1, 2, 1, 3),)),
        ],
        {1: [Saved(0, 2, 1, ((0, 3),)), Saved(1, 2, 1, ((0, 3),))]},
    )


def more() -> Run:
    """Two shards that became three."""
    run = same()
    run.logs[2:] = [
        Log(0, 3, 2, [3, 4, 5], clock=3, sources=((0, 2, 1, 3),)),
        Log(1, 3, 2, [4, 3, 5], clock=3, sources=((0, 2, 1, 3), (1, 2, 1, 3))),
        Log(2, 3, 2, [5, 4, 3], clock=3, sources=((1, 2, 1, 3),)),
    ]
    return run


def fewer() -> Run:
    """Two shards that became one."""
    run = same()
    run.logs[2:] = [Log(0, 1, 2, [3, 4, 5], clock=3, sources=((0, 2, 1, 3), (1, 2, 1, 3)))]
    return run


def found_in(run: Run, storage: Storage) -> str | None:
    result = audit(run.write(storage))
    assert result.clean is (result.counter_example is None)
    return None if result.counter_example is None else str(result.counter_example)


@pytest.mark.parametrize(
    ("run", "n_shards", "forgotten"), [(same(), 2, 2), (more(), 3, 2), (fewer(), 1, 2)]
)
def test_a_run_that_was_gone_on_with_is_clean(
    run: Run, n_shards: int, forgotten: int, storage: Storage
) -> None:
    result = audit(run.write(storage))
    assert result.counter_example is None
    assert (result.n_shards, result.pushes) == (n_shards, 6 * n_shards)
    assert (result.items, result.examples, result.epochs_finished) == (6, 50, 2)
    assert (result.forgotten, result.snapshots) == (forgotten, 1)


def test_a_run_that_was_gone_on_with_twice(storage: Storage) -> None:
    run = same()
    run.logs[2:] = [
        Log(0, 3, 2, [3, 5], clock=3, sources=((0, 2, 1, 3),)),
        Log(1, 3, 2, [3, 4], clock=3, sources=((0, 2, 1, 3), (1, 2, 1, 3))),
        Log(2, 3, 2, [3, 4, 5], clock=3, sources=((1, 2, 1, 3),)),
        Log(0, 2, 3, [4, 5], clock=4, sources=((0, 3, 2, 4), (1, 3, 2, 4))),
        Log(1, 2, 3, [5, 4], clock=4, sources=((1, 3, 2, 4), (2, 3, 2, 4))),
    ]
    run.snapshots[4] = [Saved(s, 3, 2, ((0, 4),)) for s in range(3)]
    result = audit(run.write(storage))
    assert result.counter_example is None
    assert (result.n_shards, result.pushes, result.items) == (2, 12, 6)
    # One of each of the first two, then one, one and two.
    assert (result.forgotten, result.snapshots) == (2 + 1 + 1 + 2, 2)


def test_a_resumption_that_was_itself_left_behind(storage: Storage) -> None:
    """Gone on from a snapshot, and then once more from the one before it."""
    run = same()
    run.logs += [
        Log(0, 2, 3, [2, 3, 4, 5], clock=2, sources=((0, 2, 1, 2),)),
        Log(1, 2, 3, [2, 3, 4, 5], clock=2, sources=((1, 2, 1, 2),)),
    ]
    result = audit(run.write(storage))
    assert result.counter_example is None
    assert (result.pushes, result.items) == (12, 6)
    assert result.forgotten == 2 * (2 + 3)  # two of the first, all of the second


def test_a_run_that_was_gone_on_with_from_its_start(storage: Storage) -> None:
    run = same()
    run.logs[2:] = [
        Log(s, 2, 2, [0, 1, 2, 3, 4, 5], clock=0, sources=((s, 2, 1, 0),)) for s in (0, 1)
    ]
    run.snapshots[0] = [Saved(s, 2, 1, ()) for s in (0, 1)]
    result = audit(run.write(storage))
    assert result.counter_example is None
    assert (result.forgotten, result.snapshots) == (8, 2)


def test_an_uneven_snapshot_is_gone_on_from_by_as_many_shards(storage: Storage) -> None:
    run = Run(
        [
            Log(0, 2, 1, [0, 1, 2]),
            Log(1, 2, 1, [0, 2]),
            Log(0, 2, 2, [3, 4, 5], clock=3, sources=((0, 2, 1, 3),)),
            Log(1, 2, 2, [1, 3, 4, 5], clock=2, sources=((1, 2, 1, 2),)),
        ],
        {1: [Saved(0, 2, 1, ((0, 3),)), Saved(1, 2, 1, ((0, 1), (2, 3)))]},
        {1: False},
    )
    result = audit(run.write(storage))
    assert result.counter_example is None
    assert (result.pushes, result.forgotten, result.snapshots) == (12, 0, 1)


def test_what_was_set_aside_before_stays_so(storage: Storage) -> None:
    run = same()
    for log in run.logs[:2]:
        log.items = [0, 2, 3]
        log.aside = {1: 2}
    for log in run.logs[2:]:
        log.clock, log.sources, log.before = 2, ((log.shard, 2, 1, 2),), (1,)
    run.snapshots[1] = [Saved(s, 2, 1, ((0, 1), (2, 3)), (1,)) for s in (0, 1)]
    result = audit(run.write(storage))
    assert result.counter_example is None
    assert (result.items, result.set_aside, result.epochs_finished) == (5, 1, 2)


def test_what_one_had_set_aside_and_another_applied_counts_where_they_are_joined(
    storage: Storage,
) -> None:
    run = fewer()
    run.logs[0].items, run.logs[0].aside = [0, 2, 3], {1: 2}
    run.logs[2].sources = ((0, 2, 1, 2), (1, 2, 1, 3))
    run.snapshots[1][0] = Saved(0, 2, 1, ((0, 1), (2, 3)), (1,))
    result = audit(run.write(storage))
    assert result.counter_example is None
    assert (result.items, result.set_aside, result.forgotten) == (6, 0, 2)


# One flaw at a time


def flawed(run: Run, change: Callable[[Run], object]) -> Run:
    change(run)
    return run


FIRST = [Log(s, 2, 1, []).name for s in (0, 1)]
SECOND = [Log(s, 2, 2, []).name for s in (0, 1)]
THIRD = Log(0, 2, 3, []).name
MIDDLE, ONLY = Log(1, 3, 2, []).name, Log(0, 1, 2, []).name

FLAWS: dict[str, tuple[Run, str]] = {
    "a source's clock that it never had": (
        flawed(same(), lambda r: setattr(r.logs[2], "sources", ((0, 2, 1, 9),))),
        f"{SECOND[0]}, line 1: rests on clock 9 of {FIRST[0]}, which goes from 0 to 4",
    ),
    "a source's clock before its own start": (
        flawed(
            same(),
            lambda r: r.logs.extend(
                [
                    Log(0, 2, 3, [3, 4, 5], clock=3, sources=((0, 2, 2, 2),)),
                    Log(1, 2, 3, [3, 4, 5], clock=3, sources=((1, 2, 2, 3),)),
                ]
            ),
        ),
        f"{THIRD}, line 1: rests on clock 2 of {SECOND[0]}, which goes from 3 to 6",
    ),
    "a source's clock that is not the log's": (
        flawed(same(), lambda r: setattr(r.logs[3], "sources", ((1, 2, 1, 2),))),
        f"{SECOND[1]}, line 1: starts at clock 3, from 2 items",
    ),
    "a log that starts from nothing with a clock": (
        flawed(same(), lambda r: setattr(r.logs[3], "sources", ())),
        f"{SECOND[1]}, line 1: starts at clock 3, from 0 items",
    ),
    "an item applied in both logs": (
        flawed(same(), lambda r: r.logs[2].items.append(1)),
        f"{SECOND[0]}, line 5: item 1 is applied a second time, or after it was set aside",
    ),
    "an item applied in both logs of more shards": (
        flawed(more(), lambda r: r.logs[3].items.insert(0, 2)),
        f"{MIDDLE}, line 2: item 2 is applied a second time, or after it was set aside",
    ),
    "an item applied after it was set aside in the log before": (
        flawed(
            same(),
            lambda r: [
                *(setattr(log, "aside", {5: 0}) for log in r.logs[:2]),
                *(setattr(log, "before", (5,)) for log in r.logs[2:]),
                r.snapshots.clear(),
            ],
        ),
        f"{SECOND[0]}, line 4: item 5 is applied a second time, or after it was set aside",
    ),
    "an item said to have been set aside that was not": (
        flawed(same(), lambda r: setattr(r.logs[3], "before", (5,))),
        f"{SECOND[1]}, line 1: item 5 was set aside nowhere before",
    ),
    "an item that was set aside before, and is no more": (
        flawed(
            same(),
            lambda r: [
                *(setattr(log, "aside", {5: 1}) for log in r.logs[:2]),
                *(setattr(log, "items", [3, 4]) for log in r.logs[2:]),
                r.snapshots.clear(),
            ],
        ),
        f"{SECOND[0]}, line 1: item 5 was set aside in {FIRST[0]}, and is no more",
    ),
    "an item set aside after it was applied in the log before": (
        flawed(same(), lambda r: setattr(r.logs[3], "aside", {1: 2})),
        f"{SECOND[1]}, line 4: item 1 is set aside after it was applied",
    ),
    "a log that rests on others that lack a part of it": (
        flawed(fewer(), lambda r: setattr(r.logs[2], "sources", ((0, 2, 1, 3),))),
        f"{ONLY}, line 1: rests on logs that have nothing of 6",
    ),
    "logs that rest on each other": (
        flawed(same(), lambda r: setattr(r.logs[0], "sources", ((0, 2, 2, 3),))),
        f"{SECOND[0]}, line 1: rests on itself",
    ),
    "a source that is not there": (
        flawed(same(), lambda r: r.logs.pop(0)),
        f"{SECOND[0]}, line 1: rests on start 1 of shard 0 of 2, which has no push log",
    ),
    "a source of an incarnation that never was": (
        flawed(same(), lambda r: setattr(r.logs[2], "sources", ((0, 2, 7, 3),))),
        f"{SECOND[0]}, line 1: rests on start 7 of shard 0 of 2, which has no push log",
    ),
    "joined shards that had done different items": (
        flawed(fewer(), lambda r: setattr(r.logs[1], "items", [1, 0, 4, 3])),
        f"{ONLY}, line 1: rests on shards that had done different items",
    ),
    "joined shards at different moments": (
        flawed(more(), lambda r: setattr(r.logs[3], "sources", ((0, 2, 1, 3), (1, 2, 1, 2)))),
        f"{MIDDLE}, line 1: rests on shards that had done different items",
    ),
    "an item that was done in what was forgotten, and not again": (
        flawed(same(), lambda r: [log.items.remove(3) for log in r.logs[2:]]),
        f"{SECOND[0]}: item 3 was not applied, though it must have been",
    ),
    "a snapshot with another item": (
        flawed(same(), lambda r: setattr(r.snapshots[1][1], "applied", ((0, 2), (3, 4)))),
        f"snapshots/000001/manifest.json: shard-00001-of-00002.safetensors has other items applied "
        f"than {FIRST[1]} says",
    ),
    "a snapshot beyond its log": (
        flawed(same(), lambda r: setattr(r.snapshots[1][0], "applied", ((0, 5),))),
        f"snapshots/000001/manifest.json: shard-00000-of-00002.safetensors is of clock 5, "
        f"{FIRST[0]} goes from 0 to 4",
    ),
    "a snapshot that has not set aside what its log had": (
        flawed(
            same(),
            lambda r: [
                *(setattr(log, "aside", {5: 1}) for log in r.logs[:2]),
                *(setattr(log, "items", [3, 4]) for log in r.logs[2:]),
                *(setattr(log, "before", (5,)) for log in r.logs[2:]),
            ],
        ),
        f"snapshots/000001/manifest.json: {FIRST[0]} has item 5 set aside, "
        f"shard-00000-of-00002.safetensors has not",
    ),
    "a snapshot of a shard without a log": (
        flawed(same(), lambda r: setattr(r.snapshots[1][0], "incarnation", 7)),
        "snapshots/000001/manifest.json: there is no push log of shard-00000-of-00002.safetensors",
    ),
    "an uneven snapshot called even": (
        flawed(same(), lambda r: setattr(r.snapshots[1][0], "applied", ((0, 4),))),
        "snapshots/000001/manifest.json: says even: True, which it is not",
    ),
    "an even snapshot called uneven": (
        flawed(same(), lambda r: r.even.update({1: False})),
        "snapshots/000001/manifest.json: says even: False, which it is not",
    ),
    "a shard of the last division without a log": (
        flawed(more(), lambda r: [r.logs.pop(4), r.logs.pop(1), r.logs.pop(0)]),
        "pushes: 2 logs cover 8 of 12 parameters",
    ),
}


@pytest.mark.parametrize(("run", "text"), FLAWS.values(), ids=FLAWS)
def test_a_flaw_is_found(run: Run, text: str, storage: Storage) -> None:
    assert found_in(run, storage) == text


def test_of_a_division_that_was_not_begun_by_all_the_one_before_counts(storage: Storage) -> None:
    """A resumption with three shards that died before the third had a log."""
    run = more()
    run.logs.pop()
    run.status = None
    result = audit(run.write(storage))
    assert result.counter_example is None
    assert (result.n_shards, result.pushes, result.items) == (2, 8, 4)


def test_of_as_many_shards_that_did_not_all_begin_the_ones_before_count(storage: Storage) -> None:
    run = same()
    run.logs[2].items = []
    run.logs.pop()
    run.logs[0].items = run.logs[1].items = [0, 1, 2, 3, 4, 5]
    run.status = None
    run.events = [{"kind": "epoch", "epoch": 1}, {"kind": "epoch", "epoch": 2}]
    assert found_in(run, storage) is None


def test_what_was_set_aside_after_the_snapshot_at_the_same_clock_is_forgotten(
    storage: Storage,
) -> None:
    """The run died after it was told, and before another push: it is done after all."""
    run = same()
    for log in run.logs[:2]:
        log.items, log.aside = [0, 1, 2], {5: 3}
    assert found_in(run, storage) is None


def test_a_snapshot_that_has_set_aside_what_no_log_says(storage: Storage) -> None:
    run = same()
    for saved in run.snapshots[1]:
        saved.aside = (4,)
    assert found_in(run, storage) is not None


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"format": 99}', b"\xff"])
def test_a_damaged_manifest_is_an_error(content: bytes, storage: Storage) -> None:
    url = same().write(storage)
    storage.write("snapshots/000001/manifest.json", content)
    with pytest.raises(DataError) as caught:
        audit(url)
    assert str(caught.value).startswith(f"{url}/snapshots/000001/manifest.json: is damaged: ")


def test_a_snapshot_that_was_never_finished_is_none(storage: Storage) -> None:
    url = same().write(storage)
    storage.write("snapshots/000002/shard-00000-of-00002.safetensors", b"half")
    storage.write("snapshots/notes/manifest.json", b"{")
    result = audit(url)
    assert (result.clean, result.snapshots) == (True, 1)


def epoch(number: int) -> dict[str, Any]:
    return {"kind": "epoch", "epoch": number}


RESUMED = {"kind": "resumed", "snapshot": 1}


@pytest.mark.parametrize(
    ("events", "missing"),
    [
        ([epoch(1), RESUMED], None),
        ([epoch(1), epoch(2), RESUMED], None),  # the second was done, and forgotten
        ([epoch(1), epoch(2), RESUMED, epoch(1)], None),
        ([epoch(1), RESUMED, epoch(2)], 4),
        ([epoch(1), epoch(2)], 4),
    ],
)
def test_what_was_called_done_counts_from_the_last_resumption(
    events: list[dict[str, Any]], missing: int | None, storage: Storage
) -> None:
    run = same()
    for log in run.logs[2:]:
        log.items = [3]
    run.status, run.events = None, events
    expected = f"{SECOND[0]}: item {missing} was not applied, though it must have been"
    assert found_in(run, storage) == (None if missing is None else expected)


# With real shards


class Fleet:
    """The shards of one resumption."""

    def __init__(
        self,
        stack: ExitStack,
        storage: Storage,
        n_shards: int,
        incarnation: int,
        manifest: Manifest | None,
    ) -> None:
        self.shards: list[Shard] = []
        self.incarnation = incarnation
        for index in range(n_shards):
            begin, end = cut(index, n_shards)
            files = None if manifest is None else manifest.overlapping(begin, end)
            spec = ShardSpec(
                index=index,
                n_shards=n_shards,
                begin=begin,
                end=end,
                segments=(Segment(0, end - begin, 1.0, 1.0),),
                layout="fingerprint",
                incarnation=incarnation,
                examples_per_item=PLAN.examples_per_item,
                total_examples=PLAN.total_examples,
                n_ports=2,
                optimizer=OptimizerConfig(),
                averaging=AveragingConfig(),
                storage=storage,
                restore=None
                if manifest is None or files is None
                else Restore(manifest.number, files),
            )
            shard = stack.enter_context(Shard(spec))
            if manifest is None:
                shard.load(torch.zeros(spec.size))
            self.shards.append(shard)

    def push(self, index: int, item: int) -> PushStatus:
        shard = self.shards[index]
        push = Push(
            item=item,
            lease=item,
            replica=0,
            begin=shard.spec.begin,
            incarnation=self.incarnation,
            base=shard.version,
            rate=rate(item),
            examples=PLAN.item(item).n_examples,
            skipped=(),
            layout="fingerprint",
            gradient=torch.ones(shard.spec.size),
        )
        return shard.push(push).status


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[int, list[tuple[int, int]], int]]:
    """Of each life of a run: its shards, pushes (shard, item) before and after its snapshot."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        n_shards = draw(st.integers(1, 4))
        pushes = draw(
            st.lists(st.tuples(st.integers(0, n_shards - 1), st.integers(0, 5)), max_size=14)
        )
        found.append((n_shards, pushes, draw(st.integers(0, len(pushes)))))
    return found


@settings(deadline=None, max_examples=40)
@given(lives(), st.booleans())
def test_whatever_a_run_has_gone_through_its_logs_are_clean(
    history: list[tuple[int, list[tuple[int, int]], int]], finished: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        storage = LocalStorage(Path(folder))
        write_record(storage)
        manifest: Manifest | None = None
        forgotten = 0
        for incarnation, (wanted, pushes, n_before) in enumerate(history, start=1):
            n_shards = wanted
            if manifest is not None and not manifest.fits(wanted):
                n_shards = manifest.n_shards
            fleet = Fleet(stack, storage, n_shards, incarnation, manifest)
            write_record(storage, incarnation=incarnation)
            mine = [(s % n_shards, item) for s, item in pushes]
            for push in mine[:n_before]:
                fleet.push(*push)
            manifest = take(storage, fleet)
            assert manifest.even == (len({s.state().applied for s in fleet.shards}) == 1)
            after = [fleet.push(*push) for push in mine[n_before:]]
            last = incarnation == len(history)
            if not last:
                forgotten += after.count(PushStatus.APPLIED)
                for shard_ in fleet.shards:
                    shard_.close()
        if finished:
            for shard in range(len(fleet.shards)):
                for item in range(PLAN.n_items):
                    fleet.push(shard, item)
            write_json(storage, "summary.json", {"status": "finished", "examples_applied": 50})
        for shard_ in fleet.shards:
            shard_.close()
        result = audit(storage.url)
        assert result.counter_example is None
        assert result.forgotten == forgotten
        assert result.pushes == sum(shard.version.clock for shard in fleet.shards)
        assert result.n_shards == len(fleet.shards)
        if finished:
            assert (result.items, result.examples) == (6, 50)


def take(storage: Storage, fleet: Fleet) -> Manifest:
    def progressed(files: Sequence[ShardFile]) -> Progressed:
        return Progressed(examples_applied=0, elapsed_s=1.0)

    snapshots = Snapshots(
        storage,
        fleet.shards,
        layout="fingerprint",
        keep=2,
        pause_s=0.001,
        emit=lambda kind, **fields: None,
        incarnation=fleet.incarnation,
    )
    return snapshots.take(progressed, reason="due")


def test_a_line_taken_out_of_any_log_of_a_real_run_is_found(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    write_record(storage)
    with ExitStack() as stack:
        old = Fleet(stack, storage, 2, 1, None)
        for item in (0, 1, 2, 3):
            for shard in (0, 1):
                old.push(shard, item)
        manifest = take(storage, old)
        new = Fleet(stack, storage, 3, 2, manifest)
        for item in (4, 5):
            for shard in range(3):
                new.push(shard, item)
    write_json(storage, "summary.json", {"status": "finished"})
    assert audit(tmp_path).clean
    for path in sorted((tmp_path / "pushes").iterdir()):
        lines = path.read_text().splitlines(keepends=True)
        for number in range(1, len(lines)):
            path.write_text("".join(lines[:number] + lines[number + 1 :]))
            assert not audit(tmp_path).clean, (path.name, number)
        path.write_text("".join(lines))
    assert audit(tmp_path).clean


def test_versions_of_the_incarnation_before_are_known_to_the_next(tmp_path: Path) -> None:
    """A replica's last gradient of the old shards may reach none of the new ones."""
    storage = LocalStorage(tmp_path)
    write_record(storage)
    with ExitStack() as stack:
        old = Fleet(stack, storage, 1, 1, None)
        old.push(0, 0)
        manifest = take(storage, old)
        new = Fleet(stack, storage, 1, 2, manifest)
        late = Push(
            item=1,
            lease=1,
            replica=0,
            begin=0,
            incarnation=2,
            base=Version(1, 1),
            rate=rate(1),
            examples=10,
            skipped=(),
            layout="fingerprint",
            gradient=torch.ones(SIZE),
        )
        assert new.shards[0].push(late).status is PushStatus.APPLIED
        refused = new.shards[0].push(replace(late, item=2, incarnation=1))
        assert refused.status is PushStatus.REFUSED
    assert audit(tmp_path).clean
