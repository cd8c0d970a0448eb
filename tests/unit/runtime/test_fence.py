"""A shard's process finds out by the run's folder that it has been given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from distbelief.errors import ProcessLostError
from distbelief.runtime import fence as module
from distbelief.runtime.fence import STALE_S, Fence
from distbelief.serving import NAME, Endpoint, Serving, write_serving
from distbelief.storage import LocalStorage

DEADLINE_S = 20.0


def serving(incarnation: int, *, run: int = 1) -> Serving:
    endpoint = Endpoint(shard=1, begin=0, end=4, incarnation=incarnation, address="h:1")
    return Serving(number=incarnation, run=run, shards=(endpoint,))


class Clock:
    """Stands still unless it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


# Without its thread: a process that was stopped, and has just been woken


def test_a_look_that_is_old_does_not_count(clock: Clock, storage: LocalStorage) -> None:
    fence = Fence(storage, 1, 2, 1)
    write_serving(storage, serving(2))
    fence()
    write_serving(storage, serving(3))
    clock.now += STALE_S
    fence()  # its last look is young enough
    clock.now += 0.001
    with pytest.raises(ProcessLostError) as caught:
        fence()
    assert (caught.value.what, caught.value.cause) == (
        "shard 1",
        "start 2 of it has been replaced",
    )
    assert fence.fenced == "start 2 of it has been replaced"
    write_serving(storage, serving(2))
    with pytest.raises(ProcessLostError):
        fence()  # once and for all


@pytest.mark.parametrize(
    ("found", "passes"),
    [
        (None, True),
        (serving(2), True),
        (serving(1), True),  # it is being started, and is not named yet
        (serving(3), False),
        (serving(1, run=2), False),  # the run goes on elsewhere
    ],
)
def test_whom_it_lets_pass(
    found: Serving | None, passes: bool, clock: Clock, storage: LocalStorage
) -> None:
    fence = Fence(storage, 1, 2, 1)
    if found is not None:
        write_serving(storage, found)
    clock.now += 2 * STALE_S
    if passes:
        fence()
        assert fence.fenced == ""
    else:
        with pytest.raises(ProcessLostError):
            fence()


@pytest.mark.parametrize("harm", ["damaged", "unreadable"])
def test_a_folder_that_cannot_be_read_is_no_reason_to_stop(
    harm: str, clock: Clock, storage: LocalStorage, tmp_path: Path
) -> None:
    fence = Fence(storage, 1, 2, 1)
    if harm == "damaged":
        (tmp_path / NAME).write_text("{")
    else:
        (tmp_path / NAME).mkdir()
    clock.now += 2 * STALE_S
    fence()
    # The next call looks again, since that was no look.
    if harm == "unreadable":
        (tmp_path / NAME).rmdir()
    write_serving(storage, serving(3))
    with pytest.raises(ProcessLostError):
        fence()


def test_many_calls_look_once(
    clock: Clock, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[None] = []
    monkeypatch.setattr(module, "read_serving", lambda storage: looks.append(None))
    fence = Fence(storage, 1, 2, 1)
    fence()
    assert looks == []
    clock.now += 2 * STALE_S
    for _ in range(5):
        fence()
    assert len(looks) == 1


# With its thread


def until(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_at, "it never came true"
        time.sleep(0.001)


def test_it_looks_by_itself_and_ends_with_its_block(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.002)
    write_serving(storage, serving(2))
    with Fence(storage, 1, 2, 1) as fence:
        fence()
        write_serving(storage, serving(3))
        until(lambda: fence.fenced)
        with pytest.raises(ProcessLostError):
            fence()
    assert "fence" not in {thread.name for thread in threading.enumerate()}


def test_its_block_ends_though_nothing_has_happened(storage: LocalStorage) -> None:
    with Fence(storage, 1, 2, 1) as fence:
        assert "fence" in {thread.name for thread in threading.enumerate()}
        fence()
    assert "fence" not in {thread.name for thread in threading.enumerate()}
