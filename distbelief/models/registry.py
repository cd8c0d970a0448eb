"""Networks by name, or by the import path of any factory."""

from __future__ import annotations

import difflib
import importlib
import inspect
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from distbelief.config import ModelConfig
from distbelief.errors import ConfigError
from distbelief.models.dropout import use_seeded_dropout
from distbelief.models.googlenet import GoogLeNet


def _googlenet(config: ModelConfig, classes: int, image_size: int) -> nn.Module:
    return GoogLeNet(
        classes=classes,
        width=config.width,
        image_size=image_size,
        lrn=config.lrn,
        heads=config.heads,
        init=config.init,
    )


_REGISTRY: dict[str, Callable[[ModelConfig, int, int], nn.Module]] = {"googlenet": _googlenet}

_WITH_HEADS = {
    ("torchvision.models.googlenet", "googlenet"),
    ("torchvision.models.inception", "inception_v3"),
}
"""Factories with auxiliary heads, that warn unless told to draw their initial values."""


def names() -> tuple[str, ...]:
    """The networks that need no import path, sorted."""
    return tuple(sorted(_REGISTRY))


def build(config: ModelConfig, *, classes: int, image_size: int, seed: int) -> nn.Module:
    """A network on the CPU, in training mode, with float32 parameters.

    Its values are the same in every process for the same arguments; torch's global generator is
    left as it was. Its ``nn.Dropout`` layers become seeded ones. Parameters of four dimensions are
    channels-last in memory if ``config.channels_last``, all others contiguous.

    A factory by import path is called with ``num_classes=classes`` if it takes that argument.

    Args:
        config: Which network, and how wide.
        classes: Logits that it returns.
        image_size: Side of the images that it will see; factories by import path are not told.
        seed: Seed of the initial values.

    Raises:
        ConfigError: there is no such network, or the factory cannot be used.
    """
    make = _maker(config, classes, image_size)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the accelerators, which are not forked.
        torch.default_generator.manual_seed(seed)
        model = make()
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ConfigError("model", f"{config.model!r} must return a torch.nn.Module, not {kind}")
    use_seeded_dropout(model)
    model.float()
    for parameter in model.parameters():
        # Module.to(memory_format=...) fails on the five-dimensional weights of 3-d convolutions.
        last = config.channels_last and parameter.dim() == 4
        order = torch.channels_last if last else torch.contiguous_format
        parameter.data = parameter.data.contiguous(memory_format=order)
    return model.train()


def _maker(config: ModelConfig, classes: int, image_size: int) -> Callable[[], object]:
    if ":" not in config.model:
        return partial(_registered(config.model), config, classes, image_size)
    factory = _imported(config.model)
    return partial(factory, **_arguments(config, factory, classes))


def _registered(name: str) -> Callable[[ModelConfig, int, int], nn.Module]:
    if name in _REGISTRY:
        return _REGISTRY[name]
    close = difflib.get_close_matches(name, names(), n=1)
    hint = (
        f"did you mean {close[0]!r}?"
        if close
        else f"take {', '.join(names())} or an import path, package.module:function"
    )
    raise ConfigError("model", f"there is no network {name!r}; {hint}")


def _imported(path: str) -> Callable[..., object]:
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or ":" in attribute or module_name.startswith("."):
        raise ConfigError("model", f"{path!r} is not of the form package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError("model", f"cannot import {module_name!r}: {error}") from error
    try:
        factory: object = operator.attrgetter(attribute)(module)
    except AttributeError:
        close = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError("model", f"{module_name!r} has no {attribute!r}{hint}") from None
    if not callable(factory):
        kind = type(factory).__name__
        raise ConfigError("model", f"{path!r} is not a factory but of type {kind}")
    return factory


def _arguments(config: ModelConfig, factory: Callable[..., object], classes: int) -> dict[str, Any]:
    try:
        signature = inspect.signature(factory)
    except ValueError:
        # Some callables written in C do not tell; they can only be called bare.
        return {}
    arguments: dict[str, Any] = {}
    parameters = signature.parameters.values()
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    if takes_any or "num_classes" in signature.parameters:
        arguments["num_classes"] = classes
    identity = (getattr(factory, "__module__", ""), getattr(factory, "__name__", ""))
    if identity in _WITH_HEADS:
        arguments |= {"weights": None, "init_weights": True, "aux_logits": config.heads}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError("model", f"cannot call {config.model!r}: {error}") from error
    return arguments
