"""The audit of runs in which single shards were started again, or their twins took their places."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pytest

from distbelief.audit import Audit, ItemAside, Redone, audit
from distbelief.config import ScheduleConfig, TrainConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.coordinator.snapshots import MANIFEST, Manifest
from distbelief.errors import DataError
from distbelief.items import ItemPlan
from distbelief.observe.events import EventLog
from distbelief.server.pushlog import LogEntry, LogHeader, PushLog
from distbelief.server.statefile import snapshot_folder
from distbelief.serving import Endpoint, Serving, write_serving
from distbelief.storage import RemoteStorage, Storage, write_json
from distbelief.types import Intervals, ShardFile, ShardState

# Two epochs of 25 examples in items of 10, 10 and 5; the rate halves after each.
PLAN = ItemPlan(n_examples=25, batch_size=10, n_push=1, n_items=6)
SCHEDULE = Schedule(ScheduleConfig(lr=0.5, schedule="step", step_epochs=1, step_factor=0.5), PLAN)

Event = dict[str, Any]


@pytest.fixture
def storage() -> Storage:
    """A folder that no disk has to be waited for."""
    return RemoteStorage(f"memory://{uuid.uuid4()}/run")


@dataclass
class Log:
    """One log of one of two shards, as it is to be written.

    ``rests_on`` is the incarnation and the clock of its source; ``lines`` replace fields of the
    push of an item; ``aside`` are set aside after so many of ``items``.
    """

    shard: int
    incarnation: int
    items: list[int]
    rests_on: tuple[int, int] | None = None
    snapshot: int | None = None
    clock: int | None = None
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    aside: dict[int, tuple[int, str]] = field(default_factory=dict)
    before: tuple[int, ...] = ()

    @property
    def start(self) -> int:
        """The clock of its header."""
        return (self.rests_on or (0, 0))[1] if self.clock is None else self.clock

    @property
    def header(self) -> LogHeader:
        source = () if self.rests_on is None else ((self.shard, 2, *self.rests_on),)
        return LogHeader(
            shard=self.shard,
            n_shards=2,
            begin=5 * self.shard,
            end=5 * self.shard + 5,
            incarnation=self.incarnation,
            snapshot=self.snapshot,
            clock=self.start,
            sources=source,
            set_aside=self.before,
        )

    def write(self, storage: Storage) -> None:
        log = PushLog(storage, self.header)
        for number, item in enumerate([*self.items, -1]):
            for aside, (at, reason) in self.aside.items():
                if at == number:
                    log.set_aside(aside, reason)
            if item >= 0:
                entry = LogEntry(
                    item=item,
                    clock=self.start + number + 1,
                    base=(self.incarnation, self.start + number),
                    rate=SCHEDULE.rate(item),
                    replica=0,
                    examples=PLAN.item(item).n_examples,
                )
                log.append(replace(entry, **self.lines.get(item, {})))
        log.close()


def name(shard: int, incarnation: int) -> str:
    return Log(shard, incarnation, []).header.file_name


@dataclass
class Run:
    """A run's folder: its logs, and which starts serve and follow; by shard."""

    logs: list[Log]
    shards: tuple[int, ...] | None
    twins: dict[int, int] = field(default_factory=dict)
    snapshots: dict[int, list[tuple[int, Intervals]]] = field(default_factory=dict)
    """By number, of each shard its incarnation and what it had applied."""
    even: bool = True
    status: str | None = "finished"
    events: list[Event] = field(default_factory=list)
    started: int = 1

    def log(self, shard: int, incarnation: int) -> Log:
        found = [log for log in self.logs if (log.shard, log.incarnation) == (shard, incarnation)]
        return found[0]

    def write(self, storage: Storage) -> str:
        record = {
            "config": TrainConfig(schedule=SCHEDULE.config).to_dict(),
            "plan": asdict(PLAN),
            "parameters": 10,
            "incarnation": 1,
        }
        write_json(storage, "config.json", record)
        for log in self.logs:
            log.write(storage)
        if self.shards is not None:
            shards = tuple(_endpoint(shard, i) for shard, i in enumerate(self.shards))
            twins = tuple(_endpoint(shard, i) for shard, i in self.twins.items())
            write_serving(storage, Serving(number=1, run=self.started, shards=shards, twins=twins))
        for number, states in self.snapshots.items():
            files = tuple(_file(shard, *state) for shard, state in enumerate(states))
            manifest = Manifest(
                number=number,
                even=self.even,
                examples_applied=0,
                layout="",
                n_parameters=10,
                elapsed_s=1.0,
                files=files,
            )
            write_json(storage, f"{snapshot_folder(number)}/{MANIFEST}", manifest.to_dict())
        if self.status is not None:
            write_json(storage, "summary.json", {"status": self.status})
        events = EventLog(storage, 0.0)
        for event in self.events:
            events.emit(**event)
        events.close()
        return storage.url


