"""What a run is made of, seen from its supervisor: the same on Ray and inside one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from distbelief.errors import DistBeliefError, ShardRefusedError, StageLostError, UsageError
from distbelief.observe.report import Report


@dataclass(frozen=True, slots=True)
class ReplicaEnd:
    """A replica that has ended, in order if ``error`` is None."""

    replica: int
    error: DistBeliefError | None

    @property
    def fatal(self) -> bool:
        """Whether no other replica could do better."""
        return isinstance(self.error, UsageError | ShardRefusedError)


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

    ``__enter__`` returns once the shards hold their values and the coordinator answers.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def start_replica(self, replica: int) -> None:
        """Starts a replica of that number, which has never been used before; does not block."""
        ...

    def wait(self, timeout_s: float) -> list[ReplicaEnd]:
        """Waits until a replica ends, for ``timeout_s`` at most; returns all that ended.

        Raises:
            ProcessLostError: something that the run cannot do without has died.
        """
        ...

    def report(self) -> Report:
        """How the run stands."""
        ...

    def replica_lost(self, replica: int, cause: str) -> int:
        """Tells the coordinator of a death; returns how many items go to others."""
        ...

    def emit(self, kind: str, **fields: Any) -> None:
        """Writes an event."""
        ...

    def stop(self) -> None:
        """Orders all replicas to end after what they are computing; does not block."""
        ...

    def conclude(self, model_file: str) -> Report:
        """After the last replica: a last look at the shards, and at their averaged weights.

        Takes a last snapshot, writes the weights to ``model_file`` in the run's folder, evaluates
        them, and returns how the run ended.
        """
        ...
