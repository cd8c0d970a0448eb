"""What becomes of a push, whole or in parts: admitted, applied once, logged, answered."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from distbelief.errors import ProcessLostError, TransportError
from distbelief.faults.points import Injector
from distbelief.server.admission import (
    AdmissionRules,
    Verdict,
    check_content,
    check_header,
    check_norm,
    check_version,
    is_part,
    norm_of,
    staleness,
)
from distbelief.server.contents import Contents
from distbelief.server.joint import Caller, Joint
from distbelief.server.mirror import Mirror
from distbelief.server.parts import Parts, Turned
from distbelief.server.pause import Gate, Pause
from distbelief.server.pushlog import LogEntry, PushLog
from distbelief.server.spec import ShardSpec
from distbelief.server.writer import Writer
from distbelief.types import Push, PushReply, PushStatus, Refusal


class Pushes:
    """Takes pushes for a shard; its state changes in tasks of the shard's writer alone.

    A whole push is one task. Parts wait in :class:`~distbelief.server.parts.Parts`; the call that
    makes a joint complete has the writer apply it, and answer all that wait with it, in one task.

    Args:
        spec: The shard.
        contents: What pushes change.
        gate: Holds pushes back during a pause.
        writer: Does the tasks.
        mirror: Has a twin take each push first, if there is one.
        injector: Fails where tests want it to.

    Attributes:
        log: Where entries go; there is none as long as nothing can be applied.
    """

    def __init__(
        self,
        spec: ShardSpec,
        contents: Contents,
        gate: Gate,
        writer: Writer,
        mirror: Mirror,
        injector: Injector,
    ) -> None:
        self._spec = spec
        self._contents = contents
        self._gate = gate
        self._writer = writer
        self._mirror = mirror
        self._injector = injector
        self.log: PushLog | None = None
        self._rules = AdmissionRules(
            layout=spec.layout,
            incarnation=spec.incarnation,
            begin=spec.begin,
            end=spec.end,
            max_norm=spec.optimizer.max_norm,
            max_staleness=spec.optimizer.max_staleness,
        )
        self._parts = Parts(
            spec.begin, spec.size, lambda item: item in contents.account, self._lost
        )

    def start(self) -> None:
        """The writer runs."""
        self._parts.start()

    def abandon(self) -> None:
        """The writer has ended: parts that wait fail, and so do those that come."""
        self._parts.abandon()

    def push(self, push: Push, fetch_into: torch.Tensor | None) -> PushReply:
        """See :class:`~distbelief.services.ParameterService`."""
        if is_part(push, self._rules):
            return self._push_part(push, fetch_into)
        return self._push_whole(push, fetch_into, check_content(push, self._rules))

    def set_aside(self, items: tuple[int, ...], reason: str) -> None:
        """Marks items as never to be applied, a twin first. For the writer."""
        account, log = self._contents.account, self.require_log()
        new = tuple(item for item in dict.fromkeys(items) if item not in account)
        if new:
            self._mirror.mirror_set_aside(new, reason)
        for item in new:
            joints = self._parts.settle(item, partial(account.set_aside.__setitem__, item, reason))
            log.set_aside(item, reason)
            self._gate.note(item)
            for joint in joints:
                self._answer(joint, self._reply(PushStatus.SET_ASIDE))
        log.flush()

    def require_log(self) -> PushLog:
        """The push log, of a shard that can apply pushes. For the writer."""
        if self.log is None:
            raise ValueError(f"shard {self._spec.index} has no push log yet")
        return self.log

    def follow(self, push: Push, stale: int | None) -> None:
        """Applies what a primary has admitted, of the whole range. For the writer."""
        self._apply(push, stale)

    # In the threads of callers

    def _push_whole(
        self, push: Push, fetch_into: torch.Tensor | None, verdict: Verdict | None
    ) -> PushReply:
        while True:
            outcome = self._writer.ask(lambda: self._take(push, fetch_into, verdict))
            if isinstance(outcome, PushReply):
                return outcome
            outcome.wait()

    def _push_part(self, push: Push, fetch_into: torch.Tensor | None) -> PushReply:
        if not self._contents.loaded:
            self._writer.ask(self._contents.require_loaded)
        flaw, norm = check_header(push, self._rules), 0.0
        if flaw is None:
            norm = norm_of(push.gradient)
            flaw = check_norm(norm, self._rules)
        caller = Caller(push, norm, fetch_into)
        while True:
            joint = self._parts.join(caller, flaw)
            if joint is None:
                return self._push_whole(push, fetch_into, None)
            if isinstance(joint, Turned):
                if joint.again:
                    return self._refused(joint.verdict)
                return self._writer.ask(partial(self._refuse, push.item, joint.verdict))
            if joint.of(push):
                return self._wait(joint, caller)
            self._writer.ask(partial(self._displace, joint))

    def _wait(self, joint: Joint, caller: Caller) -> PushReply:
        self._parts.copy(joint, caller)
        if self._parts.seal(joint):
            if (verdict := check_norm(joint.norm, self._rules)) is not None:
                joint.flaw = joint.flaw or verdict
            try:
                while (pause := self._writer.ask(lambda: self._conclude(joint))) is not None:
                    pause.wait()
            except TransportError:
                if self._parts.leave(joint, caller):
                    raise
            finally:
                self._parts.unseal(joint)
        try:
            return caller.wait(self._spec.parts_wait_s)
        except TimeoutError as error:
            if not self._parts.leave(joint, caller):
                return caller.wait()
            detail = f"no other parts of item {joint.item} for {self._spec.parts_wait_s:g} s"
            raise TransportError(self._spec.index, "PARTS", detail) from error

    def _refused(self, verdict: Verdict) -> PushReply:
        return PushReply(
            status=PushStatus.REFUSED,
            version=self._contents.version,
            refusal=verdict.reason,
            detail=verdict.detail,
        )

    def _lost(self) -> ProcessLostError:
        cause = self._writer.failure or "it does not run"
        return ProcessLostError(f"shard {self._spec.index}", cause)

    # In the writer's thread

    def _take(
        self, push: Push, fetch_into: torch.Tensor | None, verdict: Verdict | None
    ) -> PushReply | Pause:
        contents = self._contents
        contents.require_loaded()
        account = contents.account
        if push.item in account.applied:
            account.repeated += 1
            status, stale = PushStatus.ALREADY_APPLIED, None
        elif push.item in account.set_aside:
            status, stale = PushStatus.SET_ASIDE, None
        elif (pause := self._gate.held(push.item)) is not None:
            return pause
        else:
            verdict = verdict or check_version(push.base, contents.version, self._rules)
            if verdict is not None:
                return self._refuse(push.item, verdict)
            status, stale = PushStatus.APPLIED, staleness(push.base, contents.version)
            for overtaken in self._apply(push, stale):
                self._overtake(overtaken)
        fetched = contents.fetch_for_push(fetch_into, push.begin)
        return PushReply(status=status, version=contents.version, staleness=stale, fetched=fetched)

    def _conclude(self, joint: Joint) -> Pause | None:
        """Applies a complete joint and refuses a flawed one, unless it has come to its end."""
        if joint.closed:
            return None
        verdict, now = joint.flaw, self._contents.version
        if verdict is None:
            if (pause := self._gate.held(joint.item)) is not None:
                return pause
            checks = (check_version(base, now, self._rules) for base in joint.bases)
            verdict = next((check for check in checks if check is not None), None)
        if verdict is not None:
            self._parts.refuse(joint, verdict)
            self._answer(joint, self._refuse(joint.item, verdict))
            return None
        push = joint.whole(self._spec.begin, self._spec.incarnation)
        stale = staleness(push.base, now)
        ended = self._apply(push, stale)
        self._answer(joint, self._reply(PushStatus.APPLIED, stale))
        for overtaken in ended:
            if overtaken is not joint:
                self._overtake(overtaken)
        return None

    def _displace(self, joint: Joint) -> None:
        if not joint.closed:
            self._parts.displace(joint)
            verdict = Verdict(Refusal.LEASE, "its replica has gone on to another lease")
            self._answer(joint, self._refuse(joint.item, verdict))

    def _overtake(self, joint: Joint) -> None:
        """Answers for a joint whose item another push has just brought."""
        self._contents.account.repeated += 1
        self._answer(joint, self._reply(PushStatus.ALREADY_APPLIED))

    def _refuse(self, item: int, verdict: Verdict) -> PushReply:
        self._contents.account.refused[verdict.reason] += 1
        self._gate.refused(item)
        return self._refused(verdict)

    def _apply(self, push: Push, stale: int | None) -> list[Joint]:
        """Applies a push of the whole range; returns the joints of its item, now ended."""
        contents, account, injector = self._contents, self._contents.account, self._injector
        log = self.require_log()
        injector.at("before_apply")
        if self._mirror.twin:
            injector.at("before_mirror")
            self._mirror.mirror(push, account.clock + 1, stale)
            injector.at("after_mirror_before_apply")
        contents.apply(push)
        joints = self._parts.settle(push.item, lambda: account.add(push, stale))
        contents.average()
        injector.at("after_apply_before_log")
        log.append(
            LogEntry(
                item=push.item,
                clock=account.clock,
                base=(push.base.incarnation, push.base.clock),
                rate=push.rate,
                replica=push.replica,
                examples=push.examples,
                skipped=push.skipped,
            )
        )
        self._gate.note(push.item)
        injector.at("after_apply_before_answer")
        return joints

    def _reply(self, status: PushStatus, stale: int | None = None) -> PushReply:
        return PushReply(status=status, version=self._contents.version, staleness=stale)

    def _answer(self, joint: Joint, reply: PushReply) -> None:
        """Answers all callers of a closed joint, each with the newest values that it asked for."""
        refused = reply.status is PushStatus.REFUSED
        for caller in joint.callers:
            into = None if refused else caller.fetch_into
            fetched = self._contents.fetch_for_push(into, caller.push.begin)
            self._parts.answer(caller, replace(reply, fetched=fetched))
        joint.callers.clear()
