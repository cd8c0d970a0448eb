"""Where to divide a network into stages, and what these are expected to do."""

from distbelief.planner.explain import Explanation, Measured
from distbelief.planner.planning import Planned, plan_stages

__all__ = ["Explanation", "Measured", "Planned", "plan_stages"]
