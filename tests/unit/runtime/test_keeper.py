"""What a run cannot do without dies, in a world that does nothing but take note."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from distbelief.config import ClusterConfig, TrainConfig
from distbelief.coordinator.restarts import FIRST_S, MOST, SERVED_S
from distbelief.coordinator.snapshots import Manifest
from distbelief.errors import (
    DataError,
    DistBeliefError,
    ProcessLostError,
    ShardRefusedError,
    TransportError,
)
from distbelief.items import ItemPlan
from distbelief.layout import Layout
from distbelief.observe.report import Report
from distbelief.runtime import keeper as keeper_module
from distbelief.runtime import later, shard_keeper
from distbelief.runtime.feeding import DOUBT_S
from distbelief.runtime.folder import Probe
from distbelief.runtime.host_spec import HostSpec
from distbelief.runtime.keeper import Keeper, Members
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.shard_keeper import AGAIN_S
from distbelief.runtime.world import Post, ProcessEnd, ProcessUp, World
from distbelief.server.spec import ShardSpec
from distbelief.server.statefile import check, digest
from distbelief.serving import Endpoint, Serving, read_serving, write_serving
from distbelief.storage import LocalStorage, Storage, write_json
from distbelief.types import ShardFile, ShardState

DEADLINE_S = 20.0
N_SHARDS = 2
LAYOUT = Layout.of(nn.Linear(2, 3).named_parameters())
RANGES = LAYOUT.shard_ranges(N_SHARDS)
AWAY = TransportError(0, "UNAVAILABLE", "nobody there")


def endpoint(shard: int, incarnation: int) -> Endpoint:
    begin, end = RANGES[shard]
    address = f"shard-{shard}.{incarnation}"
    return Endpoint(shard, begin, end, incarnation, address, "node", "host", 7)


def first() -> Serving:
    return Serving(number=1, run=1, shards=tuple(endpoint(i, 1) for i in range(N_SHARDS)))


@dataclass
class FakeWorld:
    """Takes note of all that it is asked for; calls to shards fail or wait as they are told."""

    storage: Storage
    serving: Serving = field(default_factory=first)
    now: float = 1000.0
    log: list[str] = field(default_factory=list)
    shards: list[ShardSpec] = field(default_factory=list)
    coordinators: list[HostSpec] = field(default_factory=list)
    evaluators: list[int] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, DistBeliefError] = field(default_factory=dict)
    """By the call and the address, as in ``promote shard-0.2``."""
    gates: dict[str, threading.Event] = field(default_factory=dict)

    def start_shard(self, spec: ShardSpec) -> None:
        self.shards.append(spec)
        self.log.append(f"start {'twin' if spec.twin else 'shard'} {spec.index}.{spec.incarnation}")

    def start_coordinator(self, spec: HostSpec) -> None:
        self.coordinators.append(spec)
        self.log.append(f"start coordinator {spec.start}, file: {self.named()}")

    def start_evaluator(self, start: int) -> None:
        self.evaluators.append(start)
        self.log.append(f"start evaluator {start}")

    def take_serving(self, serving: Serving) -> None:
        self.serving = serving

    def dismiss(self, post: Post) -> None:
        self.log.append(f"dismiss {post}")

    @contextmanager
    def shard_at(self, endpoint: Endpoint) -> Iterator[Any]:
        def call(name: str, *arguments: str) -> None:
            what = f"{name} {endpoint.address}"
            self.log.append(" ".join([what, *arguments, f"file: {self.named()}"]))
            if what in self.gates:
                assert self.gates[what].wait(DEADLINE_S)
            if what in self.errors:
                raise self.errors[what]

        yield SimpleNamespace(
            promote=lambda: call("promote"),
            feed_twin=lambda address: call("feed_twin", address),
            release_twin=lambda: call("release_twin"),
        )

    def emit(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})

    def named(self) -> str:
        """Who serves by the file: shards, twins and the coordinator's start."""
        serving = read_serving(self.storage)
        assert serving is not None
        shards = " ".join(f"{e.shard}.{e.incarnation}" for e in serving.shards)
        twins = " ".join(f"+{e.shard}.{e.incarnation}" for e in serving.twins)
        return " ".join(filter(None, [shards, twins, f"c{serving.coordinator}"]))

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [
            {k: v for k, v in e.items() if k != "kind"} for e in self.events if e["kind"] == kind
        ]


