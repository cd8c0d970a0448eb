"""A shard's one writer: what it does in order, and what is said when it can do no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distbelief.errors import ProcessLostError, ShardRefusedError, TransportError
from distbelief.faults.points import InjectedError
from distbelief.server.writer import Writer


class Started:
    """A writer, and how often it has told its end."""

    def __init__(self) -> None:
        self.n_ends = 0
        self.writer = Writer(3, 2, 5.0, self._on_end)
        self.writer.start()

    def _on_end(self) -> None:
        self.n_ends += 1

    def fails(self, error: BaseException) -> BaseException:
        """What the caller of a task that raises is told."""

        def work() -> None:
            raise error

        with pytest.raises(type(error) if _is_harmless(error) else ProcessLostError) as caught:
            self.writer.ask(work)
        return caught.value


def _is_harmless(error: BaseException) -> bool:
    return isinstance(error, ShardRefusedError | TransportError)


@pytest.fixture
def started() -> Iterator[Started]:
    started = Started()
    yield started
    started.writer.close()


def test_results_go_to_who_asked_and_an_end_is_told(started: Started) -> None:
    writer = started.writer
    assert [writer.ask(lambda i=i: i * i) for i in range(4)] == [0, 1, 4, 9]  # type: ignore[misc]
    writer.close()
    assert (writer.failure, started.n_ends) == (None, 1)
    with pytest.raises(ProcessLostError, match=r"^shard 3 was lost: it does not run$"):
        writer.ask(lambda: 0)


@pytest.mark.parametrize(
    "error", [ShardRefusedError(3, "size", "4 for 5"), TransportError(3, "TWIN", "not yet")]
)
def test_a_refusal_changes_nothing(error: Exception, started: Started) -> None:
    assert started.fails(error) is error
    assert started.writer.failure is None
    assert started.writer.ask(lambda: 7) == 7


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (InjectedError("before_apply"), "it died at before_apply"),
        (
            OSError(28, "No space left on device"),
            "its push log cannot be written: No space left on device; "
            "make room in the run's folder",
        ),
        (
            OSError("torn"),
            "its push log cannot be written: torn; make room in the run's folder",
        ),
        (ProcessLostError("shard 3", "its twin has its place"), "its twin has its place"),
        (ValueError("a bug"), "ValueError: a bug"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_what_leaves_the_state_in_doubt_ends_it_with_a_sentence(
    error: BaseException, failure: str, started: Started
) -> None:
    lost = started.fails(error)
    # Of a bug its place is told too.
    assert str(lost).partition(" (/")[0] == f"shard 3 was lost: {failure}"
    assert lost.__cause__ is error
    started.writer.close()
    assert str(started.writer.failure).partition(" (/")[0] == failure
    assert started.n_ends == 1
    for act in (lambda: started.writer.ask(lambda: 0), started.writer.check):
        with pytest.raises(ProcessLostError) as caught:
            act()
        assert caught.value.cause == started.writer.failure
