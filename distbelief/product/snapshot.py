"""The weights of a run that has not written its model yet, from its newest snapshot."""

from __future__ import annotations

import json
from typing import Literal

from torch import Tensor

from distbelief.coordinator.snapshots import MANIFEST, Manifest, abandoned_snapshots
from distbelief.errors import DataError
from distbelief.layout import Layout
from distbelief.server.statefile import SNAPSHOTS, read_vector, snapshot_folder
from distbelief.storage import Storage


def newest_vector(
    storage: Storage, source: str, layout: Layout, weights: Literal["averaged", "latest"]
) -> Tensor:
    """The newest snapshot's averaged or latest weights, ``(layout.size,) float32``.

    The snapshot needs not be even. Where nothing was averaged yet, the latest are the average.

    Args:
        storage: The run's folder.
        source: What messages call it.
        layout: Of the model that the weights are for.
        weights: Which.

    Raises:
        DataError: there is no snapshot, it is damaged, or of another network.
    """
    manifest = _newest_manifest(storage, source)
    if layout.fingerprint != manifest.layout:
        problem = "its snapshots are of another network than is built here; install its versions"
        raise DataError(source, problem)
    name = "average" if weights == "averaged" else "parameters"
    return read_vector(storage, manifest.number, manifest.files, name)


def _newest_manifest(storage: Storage, source: str) -> Manifest:
    abandoned = abandoned_snapshots(json.loads(storage.read("config.json")))
    found = (int(name) for name in storage.names(SNAPSHOTS) if name.isdigit())
    numbers = (number for number in found if number not in abandoned)
    for number in sorted(numbers, reverse=True):
        name = f"{snapshot_folder(number)}/{MANIFEST}"
        try:
            return Manifest.from_dict(json.loads(storage.read(name)))
        except FileNotFoundError:
            continue  # it is still being written, or never was to its end
        except OSError as error:
            raise DataError(f"{storage.url}/{name}", f"cannot be read: {error}") from error
        except ValueError as error:
            raise DataError(f"{storage.url}/{name}", f"is damaged: {error}") from error
    raise DataError(source, "has neither model.safetensors nor a snapshot yet; wait for its first")