@dataclass
class Kept:
    """A keeper with its world."""

    keeper: Keeper
    world: FakeWorld
    members: Members
    storage: LocalStorage
    recovered: list[dict[str, Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def dies(
        self, role: Any, number: int, start: int, cause: str = "killed", t: float = 5.0
    ) -> None:
        post = Post(role, number, start)
        self.fails(post, ProcessLostError(post.name, cause), t)

    def fails(self, post: Post, error: DistBeliefError, t: float = 5.0) -> None:
        self.keeper.happened(ProcessEnd(post, error), t)

    def comes_up(self, shard: int, incarnation: int) -> None:
        post = Post("shard", shard, incarnation)
        self.keeper.happened(ProcessUp(post, endpoint(shard, incarnation)), 0.0)

    def tick(self, after_s: float = 0.0, *, report: Report | None = None) -> None:
        self.world.now += after_s
        self.keeper.tick(report)

    def until(self, condition: Callable[[], object]) -> None:
        """Ticks until it holds; time stands still meanwhile."""
        give_up_at = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < give_up_at, f"it never came true: {self.world.log}"
            self.tick()
            time.sleep(0.001)

    def with_twin(self, shard: int, twin: int) -> None:
        """Its twin comes up and is fed."""
        self.comes_up(shard, twin)
        self.until(lambda: f"+{shard}.{twin}" in self.world.named())

    def take_log(self) -> list[str]:
        taken, self.world.log = self.world.log, []
        return taken


Keep = Callable[..., Kept]


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keep]:
    kept: list[Kept] = []

    def make(copies: int = 1, *, snapshots: int = 1) -> Kept:
        storage = LocalStorage(tmp_path)
        world = FakeWorld(storage)
        write_serving(storage, world.serving)
        for module in (keeper_module, later, shard_keeper):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: world.now))
        prepared = Prepared(
            config=TrainConfig(
                cluster=ClusterConfig(shards=N_SHARDS, replicas=3, shard_replication=copies)
            ),
            plan=ItemPlan(n_examples=500, batch_size=10, n_push=1, n_items=100),
            layout=LAYOUT,
            initial=torch.zeros(LAYOUT.size),
            n_outputs=3,
            classes=("a", "b", "c"),
            digests=("d",),
            storage=storage,
            started_at=0.0,
            probe=Probe(storage, "word"),
        )
        for number in range(snapshots):
            snapshot(storage, number)
        members, recovered, said = Members(), list[dict[str, Any]](), list[str]()
        keeper = Keeper(
            prepared, cast(World, world), members, recovered=recovered.append, say=said.append
        )
        kept.append(Kept(keeper, world, members, storage, recovered, said))
        keeper.begin()
        return kept[-1]

    yield make
    for each in kept:
        for gate in each.world.gates.values():
            gate.set()
        each.keeper.__exit__(None, None, None)


def content(number: int, shard: int) -> bytes:
    return bytes([number, shard]) * 8


def snapshot(storage: Storage, number: int) -> None:
    """One of all shards, with more examples than those before."""
    files = []
    for shard, (begin, end) in enumerate(RANGES):
        data = content(number, shard)
        storage.write(f"snapshots/{number:06}/shard-{shard}", data)
        state = ShardState(
            shard=shard,
            incarnation=1,
            begin=begin,
            end=end,
            loaded=True,
            clock=number,
            examples=10 * number,
            skipped=0,
            applied=((0, number),) if number else (),
            set_aside={},
            repeated=0,
        )
        name, sha256 = f"shard-{shard}", digest(data)
        files.append(
            ShardFile(name=name, nbytes=len(data), sha256=sha256, n_shards=N_SHARDS, state=state)
        )
    manifest = Manifest(
        number=number,
        even=True,
        examples_applied=10 * number,
        layout=LAYOUT.fingerprint,
        n_parameters=LAYOUT.size,
        elapsed_s=0.0,
        files=tuple(files),
    )
    write_json(storage, f"snapshots/{number:06}/manifest.json", manifest.to_dict())


LOOKS = itertools.count()


def standing(*shards: tuple[int, int, int], twin: int = 0) -> Report:
    """A report of which the keeper reads the shards alone: number, incarnation and forgotten.

    All of them feed that ``twin``.
    """
    told = tuple({"shard": k, "incarnation": i, "forgotten": n, "twin": twin} for k, i, n in shards)
    return cast(Report, SimpleNamespace(shards=told, elapsed_s=5.0, looks=next(LOOKS)))