def _endpoint(shard: int, incarnation: int) -> Endpoint:
    return Endpoint(shard, 5 * shard, 5 * shard + 5, incarnation, "127.0.0.1:1")


def _file(shard: int, incarnation: int, applied: Intervals) -> ShardFile:
    state = ShardState(
        shard=shard,
        incarnation=incarnation,
        begin=5 * shard,
        end=5 * shard + 5,
        loaded=True,
        clock=sum(end - begin for begin, end in applied),
        examples=0,
        skipped=0,
        applied=applied,
        set_aside={},
        repeated=0,
    )
    file_name = f"shard-{shard:05d}-of-00002.safetensors"
    return ShardFile(name=file_name, nbytes=1, sha256="", n_shards=2, state=state)


def started(shard: int, incarnation: int, role: str = "primary") -> Event:
    return {"kind": "shard_started", "shard": shard, "incarnation": incarnation, "role": role}


def lost(shard: int, incarnation: int, role: str = "primary") -> Event:
    cause = f"shard {shard} was lost: killed by signal 9"
    start = {"shard": shard, "incarnation": incarnation}
    return {"kind": "shard_lost", **start, "role": role, "cause": cause}


def recovered(shard: int, how: str) -> Event:
    return {"kind": "recovered", "what": f"shard {shard}", "cause": "", "how": how}


def epoch(number: int) -> Event:
    return {"kind": "epoch", "epoch": number}


BEGUN = [started(0, 1), started(1, 1)]


def restarted() -> Run:
    """Shard 1 died at clock 4 and went on from a snapshot at clock 2."""
    return Run(
        [
            Log(0, 1, [0, 1, 2, 3, 4, 5]),
            Log(1, 1, [1, 0, 2, 3]),
            Log(1, 2, [3, 2, 5, 4], rests_on=(1, 2), snapshot=1),
        ],
        (1, 2),
        snapshots={1: [(1, ((0, 2),)), (1, ((0, 2),))], 2: [(1, ((0, 6),)), (2, ((0, 6),))]},
        events=[*BEGUN, epoch(1), lost(1, 1), started(1, 2), recovered(1, "snapshot"), epoch(1)],
    )


def twinned() -> Run:
    """Shard 1 has a twin since clock 2."""
    return Run(
        [
            Log(0, 1, [0, 1, 2, 3, 4, 5]),
            Log(1, 1, [1, 0, 2, 3, 5, 4]),
            Log(1, 2, [2, 3, 5, 4], rests_on=(1, 2)),
        ],
        (1, 1),
        {1: 2},
        events=[*BEGUN, started(1, 2, "twin"), epoch(1)],
    )


def promoted() -> Run:
    """Shard 1 died at clock 4, and its twin of clock 2 took its place; that one has a twin, too."""
    return Run(
        [
            Log(0, 1, [0, 1, 2, 3, 4, 5]),
            Log(1, 1, [1, 0, 2, 3]),
            Log(1, 2, [2, 3, 5, 4], rests_on=(1, 2)),
            Log(1, 3, [4], rests_on=(2, 5)),
        ],
        (1, 2),
        {1: 3},
        snapshots={1: [(1, ((0, 2),)), (1, ((0, 2),))], 2: [(1, ((0, 6),)), (2, ((0, 6),))]},
        events=[
            *BEGUN,
            started(1, 2, "twin"),
            epoch(1),
            lost(1, 1),
            recovered(1, "twin"),
            started(1, 3, "twin"),
        ],
    )


def both_lost() -> Run:
    """Shard 1 and then the twin in its place died; it went on from the snapshot of the twin."""
    return Run(
        [
            Log(0, 1, [0, 1, 2, 3, 4, 5]),
            Log(1, 1, [1, 0, 2, 3]),
            Log(1, 2, [2, 3, 4, 5], rests_on=(1, 2)),
            Log(1, 3, [4, 5], rests_on=(2, 4), snapshot=2),
        ],
        (1, 3),
        snapshots={2: [(1, ((0, 4),)), (2, ((0, 4),))]},
        events=[
            *BEGUN,
            started(1, 2, "twin"),
            lost(1, 1),
            recovered(1, "twin"),
            lost(1, 2),
            started(1, 3),
            recovered(1, "snapshot"),
        ],
    )


