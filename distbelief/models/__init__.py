"""The networks: GoogLeNet, any other by import path, and the losses of what they return."""

from distbelief.models.googlenet import GoogLeNet, Logits
from distbelief.models.init import initialise
from distbelief.models.losses import losses, main_logits
from distbelief.models.registry import build, names

__all__ = ["GoogLeNet", "Logits", "build", "initialise", "losses", "main_logits", "names"]