# A shard without a twin


def test_a_shard_without_a_twin_starts_anew_from_the_newest_snapshot(keep: Keep) -> None:
    k = keep(snapshots=3)
    k.world.now = 1000.0
    k.dies("shard", 1, 1)
    assert not k.keeper.settled
    assert k.world.named() == "0.1 1.1 c1", "nobody has taken its place yet"
    k.tick()
    assert k.take_log() == ["dismiss shard 1 start 1", "start shard 1.2"]
    (spec,) = k.world.shards
    assert spec.restore is not None
    assert (spec.restore.snapshot, [f.name for f in spec.restore.files]) == (2, ["shard-1"])
    assert (spec.begin, spec.end) == RANGES[1]
    k.world.now = 1004.0
    k.comes_up(1, 2)
    assert k.keeper.settled
    assert (k.world.named(), k.keeper.incarnations) == ("0.1 1.2 c1", (1, 2))
    assert k.world.serving == read_serving(k.storage)
    assert k.take_log() == [], "without replication it gets no twin"


def test_its_recovery_is_complete_once_the_coordinator_has_counted_what_it_forgot(
    keep: Keep,
) -> None:
    k = keep()
    k.dies("shard", 1, 1, "it hung", t=12.345)
    k.tick(1.5)
    k.comes_up(1, 2)
    k.tick(report=standing((0, 1, 0), (1, 1, 0)))  # of before
    assert (k.recovered, k.world.told("recovered")) == ([], [])
    for _ in range(2):
        k.tick(30.0, report=standing((0, 1, 0), (1, 2, 17)))
    about = {
        "what": "shard 1",
        "cause": "it hung",
        "seconds": 1.5,
        "items_leased_again": 17,
        "how": "snapshot",
        "snapshot": 0,
    }
    assert k.recovered == [{**about, "t": 12.35}] or k.recovered == [{**about, "t": 12.34}]
    assert k.world.told("recovered") == [about]
    (lost,), (started,) = k.world.told("shard_lost"), k.world.told("shard_started")
    assert lost == {"shard": 1, "incarnation": 1, "role": "primary", "cause": "it hung"}
    assert started == {
        "shard": 1,
        "incarnation": 2,
        "role": "primary",
        "address": "shard-1.2",
        "node": "node",
        "host": "host",
        "pid": 7,
    }


def harm_nothing(folder: Path) -> None: ...


def flip_a_bit(folder: Path) -> None:
    file = folder / "shard-1"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


def cut_short(folder: Path) -> None:
    (folder / "shard-1").write_bytes(b"")


def remove_file(folder: Path) -> None:
    (folder / "shard-1").unlink()


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def harm_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def harm_another(folder: Path) -> None:
    (folder / "shard-0").unlink()


def try_to_load(k: Kept, folder: Path) -> None:
    """What the process of a shard does first: a damaged file is its end."""
    number = 0
    while len(k.world.shards) > number:
        spec = k.world.shards[number]
        assert spec.restore is not None
        number += 1
        try:
            for file in spec.restore.files:
                check(LocalStorage(folder), spec.restore.snapshot, file)
        except DataError as error:
            post = Post("shard", spec.index, spec.incarnation)
            k.keeper.happened(ProcessEnd(post, error), 9.0)
            k.tick()


@pytest.mark.parametrize(
    ("harm", "chosen", "said"),
    [
        (harm_nothing, 2, None),
        (harm_another, 2, None),  # which this shard does not need
        (flip_a_bit, 1, "000002/shard-1: is damaged: its SHA-256"),
        (cut_short, 1, "000002/shard-1: is damaged: 0 bytes"),
        (remove_file, 1, "000002/shard-1: is missing"),
        (remove_manifest, 1, None),  # it was never finished
        (harm_manifest, 1, "000002/manifest.json: is damaged"),
    ],
)
def test_what_is_damaged_is_told_and_gone_behind(
    harm: Callable[[Path], None], chosen: int, said: str | None, keep: Keep, tmp_path: Path
) -> None:
    k = keep(snapshots=3)
    harm(tmp_path / "snapshots" / "000002")
    k.dies("shard", 1, 1)
    k.tick()
    try_to_load(k, tmp_path)
    spec = k.world.shards[-1]
    assert spec.restore is not None
    assert spec.restore.snapshot == chosen
    damaged = [text for text in k.said if "going further back" in text]
    if said is None:
        assert damaged == []
    else:
        (text,) = damaged
        assert said in text


