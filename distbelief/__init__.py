"""Asynchronous, parameter-server training on Ray, after DistBelief."""

__version__ = "0.1.0"
