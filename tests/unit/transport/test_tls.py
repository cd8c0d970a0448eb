"""Mutual TLS between shards and those who call them, and folders that do not fit."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import torch

from distbelief.config import ClusterConfig
from distbelief.errors import ConfigError, ShardRefusedError, TransportError
from distbelief.server.shard import Shard
from distbelief.transport.client import ShardClient
from distbelief.transport.codec import CHUNK_NBYTES
from distbelief.transport.guard import authorization
from distbelief.transport.security import NAME, Tls
from distbelief.transport.service import SERVICE, ShardServer
from distbelief.types import Push, PushStatus

TOKEN = "the run's token"
MakePush = Callable[..., Push]

MAKE = Path(__file__).parents[3] / "cluster" / "make-certificates.sh"


def make(folder: Path, *days: str) -> Tls:
    subprocess.run([MAKE, folder, *days], check=True, capture_output=True)
    return Tls(folder)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make(tmp_path_factory.mktemp("tls") / "theirs")


@pytest.fixture
def copy(tls: Tls, tmp_path: Path) -> Tls:
    """A folder that a test may change."""
    return Tls(shutil.copytree(tls.folder, tmp_path / "tls"))


def test_the_script_makes_a_folder_that_fits_and_keeps_what_is_there(tmp_path: Path) -> None:
    tls = make(tmp_path / "new folder" / "tls")
    tls.check()
    assert {
        path.name: path.stat().st_mode & 0o777 for path in tls.folder.iterdir()
    } == dict.fromkeys(("ca.pem", "cert.pem", "key.pem"), 384)
    assert tls.folder.stat().st_mode & 0o777 == 0o700
    tls.certificate.unlink()
    before = tls.key.read_bytes()
    again = subprocess.run([MAKE, tls.folder], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert f"{tls.authority} is there already" in again.stderr
    assert tls.key.read_bytes() == before
    for arguments in ([], [""], [tmp_path / "x", "many"], [tmp_path / "x", "1", "2"]):
        assert subprocess.run([MAKE, *arguments], capture_output=True).returncode == 2


def test_pushes_and_fetches_go_through_tls(
    start_shard: Callable[..., Shard], make_push: MakePush, tls: Tls
) -> None:
    size = 3 * CHUNK_NBYTES // 4
    shard = start_shard(size)
    gradient = torch.arange(size, dtype=torch.float32)
    with (
        ShardServer(shard, size=size, token=TOKEN, n_clients=1, tls=tls) as server,
        ShardClient(0, server.endpoint, TOKEN, tls=tls) as client,
    ):
        out = torch.empty(size)
        assert client.push(make_push(0, gradient), fetch_into=out).status is PushStatus.APPLIED
        assert torch.equal(out, -gradient)


def test_without_a_certificate_of_the_same_authority_nobody_gets_through(
    start_shard: Callable[..., Shard], tls: Tls, strange: Tls, copy: Tls
) -> None:
    shutil.copy(strange.certificate, copy.certificate)  # trusts ours, shows another's
    shutil.copy(strange.key, copy.key)
    trust = grpc.ssl_channel_credentials(tls.authority.read_bytes())
    override = [("grpc.ssl_target_name_override", NAME)]
    with ShardServer(start_shard(), size=4, token=TOKEN, n_clients=1, tls=tls) as server:
        with grpc.secure_channel(server.endpoint, trust, override) as channel:
            state = channel.unary_unary(f"/{SERVICE}/State")
            with pytest.raises(grpc.RpcError) as caught:
                state(b"", timeout=60, metadata=authorization(TOKEN))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        for given in (None, strange, copy):
            with (
                ShardClient(0, server.endpoint, TOKEN, timeout_s=60, tls=given) as client,
                pytest.raises(TransportError, match="UNAVAILABLE"),
            ):
                client.state()
        with (
            ShardClient(0, server.endpoint, "another", tls=tls) as client,
            pytest.raises(ShardRefusedError, match="unauthenticated"),
        ):
            client.state()
        with ShardClient(0, server.endpoint, TOKEN, tls=tls) as client:
            assert client.healthy()


def test_a_client_does_not_trust_another_authoritys_server(
    start_shard: Callable[..., Shard], tls: Tls, strange: Tls
) -> None:
    shard = start_shard()
    for given in (None, strange):
        with (
            ShardServer(shard, size=4, token=TOKEN, n_clients=1, tls=given) as server,
            ShardClient(0, server.endpoint, TOKEN, timeout_s=60, tls=tls) as client,
            pytest.raises(TransportError, match="UNAVAILABLE"),
        ):
            client.state()


def test_a_configuration_without_a_folder_has_no_tls(tls: Tls) -> None:
    assert Tls.of(ClusterConfig()) is None
    assert Tls.of(ClusterConfig(tls=str(tls.folder))) == tls


def spoil(content: bytes) -> bytes:
    return content[:100] + b"!!!!" + content[104:]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda ours, theirs: ours.authority.unlink(), r"ca.pem cannot be read on .*: No such"),
        (lambda ours, theirs: ours.certificate.unlink(), r"cert.pem cannot be read on .*: No such"),
        (lambda ours, theirs: ours.key.unlink(), r"every node must have the same folder; cluster/"),
        (lambda ours, theirs: ours.key.chmod(0o640), r"open to others on .*; say chmod 600 .*/key"),
        (lambda ours, theirs: ours.key.chmod(0o604), r"open to others on .*; say chmod 600 .*/key"),
        (
            lambda ours, theirs: ours.key.write_bytes(theirs.key.read_bytes()),
            "do not belong together: KEY_VALUES_MISMATCH",
        ),
        (
            lambda ours, theirs: ours.authority.write_bytes(theirs.authority.read_bytes()),
            "is refused: .*; cluster/make-certificates.sh makes a folder that fits",
        ),
        (
            lambda ours, theirs: ours.certificate.write_bytes(ours.authority.read_bytes()),
            "do not belong together",
        ),
        (
            lambda ours, theirs: ours.certificate.write_bytes(spoil(ours.certificate.read_bytes())),
            "do not belong together",
        ),
        (lambda ours, theirs: ours.authority.write_bytes(b""), "do not belong together"),
        (lambda ours, theirs: ours.key.write_bytes(b"\xff\0"), "do not belong together"),
    ],
)
def test_a_folder_that_does_not_fit_is_said_to_be_so(
    copy: Tls, strange: Tls, change: Callable[[Tls, Tls], None], problem: str
) -> None:
    change(copy, strange)
    with pytest.raises(ConfigError, match=problem) as caught:
        Tls.of(ClusterConfig(tls=str(copy.folder)))
    assert str(caught.value).startswith("--tls: ")


def test_a_certificate_that_has_ended_is_refused(tmp_path: Path) -> None:
    tls = make(tmp_path / "tls", "0")
    with pytest.raises(ConfigError, match="is refused: certificate has expired"):
        tls.check()
