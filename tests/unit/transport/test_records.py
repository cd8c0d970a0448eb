"""Records through their messages and back."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.transport import records
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

numbers = st.integers(0, 2**63 - 1)
small = st.integers(0, 2**32 - 1)
versions = st.builds(Version, numbers, numbers)


def through(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


@settings(deadline=None, max_examples=60)
@given(versions)
def test_version(version: Version) -> None:
    assert records.version_from_wire(through(records.version_to_wire(version))) == version


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(Weights), st.none() | versions, numbers, numbers)
def test_fetch(weights: Weights, unless: Version | None, begin: int, n_elements: int) -> None:
    request = through(records.fetch_to_wire(weights, unless, begin, n_elements))
    assert records.fetch_from_wire(request) == (weights, unless)
    assert (request.begin, request.n_elements) == (begin, n_elements)


@settings(deadline=None, max_examples=60)
@given(
    st.builds(
        Push,
        item=numbers,
        lease=numbers,
        replica=small,
        begin=numbers,
        incarnation=numbers,
        base=versions,
        rate=st.floats(allow_nan=False),
        examples=small,
        skipped=st.lists(numbers, max_size=5).map(tuple),
        layout=st.text(max_size=20),
        gradient=st.just(torch.zeros(3)),
    ),
    st.booleans(),
)
def test_push(push: Push, fetch: bool) -> None:
    header = through(records.push_to_wire(push, fetch=fetch))
    assert (header.n_elements, header.fetch) == (3, fetch)
    back = records.push_from_wire(header, push.gradient)
    assert back == push
    assert back.gradient is push.gradient


@pytest.mark.parametrize("status", PushStatus)
@pytest.mark.parametrize("staleness", [None, 0, 5])
@pytest.mark.parametrize("n_elements", [0, 4])
def test_reply(status: PushStatus, staleness: int | None, n_elements: int) -> None:
    version = Version(2, 7)
    reply = PushReply(
        status=status,
        version=version,
        detail="ein Grund: ∞",
        staleness=staleness,
        fetched=version if n_elements else None,
    )
    assert records.reply_from_wire(through(records.reply_to_wire(reply, n_elements))) == reply


@pytest.mark.parametrize("refusal", Refusal)
def test_every_refusal(refusal: Refusal) -> None:
    reply = PushReply(
        status=PushStatus.REFUSED, version=Version(1, 0), refusal=refusal, detail="why"
    )
    back = records.reply_from_wire(through(records.reply_to_wire(reply, 0)))
    assert back == reply
    assert back.refusal is refusal


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (pb.PushResult(status=0), "0 is none of"),
        (pb.PushResult(status=99), "99 is none of"),
        (pb.PushResult(status=pb.PUSH_STATUS_REFUSED, refusal="mood"), "'mood' is none of .*stale"),
        (pb.PushResult(status=pb.PUSH_STATUS_REFUSED, refusal="busy"), "'busy' is none of"),
    ],
)
def test_an_answer_of_a_later_version_is_malformed(result: pb.PushResult, text: str) -> None:
    with pytest.raises(MalformedError, match=f"^{text}"):
        records.reply_from_wire(through(result))


def test_weights_of_a_later_version_are_malformed() -> None:
    with pytest.raises(MalformedError, match=r"^99 is none of"):
        records.fetch_from_wire(through(pb.FetchRequest(weights=99)))


states = st.builds(
    ShardState,
    shard=small,
    incarnation=numbers,
    begin=numbers,
    end=numbers,
    loaded=st.booleans(),
    clock=numbers,
    examples=numbers,
    skipped=numbers,
    applied=st.lists(st.tuples(numbers, numbers), max_size=4).map(tuple),
    set_aside=st.dictionaries(numbers, st.text(max_size=10), max_size=3),
    repeated=numbers,
    refused=st.dictionaries(st.sampled_from([r.value for r in Refusal]), numbers, max_size=3),
    staleness=st.dictionaries(numbers, numbers, max_size=4),
    queued=small,
    nbytes_received=numbers,
    nbytes_sent=numbers,
    traffic=st.dictionaries(st.text(max_size=10), numbers, max_size=3),
)


@settings(deadline=None, max_examples=60)
@given(states)
def test_state(state: ShardState) -> None:
    assert records.state_from_wire(through(records.state_to_wire(state))) == state


@settings(deadline=None, max_examples=60)
@given(numbers, st.sets(numbers, max_size=8), st.floats(0, records.MAX_PAUSE_S))
def test_save(snapshot: int, bounds: set[int], seconds: float) -> None:
    ends = sorted(bounds)
    items: Intervals = tuple(zip(ends[::2], ends[1::2], strict=False))
    request = through(records.save_to_wire(snapshot, items, seconds))
    assert records.save_from_wire(request) == (snapshot, items, seconds)


@settings(deadline=None, max_examples=60)
@given(
    st.builds(
        ShardFile,
        name=st.text(max_size=20),
        nbytes=numbers,
        sha256=st.text("0123456789abcdef", max_size=64),
        n_shards=small,
        state=states,
        paused_s=st.floats(0, 1e6),
    )
)
def test_file(file: ShardFile) -> None:
    assert records.file_from_wire(through(records.file_to_wire(file))) == file
