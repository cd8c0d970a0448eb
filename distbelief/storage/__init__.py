"""A run's folder, by path or by URL: files that are either whole or not there, and logs.

    Storage            what a run needs of its folder
    ├── LocalStorage   a path (or file://…) that every node sees
    └── RemoteStorage  any other fsspec URL: s3://…, gs://…, memory://… (inside one process)

Names are relative to the folder, with forward slashes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from distbelief.errors import ConfigError
from distbelief.storage.contract import Log, Storage
from distbelief.storage.local import LocalStorage
from distbelief.storage.remote import RemoteStorage

__all__ = ["LocalStorage", "Log", "RemoteStorage", "Storage", "storage_at", "write_json"]


def storage_at(url: str | os.PathLike[str], field: str = "run_dir") -> Storage:
    """The storage of a path or fsspec URL; nothing is made or looked at yet.

    Args:
        url: A path, relative ones to the working directory, or a URL.
        field: The option that an error shall name.

    Raises:
        ConfigError: no filesystem of that name, or one whose package is not installed.
    """
    text = os.fspath(url)
    if "://" not in text:
        return LocalStorage(Path(text).expanduser().absolute())
    if text.startswith(("file://", "local://")):
        return LocalStorage(Path(unquote(urlsplit(text).path)).absolute())
    storage = RemoteStorage(text if text.endswith("://") else text.rstrip("/"))
    try:
        _ = storage.filesystem
    except (ValueError, ImportError) as error:
        raise ConfigError(field, f"cannot use {text}: {error}") from error
    return storage


def write_json(storage: Storage, name: str, value: Any) -> None:
    """Writes a value as indented JSON."""
    storage.write(name, (json.dumps(value, indent=2) + "\n").encode())