def test_without_any_snapshot_that_loads_the_run_ends(keep: Keep, tmp_path: Path) -> None:
    k = keep(snapshots=2)
    for number in range(2):
        flip_a_bit(tmp_path / "snapshots" / f"{number:06}")
    k.dies("shard", 1, 1)
    k.tick()
    with pytest.raises(ProcessLostError, match=r"shard 1 was lost: no snapshot"):
        try_to_load(k, tmp_path)


def test_a_shard_that_dies_while_it_starts_is_started_once_more(keep: Keep) -> None:
    k = keep()
    k.dies("shard", 0, 1, "the first cause", t=3.0)
    k.tick()
    k.tick(2.0)
    k.dies("shard", 0, 2, "the second", t=5.0)
    k.tick()
    assert k.take_log() == [
        *("dismiss shard 0 start 1", "start shard 0.2"),
        "dismiss shard 0 start 2",
    ]
    k.tick(FIRST_S)
    assert k.take_log() == ["start shard 0.3"]
    k.comes_up(0, 3)
    k.tick(report=standing((0, 3, 4)))
    # One recovery, from the first death on.
    (told,) = k.recovered
    assert (told["cause"], told["t"], told["seconds"]) == ("the first cause", 3.0, 2.0 + FIRST_S)
    assert [e["incarnation"] for e in k.world.told("shard_lost")] == [1, 2]
    assert k.world.named() == "0.3 1.1 c1"


def test_a_start_that_was_given_up_and_comes_up_after_all_is_dismissed(keep: Keep) -> None:
    k = keep()
    k.dies("shard", 0, 1)
    k.tick()
    k.dies("shard", 0, 2)
    k.take_log()
    k.comes_up(0, 2)
    assert k.take_log() == ["dismiss shard 0 start 2"]
    assert k.world.named() == "0.1 1.1 c1"


@pytest.mark.parametrize("comes_up", [False, True])
def test_a_death_that_is_told_twice_counts_once(comes_up: bool, keep: Keep) -> None:
    k = keep()
    k.dies("shard", 0, 1)
    k.dies("shard", 0, 1)
    k.tick()
    if comes_up:
        k.comes_up(0, 2)
    k.dies("shard", 0, 1)
    k.tick(100.0)
    assert [spec.incarnation for spec in k.world.shards] == [2]
    assert len(k.world.told("shard_lost")) == 1


# How often


def test_who_dies_again_and_again_waits_longer_and_ends_the_run(keep: Keep) -> None:
    k = keep()
    wait_s = 0.0
    for start in range(1, MOST + 1):
        k.dies("shard", 1, start)
        if wait_s:
            k.tick(0.99 * wait_s)
            assert len(k.world.shards) == start - 1, "it is too early"
        k.tick(wait_s)
        assert len(k.world.shards) == start
        k.comes_up(1, start + 1)
        wait_s = 2.0 * wait_s or FIRST_S
    error = ProcessLostError("shard 1", "the last straw")
    with pytest.raises(ProcessLostError) as caught:
        k.fails(Post("shard", 1, MOST + 1), error)
    assert caught.value is error


def test_who_has_served_for_a_while_starts_at_once_again(keep: Keep) -> None:
    k = keep()
    for start in range(1, 3 * MOST):
        k.dies("shard", 1, start)
        k.tick()
        assert len(k.world.shards) == start
        k.comes_up(1, start + 1)
        k.world.now += SERVED_S


def test_the_deaths_of_others_are_counted_apart(keep: Keep) -> None:
    k = keep()
    k.dies("shard", 0, 1)
    k.dies("shard", 1, 1)
    k.dies("coordinator", 0, 1)
    k.dies("evaluator", 0, 1)
    k.tick()
    assert len(k.world.shards) == 2
    assert (len(k.world.coordinators), k.world.evaluators) == (1, [2])


@pytest.mark.parametrize("role", ["shard", "coordinator", "evaluator"])
def test_what_the_user_can_mend_ends_the_run_at_once(role: Any, keep: Keep) -> None:
    k = keep()
    error = DataError("/data", "is gone")
    with pytest.raises(DataError) as caught:
        k.fails(Post(role, 0, 1), error)
    assert caught.value is error


