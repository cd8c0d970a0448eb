"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distbelief.errors import ConfigError
from distbelief.storage import LocalStorage, Storage, write_json

NAME = ".in-use"
BEAT_S = 10.0
SETTLE_S = 0.5
"""Of two processes that claim at once, the later one's word is there after so long."""
STALE_S = 45.0
"""A claim that has not been renewed for so long is of a process that has died."""


@contextmanager
def claimed(storage: Storage, *, on_loss: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a run's folder for the time of the block; makes it if need be, takes it back if empty.

    Args:
        storage: The folder.
        on_loss: Called if another process has taken it meanwhile, as one may from an object store
            after this one could not be heard of for long.

    Raises:
        ConfigError: another process holds it, or it cannot be written to.
    """
    if isinstance(storage, LocalStorage):
        with _made(storage), _locked(storage, on_loss):
            yield
    else:
        with _beating(storage, on_loss):
            yield


def held(storage: Storage) -> bool:
    """Whether a process holds the folder at this moment; nothing is changed.

    Raises:
        OSError: the folder cannot be looked at.
    """
    if isinstance(storage, LocalStorage):
        try:
            descriptor = os.open(storage.path / NAME, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            # Shared, so that those who look do not see each other; it is let go at once.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        except OSError:  # a filesystem that has no locks
            pass
        finally:
            os.close(descriptor)
    return _holder(storage) is not None


@contextmanager
def _made(storage: LocalStorage) -> Iterator[None]:
    """The folder and those above it, which go again if nothing was put into them."""
    path = storage.path
    try:
        if path.exists() and not path.is_dir():
            raise ConfigError("run_dir", f"{path} is a file; give a folder")
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("run_dir", f"cannot make {path}: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # one that is not empty: the run has begun
            for folder in made:
                folder.rmdir()


def _in_use(storage: Storage, by: str) -> ConfigError:
    return ConfigError(
        "run_dir",
        f"{storage.url} is in use by {by}; wait for its end (one that died lets go "
        f"after {STALE_S:g} s at the latest), or take another folder",
    )


@contextmanager
def _locked(storage: LocalStorage, on_loss: Callable[[], None]) -> Iterator[None]:
    """A lock of the system, which ends with the process whatever happens to it."""
    path = storage.path / NAME
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            problem = f"cannot write to {storage.url}: {error.strerror}"
            raise ConfigError("run_dir", problem) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            by = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise _in_use(storage, by) from None
        except OSError:  # a filesystem that has no locks
            os.close(descriptor)
            with _beating(storage, on_loss):
                yield
            return
        if _is(path, descriptor):
            break
        os.close(descriptor)  # the one who held it has removed it since
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(storage: Storage) -> str | None:
    """Who has renewed a claim of late."""
    try:
        claim = json.loads(storage.read(NAME))
        by, age_s = f"process {claim['pid']} on {claim['host']}", time.time() - float(claim["at"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return None  # cut short: whoever wrote it has died since, or will find this claim
    return by if age_s < STALE_S else None


def _require_stale(storage: Storage) -> None:
    try:
        by = _holder(storage)
    except OSError as error:
        raise ConfigError("run_dir", f"cannot look at {storage.url}: {error}") from error
    if by is not None:
        raise _in_use(storage, by)


@contextmanager
def _beating(storage: Storage, on_loss: Callable[[], None]) -> Iterator[None]:
    """A file that says since when, renewed by a thread: object stores have no locks."""
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "word": secrets.token_hex(8)}

    def beat() -> None:
        write_json(storage, NAME, {**mine, "at": time.time()})

    _require_stale(storage)
    try:
        beat()
    except OSError as error:
        problem = f"cannot write to {storage.url}: {error}"
        raise ConfigError("run_dir", problem) from error
    ended = threading.Event()
    ended.wait(SETTLE_S)
    if not _is_mine(storage, mine["word"]):
        raise _in_use(storage, "a process that began at the same moment")

    def renew() -> None:
        while not ended.wait(BEAT_S):
            # One that fails is made up for by the next; two more may.
            with contextlib.suppress(OSError):
                if not _is_mine(storage, mine["word"]):
                    on_loss()
                    return
                beat()

    thread = threading.Thread(target=renew, name="claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):  # it is stale soon; the run's own end is what counts
            if _is_mine(storage, mine["word"]):
                storage.remove(NAME)


def _is_mine(storage: Storage, word: object) -> bool:
    try:
        return bool(json.loads(storage.read(NAME)).get("word") == word)
    except (FileNotFoundError, ValueError, AttributeError):
        return False
