"""Which cluster a run uses, without starting any."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import ray._private.worker

from distbelief.errors import ClusterError
from distbelief.runtime.ray_cluster import (
    Cluster,
    _restrict_token,
    _without_words_of_ray,
    _word_kept,
    find_cluster,
)


@pytest.fixture
def word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ``ray start`` leaves word of a cluster."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


@pytest.fixture
def alive() -> Iterator[str]:
    """The address of a server that answers."""
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(0).wait()


@pytest.fixture
def dead() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"127.0.0.1:{port}"


def test_no_cluster_means_a_local_one(word: Path) -> None:
    assert find_cluster(None) == Cluster(None)
    assert find_cluster("local") == Cluster(None)


def test_the_cluster_of_this_host_is_joined(word: Path, alive: str) -> None:
    word.write_text(alive)
    assert find_cluster(None) == find_cluster("auto") == Cluster(alive)
    assert find_cluster("local") == Cluster(None)


@pytest.mark.parametrize("before", [None, "10.0.0.1:6379"])
def test_a_cluster_of_a_run_leaves_no_word_of_itself(word: Path, before: str | None) -> None:
    if before is not None:
        word.write_text(before)
    with _word_kept():
        word.write_text("127.0.0.1:1234")  # as Ray does when it starts one
    assert (word.read_text() if word.exists() else None) == before


def test_a_stale_trace_is_no_cluster(word: Path, dead: str) -> None:
    word.write_text(dead)
    assert find_cluster(None) == Cluster(None)
    with pytest.raises(ClusterError, match="no Ray cluster runs on this host"):
        find_cluster("auto")


def test_an_address_is_joined_if_it_answers(word: Path, alive: str, dead: str) -> None:
    assert find_cluster(alive) == Cluster(alive)
    with pytest.raises(ClusterError, match=f"{dead}: no Ray cluster answers there"):
        find_cluster(dead)


def test_the_environment_names_a_cluster(
    word: Path, alive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", alive)
    assert find_cluster(None) == Cluster(alive)


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_cluster_that_the_environment_names_must_answer(
    address: str | None, word: Path, alive: str, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    word.write_text(alive)  # what the user has named goes before what lies about
    monkeypatch.setenv("RAY_ADDRESS", dead)
    with pytest.raises(ClusterError) as caught:
        find_cluster(address)
    assert str(caught.value) == (
        f"RAY_ADDRESS names {dead}, where no Ray cluster answers within 5 s; unset it, or say "
        f"--address local"
    )


def test_what_the_environment_names_is_not_asked_for_in_vain(
    word: Path, alive: str, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", dead)
    assert find_cluster("local") == Cluster(None)
    assert find_cluster(alive) == Cluster(alive)


@pytest.mark.parametrize("value", ["", "auto", "local"])
def test_an_environment_that_names_no_cluster_is_passed_over(
    value: str, word: Path, alive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert find_cluster(None) == Cluster(None)
    word.write_text(alive)
    assert find_cluster(None) == Cluster(alive)


@pytest.mark.parametrize("address", ["somewhere", "host:", ":6379", "host:port"])
def test_what_is_no_address(word: Path, address: str) -> None:
    with pytest.raises(ClusterError, match="say auto, local, inprocess or HOST:PORT"):
        find_cluster(address)


def test_the_clusters_token_is_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    _restrict_token()  # there is none yet
    token.write_text("secret")
    token.chmod(0o644)
    _restrict_token()
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() == "secret"


def test_ray_does_not_tell_of_deaths_itself(capsys: pytest.CaptureFixture[str]) -> None:
    def tell(who: str) -> str:
        lines = [f"{who} died"]  # the same line would not be printed twice
        ray._private.worker.print_to_stdstream(
            {"lines": lines, "pid": "raylet", "is_err": False}, ignore_prefix=False
        )
        return capsys.readouterr().out

    with _without_words_of_ray():
        assert tell("somebody") == ""
    assert "another died" in tell("another")
