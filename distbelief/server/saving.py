"""A shard's state, once captured, on its way into the run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distbelief.errors import ShardRefusedError
from distbelief.server.pause import Capture
from distbelief.server.pushlog import PushLog
from distbelief.server.spec import ShardSpec
from distbelief.server.statefile import digest, file_name, snapshot_folder
from distbelief.types import ShardFile


def sync(spec: ShardSpec, log: PushLog) -> None:
    """Makes the push log durable, for what is to rest on it; raises as :func:`write`."""
    with _refusing(spec):
        log.sync()


def write(spec: ShardSpec, log: PushLog, snapshot: int, capture: Capture) -> ShardFile:
    """Makes the push log durable, then writes the file that rests on it. Blocks; for any thread.

    Raises:
        ShardRefusedError: one of them cannot be written.
    """
    name = file_name(spec.index, spec.n_shards)
    with _refusing(spec):
        log.sync()
        spec.storage.write(f"{snapshot_folder(snapshot)}/{name}", capture.content)
    return ShardFile(
        name=name,
        nbytes=len(capture.content),
        sha256=digest(capture.content),
        n_shards=spec.n_shards,
        state=capture.state,
        paused_s=capture.paused_s,
    )


@contextmanager
def _refusing(spec: ShardSpec) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        detail = f"cannot write to {spec.storage.url}: {error.strerror or error}"
        raise ShardRefusedError(spec.index, "cannot_save", detail) from error