# A shard with a twin


def test_every_shard_gets_a_twin_that_is_named_once_it_is_fed(keep: Keep) -> None:
    k = keep(copies=2)
    assert k.take_log() == ["start twin 0.2", "start twin 1.2"]
    assert all(spec.twin and spec.restore is None for spec in k.world.shards)
    gate = k.world.gates["feed_twin shard-0.1"] = threading.Event()
    k.comes_up(0, 2)
    k.until(lambda: any(entry.startswith("feed_twin") for entry in k.world.log))
    assert k.take_log() == [
        "release_twin shard-0.1 file: 0.1 1.1 c1",
        "feed_twin shard-0.1 shard-0.2 file: 0.1 1.1 c1",
    ]
    k.tick()
    assert k.world.named() == "0.1 1.1 c1", "it has not all of its state yet"
    gate.set()
    k.until(lambda: k.world.named() == "0.1 1.1 +0.2 c1")
    k.with_twin(1, 2)
    assert k.world.named() == "0.1 1.1 +0.2 +1.2 c1"
    assert [(e["role"], e["incarnation"]) for e in k.world.told("shard_started")] == [
        ("twin", 2),
        ("twin", 2),
    ]
    assert k.keeper.settled


def test_a_twin_takes_the_place_of_its_primary_and_is_named_before_it_serves(keep: Keep) -> None:
    k = keep(copies=2)
    k.with_twin(0, 2)
    k.with_twin(1, 2)
    k.take_log()
    k.dies("shard", 1, 1, t=8.0)
    assert k.take_log() == ["dismiss shard 1 start 1", "promote shard-1.2 file: 0.1 1.2 +0.2 c1"]
    assert k.keeper.settled
    (told,) = k.recovered
    assert told == {
        "what": "shard 1",
        "cause": "killed",
        "t": 8.0,
        "seconds": 0.0,
        "items_leased_again": 0,
        "how": "twin",
        "snapshot": None,
    }
    assert k.said == ["shard 1 was lost (killed); its twin has taken its place"]
    # And gets a twin of its own.
    k.tick()
    assert k.take_log() == ["start twin 1.3"]
    k.with_twin(1, 3)
    assert k.world.named() == "0.1 1.2 +0.2 +1.3 c1"
    assert k.take_log() == [
        "release_twin shard-1.2 file: 0.1 1.2 +0.2 c1",
        "feed_twin shard-1.2 shard-1.3 file: 0.1 1.2 +0.2 c1",
    ]


def test_a_twin_that_has_just_been_fed_can_take_its_place(keep: Keep) -> None:
    """Though nobody has looked since."""
    k = keep(copies=2)
    k.comes_up(0, 2)
    for feed in k.keeper._shards._feeding._feeds:
        feed.result(DEADLINE_S)
    k.dies("shard", 0, 1)
    assert k.world.named() == "0.2 1.1 c1"
    assert [told["how"] for told in k.recovered] == ["twin"]


@pytest.mark.parametrize(
    "error",
    [AWAY, ShardRefusedError(0, "not_loaded", "it has no state"), ProcessLostError("it", "gone")],
    ids=lambda error: type(error).__name__,
)
def test_a_twin_that_cannot_take_its_place_is_lost_too(error: DistBeliefError, keep: Keep) -> None:
    k = keep(copies=2, snapshots=2)
    k.with_twin(0, 2)
    k.take_log()
    k.world.errors["promote shard-0.2"] = error
    k.dies("shard", 0, 1)
    assert not k.keeper.settled
    k.tick()
    assert k.take_log() == [
        "dismiss shard 0 start 1",
        "promote shard-0.2 file: 0.2 1.1 c1",
        "dismiss shard 0 start 2",
        "start shard 0.3",
    ]
    lost = [(e["incarnation"], e["role"]) for e in k.world.told("shard_lost")]
    assert lost == [(1, "primary"), (2, "twin")]
    k.dies("shard", 0, 2, "it was found dead later")
    k.tick(100.0)
    assert k.take_log() == ["dismiss shard 0 start 2"], "it is being replaced already"
    k.comes_up(0, 3)
    k.tick(report=standing((0, 3, 5)))
    (told,) = k.recovered
    assert (told["how"], told["snapshot"], told["items_leased_again"]) == ("snapshot", 1, 5)
    assert k.world.named() == "0.3 1.1 c1"
    assert k.world.log == ["start twin 0.4"]


