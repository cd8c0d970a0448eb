"""A run that ends before it has begun leaves the folder as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from distbelief.config import TrainConfig
from distbelief.coordinator.snapshots import Manifest
from distbelief.errors import ConfigError, RunError
from distbelief.observe.view import Lines
from distbelief.runtime import train as module
from distbelief.runtime.beginning import begin
from distbelief.runtime.claim import claimed
from distbelief.runtime.folder import PROBE
from distbelief.runtime.prepare import Prepared, prepare
from distbelief.runtime.runs import Resume
from distbelief.runtime.signals import Stop
from distbelief.runtime.train import train
from distbelief.server.statefile import digest, file_name
from distbelief.storage import LocalStorage, Storage, write_json
from distbelief.types import ShardFile, ShardState


def start(config: TrainConfig) -> dict[str, Any]:
    return train(config, Lines(lambda line: None), Stop())


def no_world(prepared: object, stop: object) -> Any:
    raise RunError("there is no room")


def test_a_run_that_never_began_is_taken_back(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_local", no_world)
    with pytest.raises(RunError, match="no room"):
        start(tiny())
    assert list(tmp_path.iterdir()) == []


def test_what_else_is_in_the_folder_stays(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    monkeypatch.setattr(module, "_local", no_world)
    with pytest.raises(RunError):
        start(tiny())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_folder_in_use_is_not_touched(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "run")
    with claimed(storage):
        with pytest.raises(ConfigError, match="is in use by process"):
            start(tiny())
        assert storage.names() == []


def test_a_file_in_place_of_the_folder_is_told(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match="is a file; give a folder") as caught:
        start(tiny())
    assert caught.value.field == "run_dir"
    assert (tmp_path / "run").read_text() == "mine"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def leave_a_run(config: TrainConfig) -> None:
    """What a run has written once it has ended."""
    prepared = prepare(config)
    begin(prepared)
    manifest = Manifest(
        number=0,
        even=True,
        examples_applied=90,
        layout=prepared.layout.fingerprint,
        n_parameters=prepared.layout.size,
        elapsed_s=1.0,
        files=(file_of_all(prepared),),
    )
    write_json(prepared.storage, "snapshots/000000/manifest.json", manifest.to_dict())
    write_json(prepared.storage, "summary.json", {"status": "finished"})
    prepared.storage.write("model.safetensors", b"weights")


def file_of_all(prepared: Prepared) -> ShardFile:
    state = ShardState(
        shard=0,
        incarnation=1,
        begin=0,
        end=prepared.layout.size,
        loaded=True,
        clock=0,
        examples=0,
        skipped=0,
        applied=(),
        set_aside={},
        repeated=0,
    )
    content = b"state"
    name = file_name(0, 1)
    prepared.storage.write(f"snapshots/000000/{name}", content)
    return ShardFile(
        name=name, nbytes=len(content), sha256=digest(content), n_shards=1, state=state
    )


def test_a_run_that_has_ended_while_another_waited_for_its_folder_is_left_as_it_is(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is looked at once it is held, not before."""
    before: list[dict[str, bytes]] = []

    @contextmanager
    def after_the_other(storage: Storage, **options: Any) -> Iterator[None]:
        leave_a_run(tiny())
        before.append(contents(tmp_path / "run"))
        with claimed(storage, **options):
            yield

    monkeypatch.setattr(module, "claimed", after_the_other)
    monkeypatch.setattr(module, "_local", no_world)
    with pytest.raises(ConfigError, match="holds a run already") as caught:
        start(tiny())
    assert caught.value.field == "run_dir"
    assert contents(tmp_path / "run") == before[0]
    assert "model.safetensors" in before[0]


def test_a_second_start_on_a_finished_run_leaves_it_as_it_is(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_a_run(tiny())
    before = contents(tmp_path / "run")
    monkeypatch.setattr(module, "_local", no_world)
    for _ in range(2):
        with pytest.raises(ConfigError, match="holds a run already"):
            start(tiny())
        assert contents(tmp_path / "run") == before


def test_a_resumption_that_never_began_leaves_record_summary_and_model(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_a_run(tiny())
    (tmp_path / "run" / PROBE).unlink()
    before = contents(tmp_path / "run")
    monkeypatch.setattr(module, "_local", no_world)
    config = tiny(epochs=3, shards=1)
    with pytest.raises(RunError, match="no room"):
        train(config, Lines(lambda line: None), Stop(), resume=Resume(str(tmp_path / "run")))
    after = contents(tmp_path / "run")
    events = [json.loads(line) for line in after.pop("events.jsonl").splitlines()]
    assert [event["kind"] for event in events] == ["resumed", "end"]
    assert events[1]["status"] == "finished"
    assert after == before


def test_the_model_of_an_earlier_end_goes_once_a_resumed_run_trains(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_a_run(tiny())

    class Trains:
        def __init__(self, world: object, prepared: Prepared, *rest: object) -> None:
            self.storage = prepared.storage

        def run(self) -> dict[str, Any]:
            assert not self.storage.exists("model.safetensors")
            raise RunError("it fell over")

    monkeypatch.setattr(module, "_local", lambda prepared, stop: nullcontext())
    monkeypatch.setattr(module, "Supervisor", Trains)
    config = tiny(epochs=3, shards=1)
    with pytest.raises(RunError, match="it fell over"):
        train(config, Lines(lambda line: None), Stop(), resume=Resume(str(tmp_path / "run")))


def test_a_run_whose_folder_was_taken_is_stopped(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, stopped = Stop(), []

    @contextmanager
    def lost(storage: Storage, *, on_loss: Callable[[], None]) -> Iterator[None]:
        on_loss()
        stopped.append(stop.event.is_set())
        yield

    monkeypatch.setattr(module, "claimed", lost)
    monkeypatch.setattr(module, "_local", no_world)
    with pytest.raises(RunError):
        train(tiny(), Lines(lambda line: None), stop)
    assert stopped == [True]


def test_a_mistake_in_the_configuration_makes_no_folder(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError):
        start(tiny(batch_size=91))
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_folder_fills_up_at_once_is_taken_back(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LocalStorage.write

    def full(storage: LocalStorage, name: str, *parts: bytes) -> None:
        if name == PROBE:
            raise OSError(28, "No space left on device")
        write(storage, name, *parts)

    monkeypatch.setattr(LocalStorage, "write", full)
    with pytest.raises(ConfigError, match="No space left"):
        start(tiny())
    assert list(tmp_path.iterdir()) == []
