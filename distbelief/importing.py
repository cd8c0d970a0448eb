"""A user's own functions by import path, ``package.module:function``."""

from __future__ import annotations

import difflib
import importlib
import operator
from collections.abc import Callable

from distbelief.errors import ConfigError


def imported(path: str, option: str) -> Callable[..., object]:
    """The function or class of that path.

    Args:
        path: ``package.module:function``.
        option: The field that an error names.

    Raises:
        ConfigError: it is no such path, cannot be imported, or cannot be called.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or ":" in attribute or module_name.startswith("."):
        raise ConfigError(option, f"{path!r} is not of the form package.module:function")
    if module_name == "__main__":
        raise ConfigError(
            option, f"{path!r} is a script, which other processes cannot import; name a module"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a stranger's module raises
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise ConfigError(option, f"cannot import {module_name!r}: {kind}{error}") from error
    try:
        found: object = operator.attrgetter(attribute)(module)
    except AttributeError:
        close = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(option, f"{module_name!r} has no {attribute!r}{hint}") from None
    if not callable(found):
        kind = type(found).__name__
        raise ConfigError(option, f"{path!r} is not a function but of type {kind}")
    return found
