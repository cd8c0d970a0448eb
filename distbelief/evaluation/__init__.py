"""How good a network is, and the running statistics that averaged weights need first."""

from distbelief.evaluation.accuracy import Accuracy, AccuracyMeter, evaluate
from distbelief.evaluation.statistics import has_running_statistics, recompute_running_statistics

__all__ = [
    "Accuracy",
    "AccuracyMeter",
    "evaluate",
    "has_running_statistics",
    "recompute_running_statistics",
]
