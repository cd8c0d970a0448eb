"""The exceptions of distbelief, one tree.

    DistBeliefError
    ├── UsageError            exit 2: the user can mend it, and the text says how
    │   ├── ConfigError       an option or a field of the configuration
    │   ├── DataError         the data set, or what a folder holds
    │   └── ClusterError      the cluster that was asked for
    └── RunError              exit 1: the run failed
        ├── TransportError    a shard did not answer in time; trying again is harmless
        ├── ShardRefusedError a shard answered, and will never take the request
        ├── ProcessLostError  a process that the run cannot do without has died
        ├── StageLostError    a stage of a replica has lost touch with the others
        ├── DismissedError    a replica is of no use, and another is to take its place
        ├── UnexpectedError   none of ours: in a user's code, or a bug
        └── SupersededError   another process has taken this one's place

Every exception keeps its facts as fields, and survives pickling: all positional arguments are
passed to ``super().__init__``.
"""

from __future__ import annotations

import os
import traceback

_HERE = os.path.dirname(__file__)


class DistBeliefError(Exception):
    """Root of every exception that distbelief raises on purpose."""

    exit_code = 1


class UsageError(DistBeliefError):
    """What the user gave cannot work; the message names it and the remedy."""

    exit_code = 2


class ConfigError(UsageError):
    """An option or a configuration field has an impossible value."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"--{self.field.replace('_', '-')}: {self.problem}"


class DataError(UsageError):
    """A data set cannot be read as what it was said to be."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class ClusterError(UsageError):
    """The Ray cluster that was asked for does not answer or has no room."""


class RunError(DistBeliefError):
    """The run failed."""


class UnexpectedError(RunError):
    """An error that is none of ours, in a user's code or a bug; the text has its place."""


def as_distbelief_error(error: BaseException) -> DistBeliefError:
    """The error itself if it is one of ours, else an UnexpectedError, with it as cause."""
    if isinstance(error, DistBeliefError):
        return error
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    ours = UnexpectedError(f"{what}{place_of(error)}")
    ours.__cause__ = error  # so that a traceback shows where it came from
    return ours


def place_of(error: BaseException) -> str:
    """Where it was raised: the innermost line that is no library's, else the innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and _HERE not in f.filename]
    if not frames:
        return ""
    frame = (own or list(frames))[-1]
    return f" ({frame.filename}:{frame.lineno}, in {frame.name})"


class TransportError(RunError):
    """A call to a shard got no answer; the same call again is harmless.

    ``code`` is the transport's own word for it (a gRPC status name).
    """

    def __init__(self, shard: int, code: str, detail: str) -> None:
        super().__init__(shard, code, detail)
        self.shard = shard
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"shard {self.shard} did not answer ({self.code}): {self.detail}"


class ShardRefusedError(RunError):
    """A shard answered that it will never take this request."""

    def __init__(self, shard: int, reason: str, detail: str) -> None:
        super().__init__(shard, reason, detail)
        self.shard = shard
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"shard {self.shard} refused ({self.reason}): {self.detail}"


class ProcessLostError(RunError):
    """A process that the run cannot do without has died."""

    def __init__(self, what: str, cause: str) -> None:
        super().__init__(what, cause)
        self.what = what
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.what} was lost: {self.cause}"


class StageLostError(RunError):
    """A stage can go no further without another that has ended, and that knows why."""

    def __init__(self, replica: int, stage: int, detail: str) -> None:
        super().__init__(replica, stage, detail)
        self.replica = replica
        self.stage = stage
        self.detail = detail

    def __str__(self) -> str:
        return (
            f"stage {self.stage} of replica {self.replica} lost touch with another: {self.detail}"
        )


class DismissedError(RunError):
    """A replica whose gradients are refused again and again; another may do better."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"it was dismissed: {self.reason}"


class SupersededError(RunError):
    """Another process has taken the place of this one, which must not touch the run any more.

    ``what`` is the run or its coordinator, ``start`` which start of it goes on.
    """

    def __init__(self, what: str, start: int) -> None:
        super().__init__(what, start)
        self.what = what
        self.start = start

    def __str__(self) -> str:
        return f"start {self.start} of {self.what} goes on elsewhere; this one ends"