def further_back() -> Run:
    """Shard 1 died twice, and the second time the newest snapshot was damaged."""
    run = restarted()
    run.logs[2].items = [3, 2]
    run.logs.append(Log(1, 3, [0, 2, 3, 4, 5], rests_on=(1, 1), snapshot=0))
    run.shards = (1, 3)
    run.snapshots = {1: [(1, ((0, 2),)), (1, ((0, 2),))]}
    run.events += [lost(1, 2), started(1, 3), recovered(1, "snapshot")]
    return run


def of(run: Run, storage: Storage) -> Audit:
    result = audit(run.write(storage))
    assert result.clean is (result.counter_example is None)
    return result


def found_in(run: Run, storage: Storage) -> str | None:
    found = of(run, storage).counter_example
    return None if found is None else str(found)


LOST = "shard 1 was lost (killed by signal 9)"


@pytest.mark.parametrize(
    ("run", "twins", "redone"),
    [
        (restarted(), 0, (Redone(1, 1, 2, f"{LOST} and went on from snapshot 1"),)),
        (twinned(), 1, ()),
        (promoted(), 1, ()),
        (both_lost(), 0, (Redone(1, 2, 2, f"{LOST} and went on from snapshot 2"),)),
        (
            further_back(),
            0,
            (
                Redone(1, 1, 3, f"{LOST} and went on from snapshot 0"),
                Redone(1, 2, 2, f"{LOST} and went on from snapshot 0"),
            ),
        ),
    ],
    ids=["restarted", "twinned", "promoted", "both_lost", "further_back"],
)
def test_a_run_in_which_a_shard_died_is_clean(
    run: Run, twins: int, redone: tuple[Redone, ...], storage: Storage
) -> None:
    result = of(run, storage)
    assert result.counter_example is None
    assert (result.n_shards, result.pushes, result.items, result.examples) == (2, 12, 6, 50)
    assert (result.twins, result.redone) == (twins, redone)
    assert result.forgotten == sum(one.pushes for one in redone)
    assert result.snapshots == len(run.snapshots)


@pytest.mark.parametrize("make", [restarted, promoted, both_lost])
def test_where_nobody_said_who_serves_it_follows_from_the_logs(
    make: Callable[[], Run], storage: Storage
) -> None:
    run = make()
    run.shards = None
    result = of(run, storage)
    assert result.counter_example is None
    assert (result.pushes, result.items) == (12, 6)


def test_a_twin_that_was_only_beside_its_primary_is_not_taken_for_it(storage: Storage) -> None:
    run = twinned()
    run.shards = None
    run.logs[2].items.pop()
    assert found_in(run, storage) is None


def but(run: Run, **changes: Any) -> Run:
    """The run with other fields."""
    return replace(run, **changes)


def flawed(run: Run, change: Callable[[Run], object]) -> Run:
    change(run)
    return run


def line(log: Log, item: int, **changes: Any) -> None:
    log.lines[item] = changes


ONCE = "is applied a second time, or after it was set aside"