def test_a_primary_that_does_not_wait_for_a_dead_twin(keep: Keep) -> None:
    k = keep(copies=2)
    k.with_twin(0, 2)
    k.take_log()
    k.dies("shard", 0, 2)
    assert k.world.named() == "0.1 1.1 c1"
    assert k.keeper.settled
    k.tick()
    assert k.take_log() == [
        "dismiss shard 0 start 2",
        "release_twin shard-0.1 file: 0.1 1.1 c1",
        "start twin 0.3",
    ]
    (lost,) = k.world.told("shard_lost")
    assert (lost["incarnation"], lost["role"]) == (2, "twin")
    k.with_twin(0, 3)
    assert k.world.named() == "0.1 1.1 +0.3 c1"
    assert k.recovered == [], "nothing was away"


def test_a_twin_that_dies_while_it_is_fed_is_released_and_replaced(keep: Keep) -> None:
    k = keep(copies=2)
    gate = k.world.gates["feed_twin shard-0.1"] = threading.Event()
    k.comes_up(0, 2)
    k.until(lambda: any(entry.startswith("feed_twin") for entry in k.world.log))
    k.take_log()
    k.dies("shard", 0, 2)
    k.tick()
    assert k.take_log() == [
        "dismiss shard 0 start 2",
        "release_twin shard-0.1 file: 0.1 1.1 c1",
        "start twin 0.3",
    ]
    assert [(e["incarnation"], e["role"]) for e in k.world.told("shard_lost")] == [(2, "twin")]
    # That it had been fed, by the last answer of its primary, makes no twin of it.
    gate.set()
    k.with_twin(0, 3)
    assert k.world.named() == "0.1 1.1 +0.3 c1"


def test_a_twin_that_cannot_be_fed_is_replaced(keep: Keep) -> None:
    k = keep(copies=2)
    k.take_log()
    k.world.errors["feed_twin shard-0.1"] = AWAY
    k.comes_up(0, 2)
    k.until(lambda: k.world.shards[2:])
    assert k.take_log() == [
        "release_twin shard-0.1 file: 0.1 1.1 c1",
        "feed_twin shard-0.1 shard-0.2 file: 0.1 1.1 c1",
        "dismiss shard 0 start 2",
        "release_twin shard-0.1 file: 0.1 1.1 c1",
        "start twin 0.3",
    ]
    (lost,) = k.world.told("shard_lost")
    assert (lost["incarnation"], lost["role"], lost["cause"]) == (2, "twin", str(AWAY))


def test_a_twin_that_dies_while_it_starts_is_replaced(keep: Keep) -> None:
    k = keep(copies=2)
    k.take_log()
    k.dies("shard", 1, 2)
    k.tick()
    assert k.take_log() == [
        "dismiss shard 1 start 2",
        "release_twin shard-1.1 file: 0.1 1.1 c1",
        "start twin 1.3",
    ]


def test_a_primary_that_cannot_be_told_of_its_twins_death_is_no_matter(keep: Keep) -> None:
    k = keep(copies=2)
    k.with_twin(0, 2)
    k.world.errors["release_twin shard-0.1"] = AWAY
    k.dies("shard", 0, 2)
    assert k.world.told("twin_not_released") == [{"shard": 0, "cause": str(AWAY)}]


@pytest.mark.parametrize("when", ["comes up", "is being fed", "has died"])
def test_what_was_not_released_is_tried_again_but_never_costs_the_next_twin(
    when: str, keep: Keep
) -> None:
    """A twin that has its state and is released would lack what its primary acknowledges."""
    k = keep(copies=2)
    k.with_twin(0, 2)
    k.take_log()
    k.world.errors["release_twin shard-0.1"] = AWAY
    k.dies("shard", 0, 2)
    k.tick()
    del k.world.errors["release_twin shard-0.1"]
    k.world.gates["feed_twin shard-0.1"] = threading.Event()
    if when != "comes up":
        k.comes_up(0, 3)
        k.until(lambda: any(entry.startswith("feed_twin") for entry in k.world.log))
    if when == "has died":
        k.dies("shard", 0, 3)
    k.take_log()
    k.tick(AGAIN_S)
    released = "release_twin shard-0.1 file: 0.1 1.1 c1"
    assert (released in k.take_log()) == (when in ("comes up", "has died"))
    k.tick(AGAIN_S)
    assert released not in k.take_log()


