"""A bad link: every call meets its own fate, and the shard behind it is none the worse for it."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distbelief.config import OptimizerConfig
from distbelief.errors import ShardRefusedError, TransportError
from distbelief.faults.link import DISTANCES, Fate, FaultyLink, LinkFaults
from distbelief.server.shard import Shard
from distbelief.services import ShardService
from distbelief.types import Push, PushReply, PushStatus, Version, Weights

MakePush = Callable[..., Push]
StartShard = Callable[..., Shard]

BAD = LinkFaults(seed=3, repeat=0.3, drop_before=0.2, drop_after=0.2, late=0.3, held=0.2)


class Scribbled:
    """A shard's service that leaves nothing of a gradient, as it may, and knows what came."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.items: list[int] = []
        self.gradients: list[list[float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shard, name)

    def push(self, push: Push, *, fetch_into: torch.Tensor | None = None) -> PushReply:
        self.items.append(push.item)
        self.gradients.append(push.gradient.tolist())
        reply = self.shard.push(push, fetch_into=fetch_into)
        push.gradient.fill_(float("nan"))
        return reply


def link_to(service: Any, faults: LinkFaults, **fields: Any) -> FaultyLink:
    return FaultyLink(0, service, faults, **fields)


def patiently(call: Callable[[], PushReply]) -> PushReply:
    """As a replica does it."""
    while True:
        try:
            return call()
        except TransportError:
            continue


def seed_with(wanted: Callable[[LinkFaults], bool], **shares: Any) -> LinkFaults:
    """The first seed whose fates are as wanted."""
    return next(f for seed in range(10_000) if wanted(f := LinkFaults(seed=seed, **shares)))


# Fates


def test_a_fate_depends_on_the_seed_and_the_number_alone() -> None:
    calls = range(1, 200)
    fates = [BAD.fate(call) for call in calls]
    assert [BAD.fate(call) for call in reversed(calls)] == fates[::-1]
    again = pickle.loads(pickle.dumps(BAD))
    assert [again.fate(call) for call in calls] == fates
    assert len(set(fates)) > 10
    other = LinkFaults(seed=4, repeat=0.3, drop_before=0.2, drop_after=0.2, late=0.3, held=0.2)
    assert [other.fate(call) for call in calls] != fates


@given(st.integers(0, 2**40), st.integers(1, 2**40))
def test_what_is_planned_never_does_not_happen_and_always_does(seed: int, call: int) -> None:
    assert LinkFaults(seed=seed).fate(call) == Fate()
    sure = LinkFaults(
        seed=seed, repeat=1.0, drop_before=1.0, drop_after=1.0, late=1.0, held=1.0, delay_s=2.0
    ).fate(call)
    assert (sure.repeat, sure.drop_before, sure.drop_after, sure.held) == (True,) * 4
    assert sure.late_after in DISTANCES
    assert 0.0 <= sure.delay_s < 2.0


@given(st.integers(0, 1000), st.integers(1, 1000), st.floats(0, 1), st.floats(0, 1))
def test_one_kind_of_fault_does_not_move_another(
    seed: int, call: int, share: float, other: float
) -> None:
    alone = LinkFaults(seed=seed, repeat=share).fate(call)
    beside = LinkFaults(seed=seed, repeat=share, drop_before=other, late=other).fate(call)
    assert alone.repeat == beside.repeat


def test_shares_are_shares() -> None:
    n = 20_000
    faults = LinkFaults(seed=0, repeat=0.5, drop_before=0.05, drop_after=0.2, late=0.1)
    fates = [faults.fate(call) for call in range(1, n + 1)]
    for name, share in (("repeat", 0.5), ("drop_before", 0.05), ("drop_after", 0.2)):
        assert sum(getattr(f, name) for f in fates) / n == pytest.approx(share, abs=0.015), name
    distances = Counter(f.late_after for f in fates)
    assert distances.keys() == {0, *DISTANCES}
    assert 1 - distances[0] / n == pytest.approx(0.1, abs=0.015)


@pytest.mark.parametrize("name", ["repeat", "drop_before", "drop_after", "late", "held"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_what_is_no_share_is_refused(name: str, value: float) -> None:
    shares: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} is a share"):
        LinkFaults(seed=0, **shares)
    with pytest.raises(ValueError, match="delay_s cannot be -1"):
        LinkFaults(seed=0, delay_s=-1)


# Calls


def test_without_faults_it_is_the_shard(start_shard: StartShard, make_push: MakePush) -> None:
    link: ShardService = FaultyLink(0, start_shard(), LinkFaults(seed=0))
    into = torch.empty(4)
    reply = link.push(make_push(0, [1, 2, 3, 4]), fetch_into=into)
    assert (reply.status, reply.version) == (PushStatus.APPLIED, Version(1, 1))
    assert into.tolist() == [-1, -2, -3, -4]
    out = torch.zeros(2)
    assert link.fetch(out, begin=1) == Version(1, 1)
    assert out.tolist() == [-2, -3]
    out.zero_()
    assert link.fetch(out, begin=1, unless=Version(1, 1)) == Version(1, 1)
    assert out.tolist() == [0, 0]
    assert isinstance(link, FaultyLink)
    assert link.counts == {"calls": 3}


def test_what_a_fetch_asks_for_reaches_the_shard(start_shard: StartShard) -> None:
    asked: list[dict[str, Any]] = []

    class Asked(Scribbled):
        def fetch(self, out: torch.Tensor, **how: Any) -> Version:
            asked.append(how)
            return self.shard.fetch(out, **how)

    link = link_to(Asked(start_shard()), LinkFaults(seed=0))
    link.fetch(torch.empty(2), begin=2, weights=Weights.AVERAGED, unless=Version(1, 7))
    assert asked == [{"begin": 2, "weights": Weights.AVERAGED, "unless": Version(1, 7)}]


def test_a_call_that_is_lost_on_its_way_was_never_made(
    start_shard: StartShard, make_push: MakePush
) -> None:
    shard = start_shard()
    link = link_to(shard, LinkFaults(seed=0, drop_before=1.0))
    push = make_push(0, [1, 2, 3, 4])
    for call in (lambda: link.push(push), lambda: link.fetch(torch.empty(4), begin=0)):
        with pytest.raises(TransportError) as caught:
            call()
        assert (caught.value.shard, caught.value.code) == (0, "UNAVAILABLE")
    assert push.gradient.tolist() == [1, 2, 3, 4]
    assert shard.state().clock == 0
    assert link.counts == {"calls": 2, "dropped_before": 2}


def test_a_call_whose_answer_is_lost_was_carried_out_and_may_be_made_again(
    start_shard: StartShard, make_push: MakePush
) -> None:
    service = Scribbled(start_shard())
    faults = seed_with(lambda f: f.fate(1).drop_after and not f.fate(2).drop_after, drop_after=0.5)
    link = link_to(service, faults)
    push, into = make_push(0, [1, 2, 3, 4]), torch.full((4,), 9.0)
    with pytest.raises(TransportError):
        link.push(push, fetch_into=into)
    assert (push.gradient.tolist(), into.tolist()) == ([1, 2, 3, 4], [9] * 4)
    assert service.state().clock == 1
    reply = link.push(push, fetch_into=into)
    assert (reply.status, reply.version) == (PushStatus.ALREADY_APPLIED, Version(1, 1))
    assert into.tolist() == [-1, -2, -3, -4]
    assert service.gradients == [[1, 2, 3, 4]] * 2
    assert link.counts == {"calls": 2, "dropped_after": 1}


def test_a_fetch_whose_answer_is_lost_brings_nothing(start_shard: StartShard) -> None:
    link = link_to(start_shard(), LinkFaults(seed=0, drop_after=1.0))
    out = torch.ones(4)
    with pytest.raises(TransportError):
        link.fetch(out, begin=0)
    assert out.isnan().all()


def test_a_call_that_comes_twice_is_answered_once(
    start_shard: StartShard, make_push: MakePush
) -> None:
    service = Scribbled(start_shard())
    link = link_to(service, LinkFaults(seed=0, repeat=1.0))
    into = torch.empty(4)
    reply = link.push(make_push(0, [1, 2, 3, 4]), fetch_into=into)
    assert (reply.status, into.tolist()) == (PushStatus.APPLIED, [-1, -2, -3, -4])
    out = torch.empty(4)
    assert link.fetch(out, begin=0) == Version(1, 1)
    assert service.gradients == [[1, 2, 3, 4]] * 2
    assert (service.state().clock, service.state().repeated) == (1, 1)
    assert link.counts == {"calls": 2, "repeated": 2}


def test_a_late_push_comes_after_so_many_calls_with_the_gradient_that_it_had(
    start_shard: StartShard, make_push: MakePush
) -> None:
    def as_wanted(faults: LinkFaults) -> bool:
        return [faults.fate(call).late_after for call in range(1, 6)] == [3, 0, 0, 0, 1]

    service = Scribbled(start_shard())
    link = link_to(service, seed_with(as_wanted, late=0.4))
    for item in range(3):
        assert link.push(make_push(item, float(item + 1))).status is PushStatus.APPLIED
    assert service.items == [0, 1, 2]
    link.fetch(torch.empty(4), begin=0)  # the third call after it
    assert service.items == [0, 1, 2, 0]
    assert service.gradients[-1] == service.gradients[0] == [1.0] * 4
    link.push(make_push(9))
    assert link.counts == {"calls": 5, "kept": 2, "delivered": 1}
    link.deliver_all()
    link.deliver_all()
    assert service.items == [0, 1, 2, 0, 9, 9]
    assert link.counts == {"calls": 5, "kept": 2, "delivered": 2}


def test_a_held_push_is_overtaken_by_the_next_attempt(
    start_shard: StartShard, make_push: MakePush
) -> None:
    def as_wanted(faults: LinkFaults) -> bool:
        first, *others = (faults.fate(call) for call in range(1, 4))
        return first.held and first.late_after == 2 and not any(f.held for f in others)

    service = Scribbled(start_shard())
    link = link_to(service, seed_with(as_wanted, held=0.3))
    push = make_push(0, 5.0)
    with pytest.raises(TransportError):
        link.push(push)
    assert service.items == []
    assert link.push(push).status is PushStatus.APPLIED
    assert link.push(make_push(1)).status is PushStatus.APPLIED
    assert service.items == [0, 1, 0]
    assert service.state().repeated == 1
    assert link.counts == {"calls": 3, "held": 1, "kept": 1, "delivered": 1}


def test_a_link_that_is_cut_carries_nothing_until_it_is_mended(
    start_shard: StartShard, make_push: MakePush
) -> None:
    service = Scribbled(start_shard())
    link = link_to(service, LinkFaults(seed=0, repeat=1.0, late=1.0, cut=((2, 4), (5, 6))))
    for item in range(6):
        if item in (1, 2, 4):
            with pytest.raises(TransportError, match=r"UNAVAILABLE.*cut on its way"):
                link.push(make_push(item))
        else:
            link.push(make_push(item))
    assert set(service.items) == {0, 3, 5}
    assert link.counts["cut"] == 3


def test_delays_are_those_of_the_plan(start_shard: StartShard, make_push: MakePush) -> None:
    faults, slept = LinkFaults(seed=5, delay_s=0.25), list[float]()
    link = link_to(start_shard(), faults, sleep=slept.append)
    for item in range(5):
        link.push(make_push(item))
    assert slept == [faults.fate(call).delay_s for call in range(1, 6)]
    assert link.counts == {"calls": 5, "delayed": 5}


def test_what_comes_late_to_a_shard_that_is_gone_comes_in_vain(
    start_shard: StartShard, make_push: MakePush
) -> None:
    shard = start_shard()
    link = link_to(shard, LinkFaults(seed=0, late=1.0))
    link.push(make_push(0))
    shard.close()
    link.deliver_all()
    assert link.counts == {"calls": 1, "kept": 1, "delivered": 1, "in_vain": 1}


def test_an_error_of_the_shard_is_the_callers(start_shard: StartShard) -> None:
    link = link_to(start_shard(load=False), LinkFaults(seed=0, repeat=1.0))
    with pytest.raises(ShardRefusedError, match="no initial values"):
        link.fetch(torch.empty(4), begin=0)
    assert link.counts == {"calls": 1}


def test_other_calls_pass_whatever_is_planned() -> None:
    calls: list[tuple[str, tuple[Any, ...]]] = []

    class Told:
        def __getattr__(self, name: str) -> Any:
            def call(*args: Any) -> str:
                calls.append((name, args))
                return f"answer to {name}"

            return call

    link = link_to(Told(), LinkFaults(seed=0, drop_before=1.0, repeat=1.0, cut=((0, 99),)))
    values = torch.zeros(4)
    wanted: dict[str, tuple[Any, ...]] = {
        "load": (values,),
        "set_aside": ((1, 2), "norm"),
        "state": (),
        "pause": (2.5,),
        "save": (3, ((0, 4),), 2.5),
        "feed_twin": ("host:1",),
        "release_twin": (),
        "promote": (),
    }
    answers = {name: getattr(link, name)(*args) for name, args in wanted.items()}
    assert calls == list(wanted.items())
    silent = ("load", "set_aside", "release_twin")
    assert answers == {n: None if n in silent else f"answer to {n}" for n in wanted}
    assert link.counts == {}


# The whole


def test_the_same_items_over_a_bad_link_make_the_same_shard_bit_for_bit(
    start_shard: StartShard, make_push: MakePush
) -> None:
    optimizer = OptimizerConfig(momentum=0.9, weight_decay=0.0, kernel="unfused")
    good, bad = (start_shard(optimizer=optimizer, incarnation=n) for n in (1, 2))
    link = link_to(bad, BAD)
    n_items = 200
    gradients = torch.randn(n_items, 4, generator=torch.Generator().manual_seed(0))
    for item in range(n_items):
        for shard, incarnation in ((good, 1), (link, 2)):
            push = make_push(
                item,
                gradients[item].clone(),
                incarnation=incarnation,
                base=Version(incarnation, item),
                rate=0.1,
            )
            reply = patiently(lambda shard=shard, push=push: shard.push(push))
            assert reply.version == Version(incarnation, item + 1)
    link.deliver_all()
    values = [torch.empty(4), torch.empty(4)]
    versions = [shard.fetch(out, begin=0) for shard, out in zip((good, bad), values, strict=True)]
    assert versions == [Version(1, n_items), Version(2, n_items)]
    assert torch.equal(*values)
    assert bad.state().applied == good.state().applied == ((0, n_items),)
    counts = link.counts
    assert counts["delivered"] == counts["kept"]
    happened = ("dropped_before", "dropped_after", "repeated", "held", "kept")
    assert all(counts[name] > 20 for name in happened), counts
    assert bad.state().repeated > 60


def test_calls_of_many_threads_meet_each_fate_once(
    start_shard: StartShard, in_threads: Callable[..., list[Any]]
) -> None:
    n_threads, n_each = 4, 50
    link = link_to(start_shard(n_ports=n_threads), BAD)

    def fetches() -> int:
        n_lost = 0
        for _ in range(n_each):
            try:
                link.fetch(torch.empty(4), begin=0)
            except TransportError:
                n_lost += 1
        return n_lost

    n_lost = sum(in_threads([fetches] * n_threads))
    fates = [BAD.fate(call) for call in range(1, n_threads * n_each + 1)]
    assert n_lost == sum(fate.drop_before or fate.drop_after for fate in fates) > 20
    assert link.counts == {
        "calls": len(fates),
        "dropped_before": sum(fate.drop_before for fate in fates),
        "dropped_after": sum(fate.drop_after and not fate.drop_before for fate in fates),
        "repeated": sum(fate.repeat and not fate.drop_before for fate in fates),
    }
