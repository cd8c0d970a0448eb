"""Asynchronous, parameter-server training on Ray, after DistBelief.

:func:`train` is what ``distbelief train`` does, for objects of one's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distbelief.config import TrainConfig
from distbelief.errors import (
    ClusterError,
    ConfigError,
    DataError,
    DistBeliefError,
    RunError,
    UsageError,
)

if TYPE_CHECKING:
    from distbelief.api import Run, train

__version__ = "0.1.0"

__all__ = [
    "ClusterError",
    "ConfigError",
    "DataError",
    "DistBeliefError",
    "Run",
    "RunError",
    "TrainConfig",
    "UsageError",
    "__version__",
    "train",
]

_LATE = ("Run", "train")
"""What is imported when it is asked for: torch takes seconds, which `--help` shall not."""


def __getattr__(name: str) -> Any:
    if name in _LATE:
        from distbelief import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
