"""How long a step takes: the schedules of ``torch.distributed.pipelining``, without computing.

A stage is a list of what it does in order: it computes, posts a message, or waits for messages. As
with gloo, a message moves once both sides have posted it; what a stage does not wait for moves
behind its compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distbelief.planner.costs import Flow, StageCost


@dataclass(frozen=True, slots=True)
class Prediction:
    """A step as it should go.

    Attributes:
        step_s: Seconds from the first forward pass to the end of the last stage to finish.
        busy: The part of that time that each stage computes.
    """

    step_s: float
    busy: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Message:
    """What passes from one stage to its neighbour for a micro-batch; sender and receiver agree."""

    source: int
    target: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class _Compute:
    seconds: float


@dataclass(frozen=True, slots=True)
class _Post:
    message: _Message


@dataclass(frozen=True, slots=True)
class _Wait:
    messages: tuple[_Message, ...]


_Action = _Compute | _Post | _Wait


def predict(stages: Sequence[StageCost], flow: Flow) -> Prediction:
    """The time of one step.

    Args:
        stages: What each stage does with a micro-batch.
        flow: How many micro-batches flow through them, in which order, over what.
    """
    make = _gpipe if flow.pipeline == "gpipe" else _one_forward_one_backward
    programs = [
        list(make(_Side(i, len(stages), stage), flow.micro_batches))
        for i, stage in enumerate(stages)
    ]
    posted: dict[_Message, float] = {}
    arrived: dict[_Message, float] = {}
    now = [0.0] * len(stages)
    at = [0] * len(stages)
    moved = True
    while moved:
        moved = False
        for i, program in enumerate(programs):
            while at[i] < len(program):
                action = program[at[i]]
                if isinstance(action, _Compute):
                    now[i] += action.seconds
                elif isinstance(action, _Wait):
                    if any(message not in arrived for message in action.messages):
                        break
                    now[i] = max(now[i], *(arrived[m] for m in action.messages))
                elif action.message in posted:
                    both = max(now[i], posted[action.message])
                    nbytes = stages[min(action.message.source, action.message.target)].bytes_out
                    arrived[action.message] = both + flow.link.seconds(nbytes)
                else:
                    posted[action.message] = now[i]
                at[i] += 1
                moved = True
    if any(done < len(program) for done, program in zip(at, programs, strict=True)):
        raise ValueError(f"{flow.micro_batches} micro-batches block {len(stages)} stages")
    step_s = max(now)
    computed = [flow.micro_batches * stage.total_s for stage in stages]
    return Prediction(step_s, tuple(c / step_s if step_s else 0.0 for c in computed))


@dataclass(frozen=True, slots=True)
class _Side:
    """One stage, and the messages between it and its neighbours."""

    index: int
    n_stages: int
    cost: StageCost

    def forward(self) -> _Action:
        return _Compute(self.cost.forward_s)

    def backward(self) -> _Action:
        return _Compute(self.cost.backward_s)

    def taken(self, n: int) -> list[_Message]:
        """What a forward pass takes."""
        return [_Message(self.index - 1, self.index, n)] if self.index > 0 else []

    def given(self, n: int) -> list[_Message]:
        """What a forward pass hands on."""
        last = self.index == self.n_stages - 1
        return [] if last else [_Message(self.index, self.index + 1, n)]

    def taken_back(self, n: int) -> list[_Message]:
        """What a backward pass takes."""
        return [_Message(m.target, m.source, n) for m in self.given(n)]

    def given_back(self, n: int) -> list[_Message]:
        """What a backward pass hands on."""
        return [_Message(m.target, m.source, n) for m in self.taken(n)]


def _post(messages: Sequence[_Message]) -> list[_Action]:
    return [_Post(message) for message in messages]


def _wait(messages: Sequence[_Message]) -> list[_Action]:
    return [_Wait(tuple(messages))] if messages else []


def _exchange(messages: Sequence[_Message]) -> list[_Action]:
    return [*_post(messages), *_wait(messages)]


def _gpipe(side: _Side, micro_batches: int) -> Iterator[_Action]:
    """All forward passes, then all backward passes; what is sent is waited for after each half."""
    for n in range(micro_batches):
        yield from _exchange(side.taken(n))
        yield side.forward()
        yield from _post(side.given(n))
    yield from _wait([m for n in range(micro_batches) for m in side.given(n)])
    for n in range(micro_batches):
        yield from _exchange(side.taken_back(n))
        yield side.backward()
        yield from _post(side.given_back(n))
    yield from _wait([m for n in range(micro_batches) for m in side.given_back(n)])


def _one_forward_one_backward(side: _Side, micro_batches: int) -> Iterator[_Action]:
    """As many forward passes as stages are left, then backward and forward in turn."""
    warm_up = min(micro_batches, side.n_stages - side.index)
    sent: list[_Message] = []
    for n in range(warm_up):
        yield from _exchange(side.taken(n))
        yield side.forward()
        yield from _wait(sent)
        sent = side.given(n) if n < warm_up - 1 else []
        yield from _post(sent)
    pending = side.given(warm_up - 1)
    forwards = warm_up
    for n in range(micro_batches):
        if n <= micro_batches - warm_up:
            # What the last forward pass made leaves together with what comes back.
            yield from _exchange([*pending, *side.taken_back(n)])
            yield side.backward()
            if forwards < micro_batches:
                yield from _exchange([*side.given_back(n), *side.taken(forwards)])
                yield side.forward()
                pending = side.given(forwards)
                forwards += 1
                continue
        else:
            yield from _exchange(side.taken_back(n))
            yield side.backward()
            yield from _wait(sent)
        sent = side.given_back(n)
        yield from _post(sent)
    yield from _wait(sent)
