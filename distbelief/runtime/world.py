"""What a run is made of, seen from its supervisor: the same on Ray and inside one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from distbelief.errors import (
    DistBeliefError,
    ProcessLostError,
    ShardRefusedError,
    StageLostError,
    UsageError,
)
from distbelief.observe.report import Report
from distbelief.runtime.host_spec import HostSpec
from distbelief.server.spec import ShardSpec
from distbelief.services import ShardService
from distbelief.serving import Endpoint, Serving

Role = Literal["shard", "coordinator", "evaluator"]


@dataclass(frozen=True, slots=True)
class ReplicaEnd:
    """A replica that has ended, in order if ``error`` is None."""

    replica: int
    error: DistBeliefError | None

    @property
    def cause(self) -> str:
        """Why, without who."""
        return cause_of(self.error, "its process")

    @property
    def fatal(self) -> bool:
        """Whether no other replica could do better."""
        return isinstance(self.error, UsageError | ShardRefusedError)


@dataclass(frozen=True, slots=True)
class Post:
    """One start of a process that a run cannot do without.

    Attributes:
        role: What it is.
        number: Which shard; 0 for the others.
        start: Which start of it, from 1; a shard's incarnation.
    """

    role: Role
    number: int
    start: int

    @property
    def name(self) -> str:
        """For people."""
        return f"shard {self.number}" if self.role == "shard" else f"the {self.role}"

    def __str__(self) -> str:
        return f"{self.name.removeprefix('the ')} start {self.start}"


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """A process is not there any more, or not to be counted on."""

    post: Post
    error: DistBeliefError

    @property
    def cause(self) -> str:
        """Why, without who."""
        return cause_of(self.error)


@dataclass(frozen=True, slots=True)
class ProcessUp:
    """A process that was to be started is there; ``endpoint`` is a shard's.

    ``about`` says where it is: ``node``, ``host`` and ``pid``, as far as is known.
    """

    post: Post
    endpoint: Endpoint | None = None
    about: Mapping[str, Any] | None = None


Happening = ReplicaEnd | ProcessEnd | ProcessUp


def cause_of(error: BaseException | None, *known: str) -> str:
    """Why a process has ended, without which, if that is known by one of these names."""
    told = isinstance(error, ProcessLostError) and (not known or error.what in known)
    return str(error.cause if isinstance(error, ProcessLostError) and told else error)


def first_cause(errors: Mapping[int, DistBeliefError]) -> DistBeliefError:
    """Of what the stages of a replica say, what the others only follow from.

    What the user can mend comes first, and that a stage lost touch with another last.
    """

    def rank(stage: int) -> tuple[int, int]:
        error = errors[stage]
        if isinstance(error, UsageError | ShardRefusedError):
            return 0, stage
        return (2 if isinstance(error, StageLostError) else 1), stage

    return errors[min(errors, key=rank)]


class World(Protocol):
    """Processes or threads of one run. A context manager that leaves nothing behind.

    ``__enter__`` returns once the shards hold their values, the run's folder names them, and the
    coordinator answers. Everything else here is for one caller at a time, the supervisor.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    @property
    def serving(self) -> Serving:
        """Who served first; what comes after is the supervisor's business."""
        ...

    def start_replica(self, replica: int) -> None:
        """Starts a replica of that number, which has never been used before; does not block."""
        ...

    def start_shard(self, spec: ShardSpec) -> None:
        """Starts a shard or a twin; :meth:`wait` tells when it is up, or has failed."""
        ...

    def start_coordinator(self, spec: HostSpec) -> None:
        """Starts a coordinator in the place of one that has died; likewise."""
        ...

    def start_evaluator(self, start: int) -> None:
        """Starts an evaluator in the place of one that has died; likewise."""
        ...

    def take_serving(self, serving: Serving) -> None:
        """Who serves from now on: for processes that will be started."""
        ...

    def dismiss(self, post: Post) -> None:
        """Ends a process that is given up, if it is there at all; does not block."""
        ...

    def shard_at(self, endpoint: Endpoint) -> AbstractContextManager[ShardService]:
        """One start of a shard, whether it serves or not."""
        ...

    def wait(self, timeout_s: float) -> list[Happening]:
        """Waits until something happens, for ``timeout_s`` at most; returns all that has."""
        ...

    def report(self) -> Report | None:
        """How the run stands; None while the coordinator is away."""
        ...

    def replica_lost(self, replica: int, cause: str) -> int | None:
        """Tells the coordinator of a death; returns how many items go to others.

        None if the coordinator is away: the next one must be told when it is started.
        """
        ...

    def emit(self, kind: str, **fields: Any) -> None:
        """Writes an event; one that cannot be written now is kept until it can."""
        ...

    def stop(self) -> None:
        """Orders all replicas to end after what they are computing; does not block."""
        ...

    def conclude(self, model_file: str, meanwhile: Callable[[], object]) -> Report:
        """After the last replica: a last look at the shards, and at their averaged weights.

        Takes a last snapshot, writes the weights to ``model_file`` in the run's folder, evaluates
        them, and returns how the run ended. ``meanwhile`` is called now and then, so that what dies
        is replaced.
        """
        ...
