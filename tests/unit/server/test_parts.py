"""The joints of a shard, step by step, in one thread."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from distbelief.errors import ProcessLostError
from distbelief.server.admission import Verdict
from distbelief.server.joint import Caller, Joint
from distbelief.server.parts import Parts, Turned
from distbelief.types import Push, PushReply, PushStatus, Refusal, Version

MakePush = Callable[..., Push]
FLAW = Verdict(Refusal.RATE, "a flaw")
REPLY = PushReply(status=PushStatus.APPLIED, version=Version(1, 1))


@dataclass
class Bench:
    """The parts of a shard of [10, 16), and what is accounted for."""

    make_push: MakePush
    accounted: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        lost = ProcessLostError("shard 0", "a reason")
        self.parts = Parts(10, 6, lambda item: item in self.accounted, lambda: lost)
        self.parts.start()

    def caller(
        self, begin: int, n: int, *, item: int = 0, lease: int = 1, replica: int = 0
    ) -> Caller:
        push = self.make_push(item, float(begin), size=n, begin=begin, lease=lease, replica=replica)
        return Caller(push, 1.0, None)

    def joined(self, caller: Caller, flaw: Verdict | None = None) -> Joint:
        joint = self.parts.join(caller, flaw)
        assert isinstance(joint, Joint)
        assert caller in joint.callers
        return joint

    def settle(self, item: int) -> list[Joint]:
        return self.parts.settle(item, lambda: self.accounted.add(item))


@pytest.fixture
def bench(make_push: MakePush) -> Bench:
    return Bench(make_push)


def test_the_last_to_be_copied_concludes_it(bench: Bench) -> None:
    parts = bench.parts
    first, second = bench.caller(10, 4), bench.caller(14, 2)
    joint = bench.joined(first)
    assert bench.joined(second) is joint
    parts.copy(joint, second)
    assert not parts.seal(joint)  # the cover is announced, the first not copied yet
    parts.copy(joint, first)
    assert parts.seal(joint)
    assert not parts.seal(joint)  # once
    assert joint.vector is not None
    assert joint.vector.tolist() == [10.0] * 4 + [14.0] * 2


def test_what_could_not_be_concluded_is_left_to_another(bench: Bench) -> None:
    parts = bench.parts
    for caller in (first := bench.caller(10, 4), second := bench.caller(14, 2)):
        joint = bench.joined(caller)
        parts.copy(joint, caller)
    assert parts.seal(joint)
    parts.unseal(joint)
    assert parts.leave(joint, second)
    again = bench.caller(14, 2)
    assert bench.joined(again) is joint
    assert not parts.seal(joint)  # it is being copied anew
    parts.copy(joint, again)
    assert parts.seal(joint)
    assert joint.callers == [first, again]


def test_to_a_sealed_joint_nothing_is_copied_any_more(bench: Bench) -> None:
    parts = bench.parts
    for caller in (bench.caller(10, 4), bench.caller(14, 2)):
        joint = bench.joined(caller)
        parts.copy(joint, caller)
    assert parts.seal(joint)
    again = bench.caller(14, 2)
    again.push.gradient.fill_(99.0)
    assert bench.joined(again) is joint
    parts.copy(joint, again)
    assert joint.vector is not None
    assert joint.vector.tolist() == [10.0] * 4 + [14.0] * 2
    assert not parts.seal(joint)


def test_a_vector_is_not_used_again_while_somebody_writes_to_it(bench: Bench) -> None:
    parts = bench.parts
    slow, quick = bench.caller(10, 4), bench.caller(14, 2)
    joint = bench.joined(slow)
    bench.joined(quick)
    parts.copy(joint, quick)
    vector = joint.vector
    assert bench.settle(0) == [joint]
    other = bench.joined(bench.caller(10, 4, item=1, lease=2))
    assert other.vector is not vector
    parts.copy(joint, slow)  # now it is free
    third = bench.joined(bench.caller(10, 4, item=1, lease=2, replica=1))
    assert third.vector is vector


def test_a_part_that_could_not_be_copied_has_not_come(bench: Bench) -> None:
    parts = bench.parts
    bad = Caller(bench.make_push(0, torch.ones(2, 2), begin=10, lease=1), 1.0, None)
    joint = bench.joined(bad)
    with pytest.raises(RuntimeError):
        parts.copy(joint, bad)
    rest = bench.caller(14, 2)
    bench.joined(rest)
    parts.copy(joint, rest)
    assert not parts.seal(joint)
    assert bench.settle(0) == [joint]
    assert len(parts._free) == 1


def test_who_is_being_answered_cannot_leave(bench: Bench) -> None:
    parts = bench.parts
    stays, leaves = bench.caller(10, 4), bench.caller(10, 4)
    joint = bench.joined(stays)
    bench.joined(leaves)
    assert parts.leave(joint, leaves)
    bench.settle(0)
    assert not parts.leave(joint, stays)
    assert joint.callers == [stays]
    parts.answer(stays, REPLY)
    assert stays.wait(0.0) is REPLY


def test_an_item_that_is_accounted_for_is_joined_by_nobody(bench: Bench) -> None:
    joint = bench.joined(bench.caller(10, 4))
    assert bench.settle(1) == []
    assert bench.settle(0) == [joint]
    assert bench.settle(0) == []
    assert bench.parts.join(bench.caller(14, 2), None) is None
    assert bench.parts.join(bench.caller(14, 2), FLAW) is None


def test_of_one_item_all_replicas_joints_end_together(bench: Bench) -> None:
    joints = [bench.joined(bench.caller(10, 4, replica=replica)) for replica in range(3)]
    other = bench.joined(bench.caller(10, 4, item=1, replica=3))
    assert bench.settle(0) == joints
    assert [joint.closed for joint in (*joints, other)] == [True, True, True, False]


def test_a_flaw_is_concluded_at_once_and_stays(bench: Bench) -> None:
    parts = bench.parts
    good, bad = bench.caller(10, 2), bench.caller(12, 2)
    joint = bench.joined(good)
    parts.copy(joint, good)
    assert not parts.seal(joint)
    bench.joined(bad, FLAW)
    parts.copy(joint, bad)  # nothing to copy
    assert parts.seal(joint)
    parts.refuse(joint, FLAW)
    assert (joint.flaw, joint.closed) == (FLAW, True)
    assert parts.join(bench.caller(14, 2), None) == Turned(FLAW, again=True)
    assert bench.settle(0) == []  # it had ended before
    assert parts._joints == {}


def test_leases(bench: Bench) -> None:
    parts = bench.parts
    old = bench.joined(bench.caller(10, 4, item=1, lease=5))
    turned = parts.join(bench.caller(10, 4, item=2, lease=4), None)
    assert isinstance(turned, Turned)
    assert (turned.verdict.reason, turned.again) == (Refusal.LEASE, False)
    later = bench.caller(10, 4, item=2, lease=6)
    assert parts.join(later, None) is old  # in the way
    assert later not in old.callers
    parts.displace(old)
    new = bench.joined(later)
    assert new is not old
    parts.refuse(new, FLAW)
    assert bench.joined(bench.caller(10, 4, item=2, lease=7)) is not new  # in nobody's way


def test_when_it_is_abandoned_everybody_is_told(bench: Bench) -> None:
    parts = bench.parts
    waiting, answered, claimed = (bench.caller(10, 4, item=i, replica=i) for i in range(3))
    for caller in (waiting, answered, claimed):
        joint = bench.joined(caller)
        parts.copy(joint, caller)
    for item in (1, 2):
        bench.settle(item)
    parts.answer(answered, REPLY)
    parts.abandon()
    assert answered.wait(0.0) is REPLY
    for caller in (waiting, claimed):
        with pytest.raises(ProcessLostError, match="a reason"):
            caller.wait(0.0)
    with pytest.raises(ProcessLostError, match="a reason"):
        parts.join(bench.caller(10, 4, item=9), None)
