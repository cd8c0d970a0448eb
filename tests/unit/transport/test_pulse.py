"""Signs of life over gRPC, of real processes that are stopped, killed, busy, or leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest

from distbelief.transport._generated import supervisor_pb2 as pb
from distbelief.transport.guard import authorization
from distbelief.transport.pulse import MAX_MESSAGE_NBYTES, SERVICE, Pulse, PulseServer
from distbelief.transport.security import Tls

TOKEN = "the run's token"
HANG_S = 60.0
MAKE = Path(__file__).parents[3] / "cluster" / "make-certificates.sh"

IDLE = """
import sys
from distbelief.transport.pulse import Pulse
with Pulse(sys.argv[1], sys.argv[2], sys.argv[3], every_s=0.1):
    print("here", flush=True)
    sys.stdin.readline()
print("left", flush=True)
"""

BUSY = """
import ctypes, sys, threading
from distbelief.transport.pulse import Pulse
asleep = ctypes.PyDLL(None).usleep  # keeps the interpreter's lock, as a bad extension does
def hold():
    while True:
        asleep(500_000)
        sum(range(1_000))
with Pulse(sys.argv[1], sys.argv[2], sys.argv[3], every_s=0.1):
    print("here", flush=True)
    threading.Thread(target=hold, daemon=True).start()
    sys.stdin.readline()
"""


class Processes:
    """Starts processes that send pulses; all end with the test."""

    def __init__(self, endpoint: str, stack: ExitStack) -> None:
        self._endpoint = endpoint
        self._stack = stack

    def start(self, name: str, script: str = IDLE) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, self._endpoint, TOKEN, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(self._end, process)
        return process

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


@pytest.fixture
def server() -> Iterator[PulseServer]:
    with PulseServer(TOKEN, n_processes=4, silent_s=2.0, closed_s=1.0) as server:
        yield server


def until(condition: Callable[[], bool]) -> None:
    """Looks each 50 ms, as a supervisor would; fails when it takes so long that it hangs."""
    give_up_at = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def late(server: PulseServer) -> dict[str, str]:
    return {silent.name: silent.what for silent in server.late()}


def heard(server: PulseServer) -> set[str]:
    return set(server._beats._heard)


def test_real_processes(server: PulseServer) -> None:
    """One is stopped, one is killed, one holds its interpreter's lock most of the time, one leaves.

    Only the first two are given up, and each is told as what it is.
    """
    with ExitStack() as stack:
        processes = Processes(server.endpoint, stack)
        names = ("stopped", "killed", "leaves")
        started = {name: processes.start(name) for name in names}
        started["busy"] = processes.start("busy", BUSY)
        until(lambda: late(server) == {} and heard(server) == set(started))

        leaves = started["leaves"]
        leaves.communicate("\n", timeout=HANG_S)
        assert leaves.returncode == 0
        until(lambda: "leaves" not in heard(server))
        os.kill(started["stopped"].pid, signal.SIGSTOP)
        started["killed"].kill()
        found: set[str] = set()

        def look() -> bool:
            found.update(now := late(server))
            return set(now) == {"stopped", "killed"}

        until(look)
        assert found == {"stopped", "killed"}
        assert late(server)["killed"] == "its connection ended"
        assert late(server)["stopped"].startswith("it did not say anything for ")
        for name in found:
            server.forget(name)
        os.kill(started["stopped"].pid, signal.SIGCONT)
        assert late(server) == {}
        # The one that was stopped and woken is heard no more, and ends as if nothing had been.
        started["stopped"].communicate("\n", timeout=HANG_S)
        assert started["stopped"].returncode == 0
        assert heard(server) == {"busy"}


def test_a_process_finds_the_server_again() -> None:
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        server = first.enter_context(PulseServer(TOKEN, n_processes=1))
        host, _, port = server.endpoint.rpartition(":")
        stack.enter_context(Pulse(server.endpoint, TOKEN, "a", every_s=0.05))
        until(lambda: heard(server) == {"a"})
        first.close()
        second = stack.enter_context(PulseServer(TOKEN, host=host, port=int(port), n_processes=1))
        until(lambda: late(second) == {} and heard(second) == {"a"})


def test_a_process_ends_though_nobody_listens(server: PulseServer) -> None:
    with Pulse("127.0.0.1:1", TOKEN, "a"):
        pass
    with Pulse(server.endpoint, "another token", "b", every_s=0.05):
        pass
    assert heard(server) == set()
    assert not [t for t in threading.enumerate() if t.name == "pulse"]


def test_a_server_that_does_not_answer_holds_nobody(server: PulseServer) -> None:
    pulse = Pulse(server.endpoint, TOKEN, "a", every_s=0.05)
    with pulse:
        until(lambda: heard(server) == {"a"})
        server._lock.acquire()  # what a server that was stopped looks like from here
    server._lock.release()
    assert not pulse._thread.is_alive()


def test_a_name_that_left_stays_so(server: PulseServer) -> None:
    with Pulse(server.endpoint, TOKEN, "a", every_s=0.05):
        until(lambda: heard(server) == {"a"})
    until(lambda: heard(server) == set())
    beat = call(server)
    assert beat(iter([pb.Pulse(name="a")]), metadata=authorization(TOKEN)) == pb.PulseReply()
    assert heard(server) == set()


@pytest.mark.parametrize("metadata", [(), authorization("wrong"), (("authorization", TOKEN),)])
def test_without_the_token(server: PulseServer, metadata: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(server)(iter([pb.Pulse(name="a")]), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert heard(server) == set()


def test_a_message_that_is_too_long(server: PulseServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(server)(iter([pb.Pulse(name="x" * MAX_MESSAGE_NBYTES)]), metadata=authorization(TOKEN))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert heard(server) == set()


def test_under_certificates(tmp_path: Path) -> None:
    """Those who show none, or whose files have gone, are not heard, and do not fail of it."""
    subprocess.run([MAKE, tmp_path / "tls"], check=True, capture_output=True)
    tls = Tls(tmp_path / "tls")
    with PulseServer(TOKEN, n_processes=3, tls=tls) as server:
        with (
            Pulse(server.endpoint, TOKEN, "plain", every_s=0.05),
            Pulse(server.endpoint, TOKEN, "lost", every_s=0.05, tls=Tls(tmp_path / "nothing")),
            Pulse(server.endpoint, TOKEN, "a", every_s=0.05, tls=tls),
        ):
            until(lambda: heard(server) != set())
            assert heard(server) == {"a"}
        until(lambda: heard(server) == set())


def test_a_message_that_is_none(server: PulseServer) -> None:
    channel = grpc.insecure_channel(server.endpoint, options=[("grpc.enable_http_proxy", 0)])
    beat = channel.stream_unary(f"/{SERVICE}/Beat", bytes, pb.PulseReply.FromString)
    with pytest.raises(grpc.RpcError) as caught:
        beat(iter([b"\xff"]), metadata=authorization(TOKEN))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert heard(server) == set()


def call(server: PulseServer) -> grpc.StreamUnaryMultiCallable:
    channel = grpc.insecure_channel(server.endpoint, options=[("grpc.enable_http_proxy", 0)])
    return channel.stream_unary(
        f"/{SERVICE}/Beat", pb.Pulse.SerializeToString, pb.PulseReply.FromString
    )