def test_a_twin_that_its_primary_has_given_up_is_replaced(keep: Keep) -> None:
    """It lacks what its primary acknowledges, and must not take its place."""
    k = keep(copies=2)
    k.with_twin(0, 2)
    k.take_log()
    for _ in range(3):
        k.tick(DOUBT_S, report=standing((0, 1, 0), (1, 1, 0), twin=2))
    assert k.take_log() == []
    given_up = ((0, 1, 0), (1, 1, 0))
    old = standing(*given_up)
    k.tick(report=old)
    k.tick(0.9 * DOUBT_S, report=standing(*given_up))
    assert k.take_log() == [], "the report may be older than the twin"
    k.tick(DOUBT_S, report=old)
    assert k.take_log() == [], "the shards have not been looked at since"
    k.tick(report=standing(*given_up))
    k.tick(report=standing(*given_up))
    assert k.take_log() == [
        "dismiss shard 0 start 2",
        "release_twin shard-0.1 file: 0.1 1.1 c1",
        "start twin 0.3",
    ]
    assert [(e["incarnation"], e["role"]) for e in k.world.told("shard_lost")] == [(2, "twin")]
    k.with_twin(0, 3)
    assert k.world.named() == "0.1 1.1 +0.3 c1"


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_both_copies_die_at_once(order: tuple[int, int], keep: Keep) -> None:
    """The shard starts once, from a snapshot, and gets one twin."""
    k = keep(copies=2)
    k.with_twin(0, 2)
    k.take_log()
    k.world.errors |= {"promote shard-0.2": AWAY, "release_twin shard-0.1": AWAY}
    for start in order:
        k.dies("shard", 0, start)
    k.tick(100.0)
    assert [entry for entry in k.take_log() if entry.startswith("start")] == ["start shard 0.3"]
    k.comes_up(0, 3)
    k.tick(100.0)
    assert [entry for entry in k.take_log() if entry.startswith("start")] == ["start twin 0.4"]
    k.tick(100.0, report=standing((0, 3, 0)))
    assert [told["what"] for told in k.recovered] == ["shard 0"]
    assert k.take_log() == []


@pytest.mark.parametrize("begun", ["not up", "being fed"])
def test_a_primary_dies_before_its_twin_is_fed(begun: str, keep: Keep) -> None:
    """Its twin has nothing, and its number is lower than that of who will serve: it must go."""
    k = keep(copies=2)
    gate = k.world.gates["feed_twin shard-0.1"] = threading.Event()
    if begun == "being fed":
        k.comes_up(0, 2)
        k.until(lambda: any(entry.startswith("feed_twin") for entry in k.world.log))
    k.take_log()
    k.dies("shard", 0, 1)
    k.tick()
    assert k.take_log() == [
        "dismiss shard 0 start 1",
        "dismiss shard 0 start 2",
        "start shard 0.3",
    ]
    gate.set()
    k.comes_up(0, 3)
    assert k.world.named() == "0.3 1.1 c1"
    assert k.take_log() == ["start twin 0.4"]
    if begun == "not up":
        k.comes_up(0, 2)
        assert k.take_log() == ["dismiss shard 0 start 2"]
    k.with_twin(0, 4)
    assert k.world.named() == "0.3 1.1 +0.4 c1"


def test_a_shard_never_gets_a_second_twin(keep: Keep) -> None:
    """One whose start is put off, and one for the primary that has just come up."""
    k = keep(copies=2)
    k.dies("shard", 0, 2)
    k.tick()
    k.dies("shard", 0, 3)  # its successor waits a moment
    k.dies("shard", 0, 1)
    k.tick()
    k.comes_up(0, 4)
    k.take_log()
    k.tick(100.0)
    assert k.take_log() == []
    assert [spec.incarnation for spec in k.world.shards if spec.index == 0 and spec.twin] == [
        *(2, 3, 5),
    ]


# The coordinator and the evaluator


def test_a_coordinator_that_is_told_dead_twice_has_one_successor(keep: Keep) -> None:
    """It fell silent, and then Ray knew that it had died."""
    k = keep()
    k.dies("coordinator", 0, 1, "silent")
    k.dies("coordinator", 0, 1, "killed")
    k.tick()
    k.tick(10.0)
    assert [spec.start for spec in k.world.coordinators] == [2]
    assert k.world.told("coordinator_lost") == [{"start": 1, "cause": "silent"}]


