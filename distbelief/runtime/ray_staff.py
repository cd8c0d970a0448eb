"""The actors of a run: created where they have their room, ended together."""

from __future__ import annotations

import sys
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distbelief.runtime.ray_actors import Handle, Ref
from distbelief.runtime.ray_groups import Groups
from distbelief.runtime.worker import Threads

CLOSE_S = 15.0


class Staff:
    """Creates actors, and ends them; :meth:`clear` ends all that are left.

    Args:
        groups: Where there is room for them.
        max_concurrency: Calls that one actor may have at a time.
    """

    def __init__(self, groups: Groups, max_concurrency: int) -> None:
        self._groups = groups
        self._max_concurrency = max_concurrency
        self._actors: list[Handle] = []

    def in_group(
        self, kind: type[Any], role: str, index: int, stage: int = 0, *, threads: Threads
    ) -> Handle:
        """Creates an actor where its group has room; does not block."""
        strategy = self._groups.strategy(role, index, stage)
        return self._create(kind, strategy, self._groups.bundle(role, index, stage), threads)

    def beside_driver(self, kind: type[Any], name: str | None = None) -> Handle:
        """Creates an actor on this node; does not block.

        With a ``name`` the run's other actors can find it.
        """
        here = ray.get_runtime_context().get_node_id()
        # A soft one counts for nothing where an actor asks for no CPU.
        strategy = NodeAffinitySchedulingStrategy(here, soft=False)
        return self._create(kind, strategy, {}, Threads(1), name)

    def kill(self, actor: Handle) -> None:
        """Ends an actor at once; one that has been stopped ends when it is woken."""
        self._actors.remove(actor)
        ray.kill(actor)

    def clear(self) -> None:
        """Ends every actor, first by asking."""
        asked = [actor.close.remote() for actor in self._actors]
        if asked:
            ready(asked, len(asked), CLOSE_S)
        for actor in list(self._actors):
            self.kill(actor)

    def _create(
        self,
        kind: type[Any],
        strategy: object,
        bundle: dict[str, float],
        threads: Threads,
        name: str | None = None,
    ) -> Handle:
        cpus, gpus = bundle.pop("CPU", 0.0), bundle.pop("GPU", 0.0)
        remote: Any = ray.remote(kind)
        actor: Handle = remote.options(
            num_cpus=cpus,
            num_gpus=gpus,
            resources=bundle,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=self._max_concurrency,
            scheduling_strategy=strategy,
            name=name,
        ).remote(tuple(sys.path), threads)
        self._actors.append(actor)
        return actor


def ready(refs: list[Ref], n: int, timeout_s: float) -> list[Ref]:
    """Those of the answers that are there, once ``n`` are or the time is over."""
    found, _ = ray.wait(refs, num_returns=n, timeout=timeout_s)
    return list(found)
