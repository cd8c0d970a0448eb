"""Between the records of ``types.py`` and the messages of the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch

from distbelief.transport._generated import parameter_server_pb2 as pb
from distbelief.transport.codec import MalformedError
from distbelief.types import (
    Intervals,
    Push,
    PushReply,
    PushStatus,
    Refusal,
    ShardFile,
    ShardState,
    Version,
    Weights,
)

MAX_TEXT_LENGTH = 1024
"""Of what a caller says in words, in characters."""

MAX_PAUSE_S = 1800.0
"""So long pushes are held back at most."""

_STATUS = {
    PushStatus.APPLIED: pb.PUSH_STATUS_APPLIED,
    PushStatus.ALREADY_APPLIED: pb.PUSH_STATUS_ALREADY_APPLIED,
    PushStatus.SET_ASIDE: pb.PUSH_STATUS_SET_ASIDE,
    PushStatus.REFUSED: pb.PUSH_STATUS_REFUSED,
}
_STATUS_BACK = {number: status for status, number in _STATUS.items()}
_WEIGHTS = {
    Weights.LATEST: pb.WEIGHTS_LATEST,
    Weights.AVERAGED: pb.WEIGHTS_AVERAGED,
    Weights.PREDICTED: pb.WEIGHTS_PREDICTED,
}
_WEIGHTS_BACK = {number: weights for weights, number in _WEIGHTS.items()}


_REFUSALS = {str(refusal): refusal for refusal in Refusal}

K = TypeVar("K")
V = TypeVar("V")


def _known(values: Mapping[K, V], key: K) -> V:
    """Numbers and words of a later version are not ours to guess."""
    if key not in values:
        raise MalformedError(f"{key!r} is none of {sorted(map(str, values))}")
    return values[key]


def version_to_wire(version: Version) -> pb.Version:
    """As a message."""
    return pb.Version(incarnation=version.incarnation, clock=version.clock)


def version_from_wire(version: pb.Version) -> Version:
    """From a message."""
    return Version(version.incarnation, version.clock)


def fetch_to_wire(
    weights: Weights, unless: Version | None, begin: int, n_elements: int
) -> pb.FetchRequest:
    """A fetch's request."""
    return pb.FetchRequest(
        weights=_WEIGHTS[weights],
        unless=None if unless is None else version_to_wire(unless),
        begin=begin,
        n_elements=n_elements,
    )


def fetch_from_wire(request: pb.FetchRequest) -> tuple[Weights, Version | None]:
    """Which weights a fetch's request asks for, and what its sender has."""
    known = version_from_wire(request.unless) if request.HasField("unless") else None
    return _known(_WEIGHTS_BACK, request.weights), known


def push_to_wire(push: Push, *, fetch: bool) -> pb.PushHeader:
    """A push without its gradient."""
    return pb.PushHeader(
        item=push.item,
        lease=push.lease,
        replica=push.replica,
        begin=push.begin,
        incarnation=push.incarnation,
        n_elements=push.gradient.numel(),
        base=version_to_wire(push.base),
        rate=push.rate,
        examples=push.examples,
        skipped=push.skipped,
        layout=push.layout,
        fetch=fetch,
    )


def push_from_wire(header: pb.PushHeader, gradient: torch.Tensor) -> Push:
    """A push, with the gradient that was received for it."""
    if len(header.layout) > MAX_TEXT_LENGTH:
        raise MalformedError(f"a fingerprint of {len(header.layout)} characters")
    return Push(
        item=header.item,
        lease=header.lease,
        replica=header.replica,
        begin=header.begin,
        incarnation=header.incarnation,
        base=version_from_wire(header.base),
        rate=header.rate,
        examples=header.examples,
        skipped=tuple(header.skipped),
        layout=header.layout,
        gradient=gradient,
    )


def mirror_to_wire(push: Push, clock: int, staleness: int | None) -> pb.MirrorHeader:
    """A push for a twin, without its gradient."""
    return pb.MirrorHeader(push=push_to_wire(push, fetch=False), clock=clock, staleness=staleness)


def mirror_from_wire(
    header: pb.MirrorHeader, gradient: torch.Tensor
) -> tuple[Push, int, int | None]:
    """A push for a twin, with the gradient that was received for it; clock and staleness."""
    staleness = header.staleness if header.HasField("staleness") else None
    return push_from_wire(header.push, gradient), header.clock, staleness


