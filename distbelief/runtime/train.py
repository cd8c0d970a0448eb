"""Training: a configuration in, a run's folder and its summary out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from distbelief.config import TrainConfig
from distbelief.errors import ConfigError, DataError, UsageError
from distbelief.faults.points import Fault
from distbelief.observe.report import duration
from distbelief.observe.view import Lines, Say, View
from distbelief.runtime.beginning import begin, discard
from distbelief.runtime.claim import claimed
from distbelief.runtime.folder import MODEL, PROBE, folder_of
from distbelief.runtime.local import LocalWorld
from distbelief.runtime.prepare import Prepared, prepare
from distbelief.runtime.runs import Resume
from distbelief.runtime.signals import Stop, stop_on_signals
from distbelief.runtime.stopping import StopFile
from distbelief.runtime.supervisor import Supervisor
from distbelief.runtime.task import Task
from distbelief.runtime.world import World
from distbelief.serving import Serving, read_serving
from distbelief.storage import storage_at


def train(
    config: TrainConfig,
    view: View | None = None,
    stop: Stop | None = None,
    *,
    task: Task | None = None,
    resume: Resume | None = None,
    faults: Sequence[Fault] = (),
) -> dict[str, Any]:
    """Trains, blocking until the end; returns the contents of ``summary.json`` and ``run_dir``.

    Args:
        config: The run.
        view: Where it is shown; by default lines on the standard output.
        stop: Ends the run in order once it is set; by default SIGINT, SIGTERM and SIGHUP do.
        task: A user's own model, data or loss.
        resume: The run to go on with; ``config`` must agree with its own.
        faults: Faults to be injected, for tests.

    Raises:
        UsageError: the configuration, the data or the cluster cannot work as they are.
        RunError: the run failed.
        KeyboardInterrupt: it was stopped before it had begun, or the user insisted.
    """
    started_at = time.time()
    view = view or Lines()
    with stop_on_signals() if stop is None else contextlib.nullcontext(stop) as stop:
        make_world: Callable[[Prepared, Stop], World]
        make_world = _local if config.cluster.address == "inprocess" else _on_ray(config, view.say)
        if config.cluster.address != "inprocess" and str(config.run_dir).startswith("memory:"):
            problem = "memory:// is seen by one process alone: take --address inprocess with it"
            raise ConfigError("run_dir", problem)
        storage = folder_of(config, started_at) if resume is None else storage_at(resume.run)
        # Before anything is looked at: nobody else shall change it meanwhile.
        with claimed(storage, on_loss=stop.event.set):
            prepared = prepare(config, started_at, task=task, resume=resume, storage=storage)
            prepared = replace(prepared, faults=tuple(faults))
            result = _run(prepared, make_world, view, stop)
    return {**result, "run_dir": storage.url}


def _run(
    prepared: Prepared,
    make_world: Callable[[Prepared, Stop], World],
    view: View,
    stop: Stop,
) -> dict[str, Any]:
    supervisor: Supervisor | None = None
    began = time.time()
    served: Serving | None = None
    with contextlib.suppress(DataError):  # one that is damaged is not worth putting back
        served = read_serving(prepared.storage)
    stop.starting = True
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(StopFile(prepared.storage, stop.event))
        begin(prepared)
        _introduce(prepared, view.say)
        with make_world(prepared, stop) as world:
            view.say(f"{duration(time.time() - began):>6}  all shards serve, training begins")
            stop.starting = False
            supervisor = Supervisor(world, prepared, stop, view)
            # Of an earlier end, if the run is resumed: the weights are newer from now on.
            prepared.storage.remove(MODEL)
            return supervisor.run()
    except BaseException as error:
        hopeless = isinstance(error, UsageError)
        if supervisor is None or (hopeless and not supervisor.has_trained):
            discard(prepared, served)
        raise
    finally:
        stack.close()
        prepared.storage.remove(PROBE)


def _local(prepared: Prepared, stop: Stop) -> World:
    return LocalWorld(prepared)


def _on_ray(config: TrainConfig, say: Say) -> Callable[[Prepared, Stop], World]:
    # Ray is imported only by runs that use it.
    from distbelief.runtime.ray_cluster import find_cluster
    from distbelief.runtime.ray_world import RayWorld

    cluster = find_cluster(config.cluster.address)
    return lambda prepared, stop: RayWorld(prepared, cluster, say, stop)


def _introduce(prepared: Prepared, say: Say) -> None:
    config, plan = prepared.config, prepared.plan
    source = config.data.source if prepared.task.dataset is None else "given"
    say(f"run folder  {prepared.storage.url}")
    what = "images" if prepared.task.dataset is None and config.data.dataset is None else "examples"
    classes = f" of {len(prepared.classes)} classes" if prepared.classes else ""
    size = f", {config.data.image_size}x{config.data.image_size}" if what == "images" else ""
    say(f"data        {source}: {plan.n_examples:,} training {what}{classes}{size}")
    say(f"model       {config.model.model}: {prepared.layout.size:,} parameters")
    say(
        f"run         {_some(config.cluster.replicas, 'replica')}, "
        f"{_some(config.cluster.shards, 'shard')}, {_some(plan.n_items, 'item')} of "
        f"{plan.examples_per_item} {what} ({plan.total_examples:,} in all)"
    )
    if len(prepared.digests) == 1:
        say(f"note        no validation {what}: nothing will be evaluated")
    if prepared.resumed is not None:
        say(
            f"resumed     from snapshot {prepared.resumed.number}: "
            f"{prepared.resumed.examples_applied:,} images behind it"
        )
    for note in prepared.notes:
        say(f"note        {note}")


def _some(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
