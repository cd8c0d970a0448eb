"""Who may listen in and who may speak: mutual TLS between the processes of a run, if asked for.

Each node has a folder with three files, under the same path: ``ca.pem``, the certificate of an
authority of the user's own; ``cert.pem``, which that authority has signed, for servers and clients
alike; and ``key.pem``, its private key. Server and client both show the certificate, and each
demands of the other one that the same authority has signed. The hosts of a cluster come and go with
their addresses, so a certificate does not name them: it bears the DNS name ``distbelief``, for
which clients ask wherever they connect to. ``cluster/make-certificates.sh`` makes such a folder.
"""

from __future__ import annotations

import socket
import ssl
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from distbelief.errors import ConfigError
from distbelief.replication import ClusterConfig

NAME = "distbelief"
"""The DNS name that every certificate bears, whatever host it lies on."""

UNCOMPRESSED = ("grpc.compression_enabled_algorithms_bitset", 1)
"""Nothing compressed is taken: a small message could hold gigabytes, and gradients gain nothing."""

MAX_FLIGHTS = 10

REMEDY = "cluster/make-certificates.sh makes a folder that fits"


@dataclass(frozen=True, slots=True)
class Tls:
    """A folder with ``ca.pem``, ``cert.pem`` and ``key.pem``."""

    folder: Path

    @classmethod
    def of(cls, cluster: ClusterConfig) -> Tls | None:
        """What the configuration asks for, checked on this host; None if it asks for none.

        Raises:
            ConfigError: see :meth:`check`.
        """
        if cluster.tls is None:
            return None
        tls = cls(Path(cluster.tls))
        tls.check()
        return tls

    @property
    def authority(self) -> Path:
        """Certificate of the authority."""
        return self.folder / "ca.pem"

    @property
    def certificate(self) -> Path:
        """Certificate of every process."""
        return self.folder / "cert.pem"

    @property
    def key(self) -> Path:
        """Its private key."""
        return self.folder / "key.pem"

    def check(self) -> None:
        """Makes sure that two processes with these files would trust each other, today.

        Raises:
            ConfigError: a file is missing, unreadable or damaged, the key is open to others, or the
                files do not belong together.
        """
        host = socket.gethostname()
        for path in (self.authority, self.certificate, self.key):
            try:
                with path.open("rb") as file:
                    file.read(1)
            except OSError as error:
                problem = f"{path} cannot be read on {host}: {error.strerror or error}"
                remedy = f"every node must have the same folder; {REMEDY}"
                raise ConfigError("tls", f"{problem}; {remedy}") from error
        if stat.S_IMODE(self.key.stat().st_mode) & 0o077:
            problem = f"{self.key} is open to others on {host}"
            raise ConfigError("tls", f"{problem}; say chmod 600 {self.key}")
        try:
            self._meet_itself()
        except ssl.SSLCertVerificationError as error:
            problem = f"the certificate in {self.folder} on {host} is refused"
            raise ConfigError("tls", f"{problem}: {error.verify_message}; {REMEDY}") from error
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            problem = f"the files in {self.folder} on {host} do not belong together: {reason}"
            raise ConfigError("tls", f"{problem}; {REMEDY}") from error

    def _meet_itself(self) -> None:
        """Both ends of a connection, in memory, with these files."""
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for context in (server, client):
            # A key under a passphrase is of no use here; without one ssl would ask the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
            context.load_verify_locations(self.authority)
            context.verify_mode = ssl.CERT_REQUIRED
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = (
            client.wrap_bio(back, there, server_hostname=NAME),
            server.wrap_bio(there, back, server_side=True),
        )
        for _ in range(MAX_FLIGHTS):
            for end in ends:
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()


def open_channel(
    address: str, tls: Tls | None, options: Sequence[tuple[str, Any]] = ()
) -> grpc.Channel:
    """A channel to ``HOST:PORT``; without ``tls`` everything on it can be read on its way.

    Nothing is sent before the first call. With ``tls`` calls fail, with UNAVAILABLE, to a server
    that does not show a certificate of the same authority.

    Raises:
        OSError: a file of ``tls`` cannot be read.
    """
    options = [*options, UNCOMPRESSED]
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=tls.authority.read_bytes(),
        private_key=tls.key.read_bytes(),
        certificate_chain=tls.certificate.read_bytes(),
    )
    options.append(("grpc.ssl_target_name_override", NAME))
    return grpc.secure_channel(address, credentials, options=options)


def bind(server: grpc.Server, address: str, tls: Tls | None) -> int:
    """Has a server listen on ``HOST:PORT``; returns the port, a free one for port 0.

    With ``tls`` a connection is closed unless the client shows a certificate of the same authority.

    Raises:
        OSError: a file of ``tls`` cannot be read.
        RuntimeError: the port is taken.
    """
    if tls is None:
        return server.add_insecure_port(address)
    credentials = grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.certificate.read_bytes())],
        root_certificates=tls.authority.read_bytes(),
        require_client_auth=True,
    )
    return server.add_secure_port(address, credentials)