FLAWS: dict[str, tuple[Run, str]] = {
    "an item applied twice across a restart": (
        flawed(restarted(), lambda r: r.log(1, 2).items.insert(1, 0)),
        f"{name(1, 2)}, line 3: item 0 {ONCE}",
    ),
    "an item applied twice across a takeover": (
        flawed(promoted(), lambda r: r.log(1, 2).items.__setitem__(2, 1)),
        f"{name(1, 2)}, line 4: item 1 {ONCE}",
    ),
    "an item applied twice where something was set aside before": (
        flawed(
            restarted(),
            lambda r: [
                setattr(r.log(1, 2), "aside", {5: (1, "norm")}),
                setattr(r.log(1, 2), "items", [3, 2, 0, 4]),
            ],
        ),
        f"{name(1, 2)}, line 5: item 0 {ONCE}",
    ),
    "a gap after a restart": (
        flawed(restarted(), lambda r: line(r.log(1, 2), 3, clock=4)),
        f"{name(1, 2)}, line 2: clock 4 follows 2",
    ),
    "a restart that skips a clock": (
        flawed(restarted(), lambda r: setattr(r.log(1, 2), "clock", 3)),
        f"{name(1, 2)}, line 1: starts at clock 3, from 2 items",
    ),
    "a restart from a clock that its source never had": (
        flawed(restarted(), lambda r: setattr(r.log(1, 2), "rests_on", (1, 5))),
        f"{name(1, 2)}, line 1: rests on clock 5 of {name(1, 1)}, which goes from 0 to 4",
    ),
    "a restart from a start that never was": (
        flawed(restarted(), lambda r: setattr(r.log(1, 2), "rests_on", (7, 2))),
        f"{name(1, 2)}, line 1: rests on start 7 of shard 1 of 2, which has no push log",
    ),
    "a twin from a clock that its primary never had": (
        flawed(twinned(), lambda r: setattr(r.log(1, 2), "rests_on", (1, 7))),
        f"{name(1, 2)}, line 1: rests on clock 7 of {name(1, 1)}, which goes from 0 to 6",
    ),
    "an item missing on the shard that was restarted": (
        flawed(restarted(), lambda r: r.log(1, 2).items.remove(2)),
        f"snapshots/000002/manifest.json: shard-00001-of-00002.safetensors is of clock 6, "
        f"{name(1, 2)} goes from 2 to 5",
    ),
    "an item missing on the shard that was not": (
        flawed(but(restarted(), snapshots={}), lambda r: r.log(0, 1).items.remove(4)),
        f"{name(0, 1)}: item 4 was not applied, though it must have been",
    ),
    "an item that only the forgotten pushes had": (
        flawed(but(restarted(), snapshots={}), lambda r: r.log(1, 2).items.remove(3)),
        f"{name(1, 2)}: item 3 was not applied, though it must have been",
    ),
    "a rate off by one unit in the last place": (
        flawed(restarted(), lambda r: line(r.log(1, 2), 5, rate=math.nextafter(0.25, 1))),
        f"{name(1, 2)}, line 4: item 5 has rate {math.nextafter(0.25, 1)}, the schedule says 0.25",
    ),
    "a rate of a twin": (
        flawed(twinned(), lambda r: line(r.log(1, 2), 5, rate=math.nextafter(0.25, 0))),
        f"{name(1, 2)}, line 4: item 5 has rate {math.nextafter(0.25, 0)}, the schedule says 0.25",
    ),
    "a snapshot of several starts that is not as even as it says": (
        flawed(
            restarted(), lambda r: r.snapshots.update({2: [(1, ((0, 5),)), (2, ((0, 4), (5, 6)))]})
        ),
        "snapshots/000002/manifest.json: says even: True, which it is not",
    ),
    "a snapshot of a start that had other items": (
        flawed(restarted(), lambda r: r.snapshots.update({2: [(1, ((0, 5),)), (2, ((0, 5),))]})),
        f"snapshots/000002/manifest.json: shard-00001-of-00002.safetensors has other items applied "
        f"than {name(1, 2)} says",
    ),
    "a base of a start to come": (
        flawed(restarted(), lambda r: line(r.log(1, 1), 2, base=(2, 2))),
        f"{name(1, 1)}, line 4: item 2 rests on version (2, 2), which was not there yet",
    ),
    "a base that the start will have": (
        flawed(restarted(), lambda r: line(r.log(1, 2), 2, base=(2, 4))),
        f"{name(1, 2)}, line 3: item 2 rests on version (2, 4), which was not there yet",
    ),
    "a base from before the start": (
        flawed(restarted(), lambda r: line(r.log(1, 2), 2, base=(2, 1))),
        f"{name(1, 2)}, line 3: item 2 rests on version (2, 1), which never was",
    ),
    "a base of a start that never was": (
        flawed(
            flawed(further_back(), lambda r: r.logs.pop(2)),
            lambda r: line(r.log(1, 3), 2, base=(2, 3)),
        ),
        f"{name(1, 3)}, line 3: item 2 rests on version (2, 3), which no log has",
    ),
    "a base of another shard": (
        flawed(
            restarted(),
            lambda r: [
                setattr(r.logs[0], "incarnation", 3),
                setattr(r, "shards", (3, 2)),
                r.snapshots.clear(),
                line(r.log(0, 3), 2, base=(1, 2)),
            ],
        ),
        f"{name(0, 3)}, line 4: item 2 rests on version (1, 2), which no log has",
    ),
    "a base that a start never reached, which was not killed": (
        flawed(but(restarted(), events=[]), lambda r: line(r.log(1, 2), 2, base=(1, 5))),
        f"{name(1, 2)}, line 3: item 2 rests on version (1, 5), which no log has",
    ),
    "a base beyond the end of the run": (
        flawed(restarted(), lambda r: line(r.log(1, 2), 2, base=(1, 7))),
        f"{name(1, 2)}, line 3: item 2 rests on version (1, 7), which no log has",
    ),
    "a base that its primary had only later": (
        flawed(promoted(), lambda r: line(r.log(1, 2), 3, base=(1, 4))),
        f"{name(1, 2)}, line 3: item 3 rests on version (1, 4), which no log has",
    ),
    "a base from the future at a twin beside its primary": (
        flawed(
            twinned(),
            lambda r: line(r.log(1, 2), 3, base=(1, 4)),
        ),
        f"{name(1, 2)}, line 3: item 3 rests on version (1, 4), which no log has",
    ),
    "a twin that misses a push": (
        flawed(twinned(), lambda r: r.log(1, 2).items.remove(5)),
        f"{name(1, 2)}, line 4: item 4 at clock 5, where its primary in {name(1, 1)} has item 5",
    ),
    "a twin that misses the last push": (
        flawed(twinned(), lambda r: r.log(1, 2).items.pop()),
        f"{name(1, 1)}, line 7: item 4 was applied, and its twin in {name(1, 2)} has not got it",
    ),
    "a twin with pushes in another order": (
        flawed(twinned(), lambda r: setattr(r.log(1, 2), "items", [2, 5, 3, 4])),
        f"{name(1, 2)}, line 3: item 5 at clock 4, where its primary in {name(1, 1)} has item 3",
    ),
    "a twin with other examples": (
        flawed(twinned(), lambda r: line(r.log(1, 2), 3, examples=9, skipped=(4,))),
        f"{name(1, 2)}, line 3: item 3 has other examples than at its primary in {name(1, 1)}",
    ),
    "a twin that has set aside what its primary applies": (
        flawed(
            twinned(),
            lambda r: [
                setattr(r.log(1, 1), "items", [1, 0, 2, 3, 5]),
                setattr(r.log(1, 2), "items", [2, 3, 5]),
                setattr(r.log(1, 1), "aside", {4: (4, "norm")}),
                setattr(r.log(1, 2), "aside", {4: (1, "norm")}),
            ],
        ),
        f"{name(1, 2)}, line 4: before item 3 it set other items aside than its primary in "
        f"{name(1, 1)}",
    ),
    "a twin with a push that its primary never had": (
        flawed(
            twinned(),
            lambda r: r.log(1, 1).items.remove(4),
        ),
        f"{name(1, 2)}, line 5: item 4 was never applied by its primary in {name(1, 1)}",
    ),
    "a twin of a run that was stopped, further ahead than a twin can be": (
        flawed(
            but(twinned(), status="interrupted"),
            lambda r: setattr(r.log(1, 1), "items", [1, 0, 2, 3]),
        ),
        f"{name(1, 2)}, line 4: item 5 was never applied by its primary in {name(1, 1)}",
    ),
    "a twin that took a place without a push of its primary": (
        flawed(promoted(), lambda r: setattr(r.log(1, 2), "items", [2, 5, 3, 4])),
        f"{name(1, 2)}, line 3: item 5 at clock 4, where its primary in {name(1, 1)} has item 3",
    ),
    "a twin that took a place without its primary's last push": (
        flawed(
            promoted(),
            lambda r: [
                r.twins.clear(),
                r.snapshots.clear(),
                r.logs.pop(),
                setattr(r, "status", "interrupted"),
                setattr(r.log(1, 2), "items", [2]),
            ],
        ),
        f"{name(1, 1)}, line 5: item 3 was applied, and its twin in {name(1, 2)} has not got it",
    ),
    "a twin that follows another start than the one that serves": (
        flawed(promoted(), lambda r: setattr(r.log(1, 3), "rests_on", (1, 4))),
        f"{name(1, 3)}, line 1: is a twin's, and does not follow {name(1, 2)}",
    ),
    "a twin that began with a snapshot": (
        flawed(twinned(), lambda r: setattr(r.log(1, 2), "snapshot", 1)),
        f"{name(1, 2)}, line 1: is a twin's, and does not follow {name(1, 1)}",
    ),
    "a twin's log that was never fed": (
        flawed(twinned(), lambda r: setattr(r, "logs", [*r.logs[:2], Log(1, 2, [])])),
        f"{name(1, 2)}, line 1: is a twin's, and does not follow {name(1, 1)}",
    ),
    "something set aside without a reason": (
        flawed(restarted(), lambda r: setattr(r.log(1, 2), "aside", {5: (2, " ")})),
        f"{name(1, 2)}, line 4: item 5 is set aside without a reason",
    ),
    "a start that serves without a log": (
        but(restarted(), shards=(1, 3)),
        "serving.json: names start 3 of shard 1, of which there is no push log",
    ),
    "a number of shards that have no logs": (
        but(restarted(), shards=(1, 2, 1)),
        "serving.json: names start 1 of shard 0, of which there is no push log",
    ),
}


