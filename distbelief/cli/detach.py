"""``distbelief train --detach``: a run in a process of its own, which no terminal ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from distbelief.cli import INTERRUPTED
from distbelief.errors import ConfigError
from distbelief.runtime.folder import LOG
from distbelief.storage import LocalStorage, Storage

POLL_S = 0.25


def detach(arguments: Sequence[str], storage: Storage, *, as_json: bool = False) -> int:
    """Starts a run and returns when its folder shows that it has begun.

    What the run says goes to ``driver.log`` in its folder, or, if that is at a URL, to a file in
    ``runs/``. An interrupt while it begins ends it.

    Args:
        arguments: Of the command that trains, in its process; they name the folder.
        storage: That folder.
        as_json: Print where the run is as JSON.

    Returns:
        0 if it has begun; else the exit code that it ended with, after what it said is printed.

    Raises:
        ConfigError: the folder cannot be used.
    """
    if storage.url.startswith("memory:"):
        raise ConfigError("run_dir", "memory:// is seen by one process alone; give a folder")
    log = _log_of(storage)
    made = [folder for folder in (log.parent, *log.parent.parents) if not folder.exists()]
    before = _record(storage)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        said_before = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "distbelief", "train", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise ConfigError("run_dir", f"cannot make {log}: {error.strerror or error}") from error
    code = _until_begun(process, storage, before)
    if code is None:
        _tell(storage, log, process.pid, as_json)
        return 0
    with log.open("rb") as file:
        file.seek(said_before)
        print(file.read().decode(errors="replace"), end="", flush=True)
    if _record(storage) is None and said_before == 0:  # it has left nothing
        log.unlink(missing_ok=True)
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
    return code


def _log_of(storage: Storage) -> Path:
    if isinstance(storage, LocalStorage):
        return storage.path / LOG
    name = storage.url.rstrip("/").rpartition("/")[2]
    return Path("runs").absolute() / f"{name}.{LOG}"


def _record(storage: Storage) -> bytes | None:
    try:
        return storage.read("config.json")
    except OSError:  # there is none; or the run itself will tell what is wrong with its folder
        return None


def _until_begun(
    process: subprocess.Popen[bytes], storage: Storage, before: bytes | None
) -> int | None:
    """The exit code of a process that has ended, None if the record is another one than before."""
    try:
        while process.poll() is None:
            if _record(storage) not in (None, before):
                return None
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return INTERRUPTED
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _tell(storage: Storage, log: Path, pid: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"run_dir": storage.url, "pid": pid, "log": str(log)}), flush=True)
        return
    print(
        f"run folder  {storage.url}\n"
        f"driver      process {pid}, whose words go to {log}\n"
        f"see it      distbelief attach {storage.url}\n"
        f"end it      distbelief stop {storage.url}",
        flush=True,
    )
