"""Which run is meant, and what it was."""

from typing import Any

import pytest

from distbelief.config import ClusterConfig, TrainConfig
from distbelief.errors import ConfigError
from distbelief.runtime.runs import recorded
from distbelief.storage import Storage, write_json

CONFIG = TrainConfig(cluster=ClusterConfig(shards=2))
RECORD: dict[str, Any] = {"config": CONFIG.to_dict(), "started_at": 1000.0}


def test_a_record_is_read(storage: Storage) -> None:
    write_json(storage, "config.json", RECORD)
    assert recorded(storage.url) == (CONFIG, RECORD)


def test_a_folder_without_a_record_is_no_run(storage: Storage) -> None:
    with pytest.raises(ConfigError) as caught:
        recorded(storage.url)
    assert (caught.value.field, caught.value.problem) == (
        "resume",
        f"there is no run in {storage.url}",
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"{}",
        b'{"config": 3}',
        b'{"config": {"surprise": 1}}',
        b'{"config": {"model": {"surprise": 1}}}',
        b'{"config": {"model": 3}}',
        b'{"config": {"epochs": "many"}}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_record_is_named(content: bytes, storage: Storage) -> None:
    storage.write("config.json", content)
    with pytest.raises(ConfigError) as caught:
        recorded(storage.url)
    assert caught.value.field == "resume"
    assert caught.value.problem.startswith(f"{storage.url}/config.json is damaged: ")
