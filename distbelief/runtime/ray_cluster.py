"""Finding, joining or starting a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray._private.worker
from ray._private.state import available_resources_per_node
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.exceptions import RayError

from distbelief.errors import ClusterError
from distbelief.runtime.placement import REPLICA, SHARD, Node
from distbelief.transport.probe import answers_grpc, asks_for_a_token

PROBE_S = 5.0
OBJECT_STORE_NBYTES = 80 << 20
"""Ray's least is 75 MiB; no parameters go through it."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a run goes: ``address`` is None for a local cluster of its own."""

    address: str | None


def find_cluster(address: str | None) -> Cluster:
    """Decides which cluster a run uses, without connecting to it.

    Args:
        address: ``auto``, ``local``, HOST:PORT, or None: the cluster that runs on this host, if one
            does and answers, else a local one.

    Raises:
        ClusterError: no cluster answers where one was asked for.
    """
    if address == "local":
        return Cluster(None)
    if address in (None, "auto"):
        found = _cluster_of_this_host()
        if found is not None:
            return Cluster(found)
        if address is None:
            return Cluster(None)
        raise ClusterError(
            "--address auto: no Ray cluster runs on this host; start one with "
            "`ray start --head`, or leave --address out"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ClusterError(
            f"--address {address}: say auto, local, inprocess or HOST:PORT, as in 10.0.0.1:6379"
        )
    if not answers_grpc(address, PROBE_S):
        raise ClusterError(
            f"--address {address}: no Ray cluster answers there within {PROBE_S:g} s; see "
            f"`ray status` on its head"
        )
    return Cluster(address)


def _cluster_of_this_host() -> str | None:
    """The cluster that ``ray start`` has left word of, if it still answers.

    The word outlives a cluster that was killed, and Ray itself would wait for such a one.
    """
    given = os.environ.get("RAY_ADDRESS")
    if given and given not in ("auto", "local"):
        if not answers_grpc(given, PROBE_S):
            raise ClusterError(
                f"RAY_ADDRESS names {given}, where no Ray cluster answers within {PROBE_S:g} s; "
                f"unset it, or say --address local"
            )
        return given
    word = _word_file()
    try:
        address = word.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return address if address and answers_grpc(address, PROBE_S) else None


def _word_file() -> Path:
    folder = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()))
    return folder / "ray" / "ray_current_cluster"


@contextmanager
def _word_kept() -> Iterator[None]:
    """A cluster that is started in this block leaves no word of itself: no other run shall join it.

    Ray writes its address where others look for the cluster of this host, and it ends with its run.
    """
    word = _word_file()
    before = word.read_bytes() if word.exists() else None
    try:
        yield
    finally:
        if before is None:
            word.unlink(missing_ok=True)
        else:
            word.write_bytes(before)


@contextmanager
def connected(cluster: Cluster, *, n_shards: int, n_stages: int) -> Iterator[None]:
    """Connects this process to the cluster, or starts a local one, for the time of the block.

    Args:
        cluster: Which one.
        n_shards: Shards, twins included, that a local one has room for.
        n_stages: Stages of all replicas that a local one has room for.
    """
    if ray.is_initialized():
        yield
        return
    if cluster.address is None:
        # Resources of our own, since CPU fractions on small hosts leave actors pending for ever.
        with _word_kept():
            ray.init(
                address="local",
                num_cpus=1,
                resources={SHARD: n_shards, REPLICA: n_stages},
                object_store_memory=OBJECT_STORE_NBYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    else:
        _use_token_of_this_host(cluster.address)
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, RayError) as error:
            raise ClusterError(
                f"--address {cluster.address}: cannot join the Ray cluster there: {error}"
            ) from error
    with _without_words_of_ray():
        try:
            _restrict_token()
            yield
        finally:
            ray.shutdown()


@contextmanager
def _without_words_of_ray() -> Iterator[None]:
    """Ray prints a paragraph for each process that dies, whatever ``log_to_driver`` says.

    Of deaths the run itself tells. The switch is the one by which Ray's debugger keeps the terminal
    to itself.
    """
    ray._private.worker._worker_logs_enabled = False
    try:
        yield
    finally:
        ray._private.worker._worker_logs_enabled = True


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()


def _restrict_token() -> None:
    """Ray writes its token for everybody to read; it lets its bearer run code as this user."""
    with contextlib.suppress(FileNotFoundError):
        _token_file().chmod(0o600)


def _use_token_of_this_host(address: str) -> None:
    """``ray start --head`` wants a token where the file exists, but a driver does not send it.

    The file may also be left from another cluster: one that wants no token would let its actors
    die at the sight of it.
    """
    undecided = "RAY_AUTH_MODE" not in os.environ and _token_file().exists()
    if undecided and asks_for_a_token(address, PROBE_S):
        os.environ["RAY_AUTH_MODE"] = "token"
        Config.initialize("")  # Ray read the environment when it was imported


def nodes() -> list[Node]:
    """The nodes that are alive, with what is free on each."""
    free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        Node(
            node["NodeID"],
            node["NodeManagerHostname"],
            free=dict(free.get(node["NodeID"], {})),
            total=dict(node["Resources"]),
        )
        for node in known
        if node["Alive"]
    ]