@pytest.mark.parametrize(("run", "text"), FLAWS.values(), ids=FLAWS)
def test_a_flaw_is_found(run: Run, text: str, storage: Storage) -> None:
    assert found_in(run, storage) == text


# What is no flaw


@pytest.mark.parametrize(
    ("incarnation", "clock", "events"),
    [
        (1, 0, restarted().events),
        (1, 4, restarted().events),
        (1, 4, []),
        # The last lines of a shard that was killed may be missing in its log.
        (1, 6, restarted().events),
    ],
)
def test_a_push_may_rest_on_a_version_of_the_start_before(
    incarnation: int, clock: int, events: list[Event], storage: Storage
) -> None:
    run = but(restarted(), events=events)
    line(run.log(1, 2), 3, base=(incarnation, clock))
    assert found_in(run, storage) is None


def test_a_push_may_rest_on_a_version_of_a_start_that_did_not_survive(storage: Storage) -> None:
    run = further_back()
    line(run.log(1, 3), 0, base=(2, 4))
    assert found_in(run, storage) is None


@pytest.mark.parametrize("clock", [0, 2, 3, 4])
def test_a_twin_rests_on_versions_of_its_primary(clock: int, storage: Storage) -> None:
    run = promoted()
    line(run.log(1, 2), 5, base=(1, clock))
    assert found_in(run, storage) is None