def reply_to_wire(reply: PushReply, n_elements: int) -> pb.PushResult:
    """A push's answer, which ``n_elements`` of parameters follow."""
    return pb.PushResult(
        status=_STATUS[reply.status],
        version=version_to_wire(reply.version),
        refusal=reply.refusal or "",
        detail=reply.detail,
        staleness=reply.staleness,
        n_elements=n_elements,
    )


def reply_from_wire(result: pb.PushResult) -> PushReply:
    """A push's answer."""
    version = version_from_wire(result.version)
    return PushReply(
        status=_known(_STATUS_BACK, result.status),
        version=version,
        refusal=_known(_REFUSALS, result.refusal) if result.refusal else None,
        detail=result.detail,
        staleness=result.staleness if result.HasField("staleness") else None,
        fetched=version if result.n_elements else None,
    )


def state_to_wire(state: ShardState) -> pb.StateReply:
    """A shard's account."""
    return pb.StateReply(
        shard=state.shard,
        incarnation=state.incarnation,
        begin=state.begin,
        end=state.end,
        loaded=state.loaded,
        clock=state.clock,
        examples=state.examples,
        skipped=state.skipped,
        applied=[pb.Interval(begin=b, end=e) for b, e in state.applied],
        set_aside=state.set_aside,
        repeated_pushes=state.repeated,
        refused=state.refused,
        staleness=state.staleness,
        queued=state.queued,
        nbytes_received=state.nbytes_received,
        nbytes_sent=state.nbytes_sent,
        traffic=state.traffic,
        twin=state.twin,
        follows=state.follows,
        trouble=state.trouble,
    )


def state_from_wire(reply: pb.StateReply) -> ShardState:
    """A shard's account."""
    return ShardState(
        shard=reply.shard,
        incarnation=reply.incarnation,
        begin=reply.begin,
        end=reply.end,
        loaded=reply.loaded,
        clock=reply.clock,
        examples=reply.examples,
        skipped=reply.skipped,
        applied=tuple((i.begin, i.end) for i in reply.applied),
        set_aside=dict(reply.set_aside),
        repeated=reply.repeated_pushes,
        refused=dict(reply.refused),
        staleness=dict(reply.staleness),
        queued=reply.queued,
        nbytes_received=reply.nbytes_received,
        nbytes_sent=reply.nbytes_sent,
        traffic=dict(reply.traffic),
        twin=reply.twin,
        follows=reply.follows,
        trouble=reply.trouble,
    )


def save_to_wire(snapshot: int, items: Intervals, seconds: float) -> pb.SaveRequest:
    """A request to save."""
    return pb.SaveRequest(
        snapshot=snapshot,
        items=[pb.Interval(begin=b, end=e) for b, e in items],
        seconds=seconds,
    )


def save_from_wire(request: pb.SaveRequest) -> tuple[int, Intervals, float]:
    """What a request to save asks for; MalformedError if its items are no set, or endless."""
    items = tuple((i.begin, i.end) for i in request.items)
    last = -1
    for begin, end in items:
        if not last < begin < end:
            raise MalformedError(f"[{begin}, {end}) after an interval that ends at {last}")
        last = end
    return request.snapshot, items, seconds_from_wire(request.seconds)


def seconds_from_wire(seconds: float) -> float:
    """A time to hold pushes back for."""
    if not 0.0 <= seconds <= MAX_PAUSE_S:
        raise MalformedError(f"a pause of {seconds} s; it may last {MAX_PAUSE_S:g} s")
    return seconds


def reason_from_wire(reason: str) -> str:
    """Why items are set aside; a shard's account repeats it for each of them."""
    if len(reason) > MAX_TEXT_LENGTH:
        raise MalformedError(f"a reason of {len(reason)} characters")
    return reason


def file_to_wire(file: ShardFile) -> pb.SaveReply:
    """What was saved."""
    return pb.SaveReply(
        name=file.name,
        nbytes=file.nbytes,
        sha256=file.sha256,
        n_shards=file.n_shards,
        state=state_to_wire(file.state),
        paused_s=file.paused_s,
    )


def file_from_wire(reply: pb.SaveReply) -> ShardFile:
    """What was saved."""
    return ShardFile(
        name=reply.name,
        nbytes=reply.nbytes,
        sha256=reply.sha256,
        n_shards=reply.n_shards,
        state=state_from_wire(reply.state),
        paused_s=reply.paused_s,
    )
