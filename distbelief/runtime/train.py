"""Training: a configuration in, a run's folder and its summary out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from distbelief.config import TrainConfig
from distbelief.observe.report import duration
from distbelief.runtime.local import LocalWorld
from distbelief.runtime.prepare import Prepared, discard, prepare
from distbelief.runtime.supervisor import Say, Stop, Supervisor, stop_on_signals
from distbelief.runtime.world import World


def train(config: TrainConfig, say: Say = print, stop: Stop | None = None) -> dict[str, Any]:
    """Trains, blocking until the end; returns the contents of ``summary.json`` and ``run_dir``.

    Args:
        config: The run.
        say: Takes the lines that tell how it goes.
        stop: Ends the run in order once it is set; by default SIGINT and SIGTERM do.

    Raises:
        UsageError: the configuration, the data or the cluster cannot work as they are.
        RunError: the run failed.
        KeyboardInterrupt: it was stopped before it had begun, or the user insisted.
    """
    started_at = time.time()
    with stop_on_signals() if stop is None else contextlib.nullcontext(stop) as stop:
        make_world: Callable[[Prepared, Stop], World]
        make_world = _local if config.cluster.address == "inprocess" else _on_ray(config, say)
        prepared = prepare(config, started_at)
        _introduce(prepared, say)
        supervised = False
        try:
            with make_world(prepared, stop) as world:
                say(f"{duration(time.time() - started_at):>6}  all shards serve, training begins")
                supervised = True
                result = Supervisor(world, prepared, stop, say).run()
        except BaseException:
            if not supervised:
                discard(prepared.run_dir)
            raise
    return {**result, "run_dir": str(prepared.run_dir)}


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
    source = config.data.data or "drawn shapes"
    say(f"run folder  {prepared.run_dir}")
    say(
        f"data        {source}: {plan.n_examples:,} training images of {len(prepared.classes)} "
        f"classes, {config.data.image_size}x{config.data.image_size}"
    )
    say(f"model       {config.model.model}: {prepared.layout.size:,} parameters")
    say(
        f"run         {config.cluster.replicas} replicas, {config.cluster.shards} shards, "
        f"{plan.n_items:,} items of {plan.examples_per_item} images "
        f"({plan.total_examples:,} in all)"
    )