def test_what_a_fenced_shard_acknowledged_when_it_woke_is_forgotten(storage: Storage) -> None:
    run = restarted()
    run.log(1, 1).items += [5, 4]
    result = of(run, storage)
    assert result.counter_example is None
    assert [(r.shard, r.incarnation, r.pushes) for r in result.redone] == [(1, 1, 4)]


def test_a_twin_that_was_dropped_is_no_matter(storage: Storage) -> None:
    run = but(twinned(), twins={})
    run.log(1, 2).items = [2, 3]
    result = of(run, storage)
    assert (result.counter_example, result.redone, result.twins) == (None, (), 0)


def test_a_twin_that_was_dropped_may_have_had_a_push_that_was_never_acknowledged(
    storage: Storage,
) -> None:
    """It got it, and died with its primary before that had it."""
    run = both_lost()
    run.logs[1].items = [1, 0, 2, 3]
    run.logs[2] = Log(1, 2, [2, 3, 5], rests_on=(1, 2))
    run.logs[3] = Log(1, 3, [5, 4], rests_on=(1, 4), snapshot=2)
    run.snapshots = {2: [(1, ((0, 4),)), (1, ((0, 4),))]}
    run.events = [*BEGUN, lost(1, 2, "twin"), lost(1, 1), started(1, 3)]
    result = of(run, storage)
    assert result.counter_example is None
    assert result.redone == (Redone(1, 2, 1, "a twin of shard 1 was lost (killed by signal 9)"),)


def test_what_a_twin_and_its_primary_lost_together_is_counted_once(storage: Storage) -> None:
    run = both_lost()
    run.logs[2] = Log(1, 2, [2, 3], rests_on=(1, 2))
    run.logs[3] = Log(1, 3, [2, 3, 4, 5], rests_on=(1, 2), snapshot=1)
    run.snapshots = {1: [(1, ((0, 2),)), (1, ((0, 2),))]}
    run.events = [*BEGUN, lost(1, 1), lost(1, 2, "twin"), started(1, 3), recovered(1, "snapshot")]
    result = of(run, storage)
    assert result.counter_example is None
    assert result.redone == (Redone(1, 1, 2, f"{LOST} and went on from snapshot 1"),)


def test_a_twin_that_has_not_been_fed_yet_is_no_matter(storage: Storage) -> None:
    run = twinned()
    run.logs.pop()
    assert (of(run, storage).counter_example, run.twins) == (None, {1: 2})


@pytest.mark.parametrize("ahead", ["twin", "primary"])
def test_of_a_run_that_goes_on_a_log_may_be_behind_its_twin(ahead: str, storage: Storage) -> None:
    run = but(twinned(), status=None)
    run.log(1, 1 if ahead == "twin" else 2).items = [1, 0, 2][0 if ahead == "twin" else 2 :]
    assert found_in(run, storage) is None


