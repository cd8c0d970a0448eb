"""TensorBoard event files in a run's folder: scalars and histograms by examples applied."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distbelief.observe.histograms import Histogram
from distbelief.observe.report import Report, staleness_summary
from distbelief.storage import LocalStorage, Storage

FOLDER = "tensorboard"
UPLOAD_S = 60.0


class TensorBoard:
    """Writes one event file. Thread-safe; a storage without paths gets copies of it now and then.

    Args:
        storage: The run's folder.
        clock: Seconds since the epoch.
        monotonic: Seconds, for the time between two copies.

    Raises:
        OSError: of each call: the file could not be written.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        # Neither is needed by anybody else, and they take a while.
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._storage = storage
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._begun = False
        self._event = event_pb2.Event
        stamp = f"{clock():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._name = f"{FOLDER}/events.out.tfevents.{stamp}"
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if isinstance(storage, LocalStorage):
            self._path = storage.path / self._name
        else:
            self._temporary = tempfile.TemporaryDirectory(prefix="distbelief-tensorboard-")
            self._path = Path(self._temporary.name) / "events"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb")
        self._records = RecordWriter(self._file)
        self._copied_at = monotonic()
        self._write(file_version="brain.Event:2")

    def progress(self, report: Report, staleness: Mapping[int, int]) -> None:
        """Writes how the run stands.

        Args:
            report: The run now.
            staleness: Pushes applied since the last call, by staleness.
        """
        histograms = {"staleness": Histogram.of_counts(staleness)} if staleness else {}
        scalars = dict(_scalars(report, staleness))
        self._add(report.examples_applied, scalars, histograms)

    def evaluation(
        self, step: int, result: Mapping[str, Any], weights: Mapping[str, Histogram]
    ) -> None:
        """Writes an evaluation.

        Args:
            step: Examples applied to the weights.
            result: Figures by name; those that are no numbers are left out.
            weights: Histograms of the weights by the parameter's name.
        """
        names = ("top1", "top5", "loss")
        scalars = {f"validation/{name}": float(result[name]) for name in names if name in result}
        self._add(step, scalars, {f"weights/{name}": h for name, h in weights.items()})

    def close(self) -> None:
        """Ends the file; the last copy is made."""
        with self._lock:
            if self._file.closed:
                return
            try:
                self._file.flush()
                self._copy()
            finally:
                self._file.close()
                if self._temporary is not None:
                    self._temporary.cleanup()

    def _add(
        self, step: int, scalars: Mapping[str, float], histograms: Mapping[str, Histogram]
    ) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        values = [
            summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()
        ]
        values += [
            summary_pb2.Summary.Value(
                tag=tag,
                histo=summary_pb2.HistogramProto(
                    min=h.least,
                    max=h.most,
                    num=sum(h.counts),
                    sum=h.total,
                    sum_squares=h.squares,
                    bucket_limit=h.limits,
                    bucket=h.counts,
                ),
            )
            for tag, h in histograms.items()
        ]
        with self._lock:
            if not self._begun:
                # What another file of this folder has from here on is of a run that was resumed
                # before it.
                self._begun = True
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._write(step=step, session_log=start)
            self._write(step=step, summary=summary_pb2.Summary(value=values))
            self._file.flush()
            if self._monotonic() - self._copied_at >= UPLOAD_S:
                self._copy()

    def _write(self, **fields: Any) -> None:
        event = self._event(wall_time=self._clock(), **fields)
        self._records.write(event.SerializeToString())

    def _copy(self) -> None:
        if self._temporary is not None:
            self._copied_at = self._monotonic()
            self._storage.write(self._name, self._path.read_bytes())


def _scalars(r: Report, staleness: Mapping[int, int]) -> Iterator[tuple[str, float]]:
    yield "examples_applied", r.examples_applied
    yield "images_per_second", r.images_per_second
    yield "rate", r.learning_rate
    yield "waiting_share", r.mean_waiting
    yield "pushes/refused", sum(r.refused.values())
    yield "pushes/repeated", r.repeated
    for name, value in r.losses.items():
        yield f"loss/{name}", value
    if staleness:
        found = staleness_summary(staleness)
        yield "staleness/mean", found["mean"]
        yield "staleness/p99", found["p99"]
    for shard in r.shards:
        yield f"shard_{shard['shard']}/mb_per_second", shard["mb_per_second"]
        yield f"shard_{shard['shard']}/queued", shard["queued"]
    for replica in r.replicas:
        if replica.get("images_per_second") is not None:
            yield f"replica_{replica['replica']}/images_per_second", replica["images_per_second"]
    if r.snapshot and r.snapshot.get("seconds") is not None:
        yield "snapshot/seconds", r.snapshot["seconds"]
