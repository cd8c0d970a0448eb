"""Networks by name, or by the import path of any factory."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from distbelief.config import ModelConfig
from distbelief.errors import ConfigError, DistBeliefError, place_of
from distbelief.importing import imported
from distbelief.models.dropout import use_seeded_dropout
from distbelief.models.googlenet import GoogLeNet


def _require_classes(classes: int) -> None:
    if not classes:
        raise ConfigError("classes", "the data set does not tell how many there are: say it here")


def _googlenet(config: ModelConfig, classes: int, image_size: int) -> nn.Module:
    _require_classes(classes)
    return GoogLeNet(
        classes=classes,
        width=config.width,
        image_size=image_size,
        lrn=config.lrn,
        heads=config.heads,
        init=config.init,
    )


GIVEN = "given"
"""What stands before the name of a network that was given as an object, not by an import path."""

_REGISTRY: dict[str, Callable[[ModelConfig, int, int], nn.Module]] = {"googlenet": _googlenet}

_InstanceNorm = nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d

_WITH_HEADS = {
    ("torchvision.models.googlenet", "googlenet"),
    ("torchvision.models.inception", "inception_v3"),
}
"""Factories with auxiliary heads, that warn unless told to draw their initial values."""


def names() -> tuple[str, ...]:
    """The networks that need no import path, sorted."""
    return tuple(sorted(_REGISTRY))


def build(
    config: ModelConfig,
    *,
    classes: int,
    image_size: int,
    seed: int,
    given: Callable[..., nn.Module] | nn.Module | None = None,
) -> nn.Module:
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
        given: A factory, or a module to copy, in place of what ``config.model`` names.

    Raises:
        ConfigError: there is no such network, the factory cannot be used, or the network has what
            asynchronous training cannot keep in order.
    """
    make = _maker(config, classes, image_size, given)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the accelerators, which are not forked.
        torch.default_generator.manual_seed(seed)
        try:
            model = make()
        except DistBeliefError:
            raise
        except (Exception, SystemExit) as error:  # whatever a stranger's code raises
            said = f"{type(error).__name__}: {error}{place_of(error)}"
            problem = f"{_label(config, given)} raised {said}; mend it"
            raise ConfigError("model", problem) from error
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ConfigError("model", f"{config.model!r} must return a torch.nn.Module, not {kind}")
    _refuse(model)
    use_seeded_dropout(model)
    model.float()
    for parameter in model.parameters():
        # Module.to(memory_format=...) fails on the five-dimensional weights of 3-d convolutions.
        last = config.channels_last and parameter.dim() == 4
        order = torch.channels_last if last else torch.contiguous_format
        parameter.data = parameter.data.contiguous(memory_format=order)
    return model.train()


def _maker(
    config: ModelConfig,
    classes: int,
    image_size: int,
    given: Callable[..., nn.Module] | nn.Module | None,
) -> Callable[[], object]:
    if isinstance(given, nn.Module):
        return partial(copy.deepcopy, given)
    if given is not None:
        return partial(given, **_arguments(_label(config, given), config, given, classes))
    if ":" not in config.model:
        return partial(_registered(config.model), config, classes, image_size)
    factory = _imported(config.model)
    return partial(factory, **_arguments(config.model, config, factory, classes))


def _label(config: ModelConfig, given: object) -> str:
    """What a message calls the network."""
    if given is None:
        return config.model
    return getattr(given, "__qualname__", None) or type(given).__qualname__


def _refuse(model: nn.Module) -> None:
    """What would train wrongly without a word is refused with the reason."""
    for name, module in model.named_modules():
        where = f"{name or 'the network'} ({type(module).__name__})"
        if isinstance(module, nn.SyncBatchNorm):
            raise ConfigError(
                "model",
                f"{where} waits for all replicas, which asynchronous ones do not: take "
                f"BatchNorm, whose statistics are recomputed for the averaged weights",
            )
        if isinstance(module, _InstanceNorm) and module.track_running_stats:
            raise ConfigError(
                "model",
                f"{where} keeps running statistics that cannot be recomputed for the "
                f"averaged weights: set track_running_stats=False",
            )
        own = (*module._parameters.values(), *module._buffers.values())
        if any(isinstance(tensor, UninitializedBuffer | UninitializedParameter) for tensor in own):
            raise ConfigError(
                "model", f"{where} has no shape before the first batch: give it its sizes"
            )
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise ConfigError("model", f"{name} is complex; parameters must be real")


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
    if path.startswith(f"{GIVEN}:"):
        raise ConfigError(
            "model",
            f"{path.partition(':')[2]} was given as an object by a Python program: build it there, "
            f"and load the weights into it",
        )
    return imported(path, "model")


def _arguments(
    label: str, config: ModelConfig, factory: Callable[..., object], classes: int
) -> dict[str, Any]:
    try:
        signature = inspect.signature(factory)
    except ValueError:
        # Some callables written in C do not tell; they can only be called bare.
        return {}
    arguments: dict[str, Any] = {}
    parameters = signature.parameters.values()
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    wanted = signature.parameters.get("num_classes")
    if wanted is not None and wanted.default is inspect.Parameter.empty:
        _require_classes(classes)
    if classes and (takes_any or wanted is not None):
        arguments["num_classes"] = classes
    identity = (getattr(factory, "__module__", ""), getattr(factory, "__name__", ""))
    if identity in _WITH_HEADS:
        arguments |= {"weights": None, "init_weights": True, "aux_logits": config.heads}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError("model", f"cannot call {label!r}: {error}") from error
    return arguments