def test_a_twin_that_was_lost_at_the_end_may_be_behind(storage: Storage) -> None:
    run = twinned()
    run.log(1, 2).items.pop()
    run.events.append(lost(1, 2, "twin"))
    assert found_in(run, storage) is None


def test_of_a_run_that_was_stopped_a_twin_may_have_one_more(storage: Storage) -> None:
    run = but(twinned(), status="interrupted")
    run.log(1, 1).items.pop()
    result = of(run, storage)
    assert (result.counter_example, result.pushes, result.redone) == (None, 11, ())


def test_what_a_twin_has_is_known_from_its_primary_until_its_log_says_it(storage: Storage) -> None:
    """It has just taken the place, and has written nothing yet."""
    run = but(promoted(), status=None, twins={}, snapshots={})
    run.logs.pop()
    run.log(1, 2).items = []
    result = of(run, storage)
    assert result.counter_example is None
    assert (result.items, result.epochs_finished, result.redone) == (4, 1, ())


def test_a_new_start_that_was_killed_before_its_first_push_hides_nothing(storage: Storage) -> None:
    """It says who serves as soon as its shards have headed their logs."""
    run = Run(
        [
            Log(0, 1, [0, 1, 2, 3]),
            Log(1, 1, [1, 0, 2]),
            Log(0, 2, [], rests_on=(1, 3), snapshot=1),
            Log(1, 2, [], rests_on=(1, 3), snapshot=1),
        ],
        (2, 2),
        snapshots={1: [(1, ((0, 3),)), (1, ((0, 3),))]},
        status=None,
        events=[*BEGUN, epoch(1), {"kind": "resumed", "snapshot": 1}],
        started=2,
    )
    result = of(run, storage)
    assert (result.counter_example, result.items, result.epochs_finished) == (None, 3, 1)
    assert result.redone == (Redone(0, 1, 1, "the run was resumed from snapshot 1"),)


def test_a_new_start_that_did_not_come_as_far_as_to_serve_hides_nothing(storage: Storage) -> None:
    run = but(restarted(), status=None, snapshots={})
    run.logs.append(Log(0, 4, [], rests_on=(1, 2), snapshot=1))
    result = of(run, storage)
    assert (result.counter_example, result.items, result.epochs_finished) == (None, 6, 2)


def test_a_shard_that_was_lost_for_good_and_the_run_resumed(storage: Storage) -> None:
    run = Run(
        [
            Log(0, 1, [0, 1, 2, 3]),
            Log(1, 1, [1, 0, 2]),
            Log(0, 2, [2, 3, 4, 5], rests_on=(1, 2), snapshot=1),
            Log(1, 2, [3, 2, 4, 5], rests_on=(1, 2), snapshot=1),
        ],
        (2, 2),
        snapshots={1: [(1, ((0, 2),)), (1, ((0, 2),))]},
        events=[
            *BEGUN,
            lost(1, 1),
            {"kind": "resumed", "snapshot": 1},
            started(0, 2),
            started(1, 2),
        ],
        started=2,
    )
    result = of(run, storage)
    assert result.counter_example is None
    resumed = "the run was resumed from snapshot 1"
    assert result.redone == (Redone(0, 1, 2, resumed), Redone(1, 1, 1, f"{LOST}; {resumed}"))


# What is claimed


RESET = [lost(1, 1), started(1, 2), recovered(1, "snapshot")]


@pytest.mark.parametrize(
    ("events", "missing"),
    [
        ([epoch(1), epoch(2), *RESET], None),
        ([epoch(1), epoch(2), *RESET, epoch(1)], None),
        ([epoch(1), epoch(2), *RESET, epoch(1), epoch(2)], 4),
        # The word of the recovery comes when its items have been counted.
        ([epoch(1), epoch(2), *RESET[:-1]], None),
        ([epoch(1), epoch(2), *RESET[:1]], None),
        # Others that died undo nothing.
        ([epoch(1), epoch(2), {"kind": "recovered", "how": "anew"}], 4),
        ([epoch(1), epoch(2), lost(1, 3)], 4),
        ([epoch(1), epoch(2), lost(1, 1, "twin")], 4),
        ([epoch(1), epoch(2), lost(0, 1), recovered(0, "twin")], 4),
    ],
)
def test_what_was_called_done_counts_since_a_shard_went_back(
    events: list[Event], missing: int | None, storage: Storage
) -> None:
    run = but(restarted(), status=None, events=events, snapshots={})
    run.log(1, 2).items = [3, 2, 5]
    expected = f"{name(1, 2)}: item {missing} was not applied, though it must have been"
    assert found_in(run, storage) == (None if missing is None else expected)


