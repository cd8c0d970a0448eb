"""Which run is meant; light, for commands that only read a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from distbelief.config import TrainConfig
from distbelief.errors import ConfigError
from distbelief.storage import storage_at


@dataclass(frozen=True, slots=True)
class Resume:
    """Which run to go on with: its folder, and the snapshot, by default the newest that fits."""

    run: str
    snapshot: int | None = None


def recorded(run: str) -> tuple[TrainConfig, dict[str, Any]]:
    """The configuration of a run, and the rest of its ``config.json``.

    Raises:
        ConfigError: there is no such run, or its record is damaged.
    """
    storage = storage_at(run, "resume")
    try:
        record = json.loads(storage.read("config.json"))
        return TrainConfig.from_dict(record["config"]), record
    except OSError as error:
        raise ConfigError("resume", f"there is no run in {storage.url}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{storage.url}/config.json is damaged: {error!r}"
        raise ConfigError("resume", problem) from error
