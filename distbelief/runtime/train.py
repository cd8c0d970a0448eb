"""Training: a configuration in, a run's folder and its summary out."""

from __future__ import annotations

import time
from typing import Any

from distbelief.config import TrainConfig
from distbelief.observe.report import duration
from distbelief.runtime.local import LocalWorld
from distbelief.runtime.prepare import Prepared, prepare
from distbelief.runtime.supervisor import Say, Supervisor, stop_on_signals
from distbelief.runtime.world import World


def train(config: TrainConfig, say: Say = print) -> dict[str, Any]:
    """Trains, blocking until the end; returns the contents of ``summary.json`` and ``run_dir``.

    Args:
        config: The run.
        say: Takes the lines that tell how it goes.

    Raises:
        UsageError: the configuration, the data or the cluster cannot work as they are.
        RunError: the run failed.
    """
    started_at = time.time()
    with stop_on_signals() as stop:
        world: World
        if config.cluster.address == "inprocess":
            prepared = prepare(config, started_at)
            world = LocalWorld(prepared)
        else:
            # Ray is imported only by runs that use it.
            from distbelief.runtime.ray_cluster import find_cluster
            from distbelief.runtime.ray_world import RayWorld

            cluster = find_cluster(config.cluster.address)
            prepared = prepare(config, started_at)
            world = RayWorld(prepared, cluster, say)
        _introduce(prepared, say)
        with world:
            say(f"{duration(time.time() - started_at):>6}  all shards serve, training begins")
            result = Supervisor(world, prepared, stop, say).run()
    return {**result, "run_dir": str(prepared.run_dir)}


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