def test_what_was_called_done_stays_so_when_a_twin_takes_a_place(storage: Storage) -> None:
    run = but(promoted(), status=None, twins={}, snapshots={})
    run.logs.pop()
    run.log(0, 1).items.remove(1)
    assert (
        found_in(run, storage) == f"{name(0, 1)}: item 1 was not applied, though it must have been"
    )


@pytest.fixture
def longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many epochs."""
    plan = replace(PLAN, n_items=12)
    monkeypatch.setitem(globals(), "PLAN", plan)
    monkeypatch.setitem(globals(), "SCHEDULE", Schedule(SCHEDULE.config, plan))


@pytest.mark.usefixtures("longer")
@pytest.mark.parametrize("status", [None, "interrupted"])
def test_a_late_item_says_nothing_of_a_shard_that_went_back(
    status: str | None, storage: Storage
) -> None:
    """What was leased before it died comes to it before what it forgot is leased again."""
    run = but(restarted(), status=status, snapshots={}, events=[])
    run.log(0, 1).items = [*range(12)]
    run.log(1, 1).items = [*range(9)]
    run.log(1, 2).items = [9, 10]
    assert found_in(run, storage) is None


@pytest.mark.usefixtures("longer")
@pytest.mark.parametrize("status", [None, "interrupted"])
def test_a_late_item_says_that_the_shard_that_never_went_back_has_those_before(
    status: str | None, storage: Storage
) -> None:
    run = but(restarted(), status=status, snapshots={}, events=[], shards=(1, 1))
    run.logs = [Log(0, 1, [*range(12)]), Log(1, 1, [*range(5), 9, 10])]
    text = f"{name(1, 1)}: item 5 was not applied, though it must have been"
    assert found_in(run, storage) == text


@pytest.mark.parametrize("event", [{"kind": "epoch"}, {"kind": "shard_lost", "shard": 1}])
def test_a_damaged_event_is_an_error(event: Event, storage: Storage) -> None:
    url = but(restarted(), status=None, events=[event]).write(storage)
    with pytest.raises(DataError, match=r"events\.jsonl: is damaged: "):
        audit(url)


def test_a_damaged_word_on_who_serves_is_an_error(storage: Storage) -> None:
    url = restarted().write(storage)
    storage.write("serving.json", b"{")
    with pytest.raises(DataError, match=r"serving\.json: is damaged: "):
        audit(url)


# What is said


def test_it_says_what_was_set_aside_and_why(storage: Storage) -> None:
    run = but(restarted(), snapshots={})
    for log in (run.log(0, 1), run.log(1, 2)):
        log.items = [item for item in log.items if item not in (3, 4)]
        log.aside = {4: (0, "its replica died 3 times"), 3: (1, "norm, 3 times")}
    run.events = [
        {"kind": "set_aside", "item": 4, "reason": "", "files": ["a.jpg", "b.jpg"]},
        {"kind": "set_aside", "item": 3, "reason": ""},
    ]
    result = of(run, storage)
    assert (result.items, result.set_aside, result.epochs_finished) == (4, 2, 2)
    assert result.aside == (
        ItemAside(3, "norm, 3 times"),
        ItemAside(4, "its replica died 3 times", ("a.jpg", "b.jpg")),
    )


def test_what_was_set_aside_where_a_shard_went_back_to_stays_so(storage: Storage) -> None:
    run = but(restarted(), snapshots={})
    run.log(0, 1).items.remove(5)
    run.log(0, 1).aside = {5: (1, "norm, 3 times")}
    run.log(1, 1).aside = {5: (1, "norm, 3 times")}
    run.log(1, 2).items.remove(5)
    run.log(1, 2).before = (5,)
    result = of(run, storage)
    assert (result.counter_example, result.aside) == (None, (ItemAside(5, "norm, 3 times"),))


def test_what_was_set_aside_is_handed_to_a_twin(storage: Storage) -> None:
    run = twinned()
    run.log(0, 1).items.remove(5)
    run.log(0, 1).aside = {5: (0, "norm, 3 times")}
    run.log(1, 1).items.remove(5)
    run.log(1, 1).aside = {5: (2, "norm, 3 times")}
    run.log(1, 2).items.remove(5)
    run.log(1, 2).before = (5,)
    assert found_in(run, storage) is None