def test_the_next_coordinator_is_named_before_it_starts(keep: Keep) -> None:
    k = keep()
    k.members.running |= {0, 2, 3}
    k.members.lost |= {1}
    k.dies("coordinator", 0, 1, t=7.0)
    k.tick()
    assert k.take_log() == [
        "dismiss coordinator start 1",
        "start coordinator 2, file: 0.1 1.1 c2",
    ]
    (spec,) = k.world.coordinators
    assert (spec.start, spec.replicas, spec.lost) == (2, {0, 2, 3}, {1})
    k.world.now += 3.0
    about = {"node": "n", "host": "h", "pid": 9}
    k.keeper.happened(ProcessUp(Post("coordinator", 0, 2), about=about), 0.0)
    assert k.world.told("coordinator_lost") == [{"start": 1, "cause": "killed"}]
    assert k.world.told("coordinator_started") == [{"start": 2, **about}]
    (told,) = k.recovered
    assert (told["what"], told["cause"], told["t"]) == ("the coordinator", "killed", 7.0)
    assert (told["seconds"], told["items_leased_again"]) == (3.0, None)
    # One that was given up, and is heard of once more.
    k.dies("coordinator", 0, 1)
    k.tick(100.0)
    assert len(k.world.coordinators) == 1


def test_a_coordinator_that_dies_while_it_starts(keep: Keep) -> None:
    k = keep()
    k.dies("coordinator", 0, 1, "the first cause")
    k.tick()
    k.dies("coordinator", 0, 2, "the second")
    k.tick()
    assert len(k.world.coordinators) == 1
    k.members.lost.add(4)  # who has died meanwhile
    k.tick(FIRST_S)
    assert [(spec.start, spec.lost) for spec in k.world.coordinators] == [
        (2, frozenset()),
        (3, {4}),
    ]
    assert k.world.named() == "0.1 1.1 c3"
    k.keeper.happened(ProcessUp(Post("coordinator", 0, 3)), 0.0)
    assert [told["cause"] for told in k.recovered] == ["the first cause"]


def test_an_evaluator_is_replaced(keep: Keep) -> None:
    k = keep()
    k.dies("evaluator", 0, 1)
    k.tick()
    assert k.take_log() == ["dismiss evaluator start 1", "start evaluator 2"]
    k.keeper.happened(ProcessUp(Post("evaluator", 0, 2), about={"node": "n"}), 0.0)
    assert k.world.told("evaluator_started") == [{"start": 2, "node": "n"}]
    assert [told["what"] for told in k.recovered] == ["the evaluator"]
    assert k.world.named() == "0.1 1.1 c1", "nobody looks for it there"


# The file


def test_who_serves_is_written_as_soon_as_it_can_be(
    keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    k = keep()
    full = [True]
    write = LocalStorage.write

    def refuse(storage: LocalStorage, name: str, data: Any) -> None:
        if full:
            raise OSError(28, "No space left on device")
        write(storage, name, data)

    monkeypatch.setattr(LocalStorage, "write", refuse)
    k.dies("shard", 0, 1)
    k.tick()
    k.comes_up(0, 2)
    k.tick()
    assert k.world.named() == "0.1 1.1 c1"
    assert not k.keeper.settled
    assert k.world.serving.shards[0].incarnation == 2, "who is started now shall know it"
    full.clear()
    k.tick()
    assert k.world.named() == "0.2 1.1 c1"
    assert k.keeper.settled
    told = [text for text in k.said if text.startswith("cannot write serving.json")]
    assert told == [
        "cannot write serving.json, and it is tried again: [Errno 28] No space left on device",
    ]


def test_numbers_grow_with_every_change(keep: Keep) -> None:
    k = keep(copies=2)
    numbers = [k.world.serving.number]
    k.with_twin(0, 2)
    numbers.append(k.world.serving.number)
    k.dies("shard", 0, 1)
    numbers.append(k.world.serving.number)
    k.dies("coordinator", 0, 1)
    k.tick()
    numbers.append(k.world.serving.number)
    assert numbers == sorted(set(numbers))
    assert replace(k.world.serving) == read_serving(k.storage)
