"""A run's folder before the run: which it is, whether it is free, and who can see it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from distbelief.config import TrainConfig
from distbelief.errors import ConfigError
from distbelief.product.frozen import FROZEN
from distbelief.runtime.snapshots import manifests
from distbelief.runtime.stopping import NAME as STOP
from distbelief.serving import NAME as SERVING
from distbelief.storage import Storage, storage_at

RECORD = "config.json"
SUMMARY = "summary.json"
MODEL = "model.safetensors"
PROBE = ".probe"
LOG = "driver.log"
WRITTEN = (
    RECORD,
    PROBE,
    "events.jsonl",
    "pushes",
    "snapshots",
    SUMMARY,
    MODEL,
    FROZEN,
    SERVING,
    STOP,
    "tensorboard",
)
"""What a run writes into its folder, which must hold none of it at the start.

:data:`LOG` is none of it: it is there before a detached run begins, and after one that failed.
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """A word in the run's folder, by which each process proves that it sees that folder."""

    storage: Storage
    word: str

    def check(self) -> None:
        """Reads the word.

        Raises:
            ConfigError: this host does not see it.
        """
        try:
            seen = self.storage.read(PROBE).decode(errors="replace") == self.word
        except OSError:
            seen = False
        if not seen:
            raise ConfigError(
                "run_dir",
                f"host {os.uname().nodename} does not see {self.storage.url} as the host that "
                f"started the run does; give a folder or URL that every host can reach",
            )


def folder_of(config: TrainConfig, started_at: float) -> Storage:
    """The folder that a new run's configuration means; nothing is made yet.

    Raises:
        ConfigError: a URL of no filesystem that is known here.
    """
    if config.run_dir is not None:
        return storage_at(config.run_dir)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(started_at))
    path = Path("runs") / f"{config.recipe}-{stamp}"
    number = 2
    while path.exists():
        path = Path("runs") / f"{config.recipe}-{stamp}-{number}"
        number += 1
    return storage_at(path)


def require_free(storage: Storage) -> None:
    """There must be no run in the folder, but for one that never got as far as a snapshot.

    Raises:
        ConfigError: there is one, or the folder cannot be looked at.
    """
    try:
        if any(storage.exists(name) for name in ("train", "val")):
            raise ConfigError(
                "run_dir", f"{storage.url} holds train/ or val/, as data does; take another folder"
            )
        taken = storage.logs("") or any(storage.exists(name) for name in WRITTEN)
        if not taken or _never_began(storage):
            return
    except OSError as error:
        raise ConfigError("run_dir", f"cannot look at {storage.url}: {error}") from error
    raise ConfigError(
        "run_dir",
        f"{storage.url} holds a run already; take another folder, or go on with it: "
        f"--resume {storage.url}",
    )


def _never_began(storage: Storage) -> bool:
    """Whether a run of ours was killed in there before its first snapshot: nothing is lost."""
    try:
        record = json.loads(storage.read(RECORD))
    except (FileNotFoundError, ValueError):
        return False
    ours = isinstance(record, dict) and {"config", "plan", "layout"} <= record.keys()
    found, broken = manifests(storage) if ours else ([], {})
    return ours and not found and not any(broken.values())


def require_room(storage: Storage, n_parameters: int) -> None:
    """Parameters, momentum and average of the first snapshot, and the model's file, must fit.

    Raises:
        ConfigError: there is not so much room.
    """
    needed = 16 * n_parameters + (1 << 20)
    free = storage.free_nbytes()
    if free is not None and free < needed:
        raise ConfigError(
            "run_dir",
            f"{storage.url} has {free / 1e6:,.0f} MB left, the first snapshot takes "
            f"{needed / 1e6:,.0f} MB; make room, or take another folder",
        )
