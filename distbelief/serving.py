"""Who serves at this moment: a file in the run's folder, which every process of the run can read.

Its one writer is the run's supervisor. A shard serves once the file names it, and one that it names
no more is fenced off: whoever meets it, it too, finds that out here. Replicas that lose a shard
find the one that has taken its place, while the coordinator is away as well.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from distbelief.errors import DataError
from distbelief.storage import Storage, write_json

NAME = "serving.json"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a shard serves, and what.

    Attributes:
        shard: Which shard.
        begin: First element of the flat vector.
        end: End of its elements.
        incarnation: Which start of the shard it is.
        address: Where it serves, HOST:PORT.
        node: The Ray node that it runs on, if it does.
        host: Name of its host.
        pid: Its process.
    """

    shard: int
    begin: int
    end: int
    incarnation: int
    address: str
    node: str = ""
    host: str = ""
    pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Who serves.

    Attributes:
        number: Grows with every change.
        run: Incarnation of the run's start.
        shards: The shards that serve, in order.
        twins: Those that follow one of them and would take its place.
        coordinator: Number of the coordinator's start, from 1.
    """

    number: int
    run: int
    shards: tuple[Endpoint, ...]
    twins: tuple[Endpoint, ...] = ()
    coordinator: int = 1

    def fences(self, shard: int, incarnation: int, run: int) -> bool:
        """Whether that start of a shard must not serve any more.

        One that is not named yet, since it is being started, is not fenced.

        Args:
            shard: Which shard.
            incarnation: Which start of it.
            run: In which start of the run.
        """
        named = [e.incarnation for e in (*self.shards, *self.twins) if e.shard == shard]
        if run != self.run:
            return run < self.run
        return incarnation not in named and incarnation < max(named, default=0)

    def changed(self, **fields: Any) -> Serving:
        """The next one, with some fields changed."""
        return replace(self, number=self.number + 1, **fields)


def write_serving(storage: Storage, serving: Serving) -> None:
    """Writes the file; returns when every reader sees it.

    Raises:
        OSError: it could not be written.
    """
    write_json(storage, NAME, asdict(serving))


def read_serving(storage: Storage) -> Serving | None:
    """Who serves, or None before the run's first start has said so.

    Raises:
        OSError: the folder cannot be read.
        DataError: the file is damaged.
    """
    try:
        values = json.loads(storage.read(NAME))
        return Serving(
            number=int(values["number"]),
            run=int(values["run"]),
            shards=_endpoints(values["shards"]),
            twins=_endpoints(values["twins"]),
            coordinator=int(values["coordinator"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{storage.url}/{NAME}", f"is damaged: {error!r}") from error


def _endpoints(values: list[dict[str, Any]]) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(**value) for value in values)
