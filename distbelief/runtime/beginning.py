"""What a run writes before it trains, and how that is taken back."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import platform
import socket
import time
from typing import Any

from distbelief.errors import ConfigError
from distbelief.observe.events import EventLog
from distbelief.product.frozen import FROZEN
from distbelief.runtime.folder import PROBE, RECORD, SUMMARY, WRITTEN
from distbelief.runtime.prepare import Prepared
from distbelief.runtime.resume import Resumed
from distbelief.runtime.snapshots import numbers
from distbelief.serving import Serving, write_serving
from distbelief.storage import write_json


def begin(prepared: Prepared) -> None:
    """Writes ``config.json`` and the probe into the run's folder, which nobody else must use.

    Raises:
        ConfigError: it cannot be written to.
    """
    storage, before, record = prepared.storage, prepared.before, _record(prepared)
    try:
        if before is None:
            for name in WRITTEN:  # of a run that was killed before its first snapshot
                storage.remove(name)
        else:
            # First of all: what the run once said of its end is not true any more.
            write_json(storage, SUMMARY, {**before.summary, "status": "running"})
            record["resumed"] = [*before.earlier, _resumption(prepared, before)]
            record["started_at"] = before.started_at
        if prepared.frozen is not None:
            storage.write(FROZEN, prepared.frozen)
        write_json(storage, RECORD, record)
        storage.write(PROBE, prepared.probe.word.encode())
        if before is not None:
            _tell(
                prepared,
                "resumed",
                snapshot=before.manifest.number,
                examples_applied=before.manifest.examples_applied,
                shards=prepared.config.cluster.shards,
                replicas=prepared.config.cluster.replicas,
            )
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError("run_dir", f"cannot write to {storage.url}: {reason}") from error


def discard(prepared: Prepared, serving: Serving | None) -> None:
    """Takes back what a run has written that never began to train, as far as that can be done.

    Args:
        prepared: The run.
        serving: Who served when it was left, if it was resumed.
    """
    storage, before = prepared.storage, prepared.before
    with contextlib.suppress(OSError):  # another error is on its way up, and is the one to tell
        storage.remove(PROBE)
        if before is None:
            for name in WRITTEN:
                storage.remove(name)
            return
        mark = f".{prepared.incarnation:04d}.jsonl"
        for name in storage.logs("pushes"):
            if name.endswith(mark):
                storage.remove(f"pushes/{name}")
        if serving is not None:
            write_serving(storage, serving)
        write_json(storage, RECORD, before.record)
        write_json(storage, SUMMARY, before.summary)
        _tell(prepared, "end", status=before.summary.get("status", "interrupted"))


def _tell(prepared: Prepared, kind: str, **fields: Any) -> None:
    events = EventLog(prepared.storage, prepared.started_at)
    events.emit(kind, **fields)
    events.close()


def _resumption(prepared: Prepared, before: Resumed) -> dict[str, Any]:
    return {
        "at": time.time(),
        "snapshot": before.manifest.number,
        "examples_applied": before.manifest.examples_applied,
        "abandoned": [n for n in numbers(prepared.storage) if n > before.manifest.number],
        "shards": prepared.config.cluster.shards,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a run inside one process needs no ray
        return None


def _record(prepared: Prepared) -> dict[str, Any]:
    names = ("distbelief", "torch", "ray", "grpcio", "protobuf", "numpy")
    plan = prepared.plan
    return {
        "config": prepared.config.to_dict(),
        "started_at": prepared.started_at,
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "versions": {name: version for name in names if (version := _version(name))},
        "classes": list(prepared.classes),
        "n_outputs": prepared.n_outputs,
        "parameters": prepared.layout.size,
        "incarnation": prepared.incarnation,
        "layout": prepared.layout.fingerprint,
        "data_digests": list(prepared.digests),
        "stages": [None if p is None else dataclasses.asdict(p) for p in prepared.stage_plans],
        "plan": {
            "n_examples": plan.n_examples,
            "batch_size": plan.batch_size,
            "n_push": plan.n_push,
            "n_items": plan.n_items,
        },
    }
