"""Connections that say nothing, or half a handshake, keep no client out."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import zmq

from srstream.client.jobs import Client
from srstream.protocol.keys import ClientKey, KeyRing
from tests.daemon.zmq.test_gate import GREETING
from tests.daemon.zmq.test_keys import free_port
from tests.support.service.control import Daemon, daemon

NUM_SILENT = 400  # more than the 256 connections that are served
HANDSHAKE_SECONDS = 5.0  # after which libzmq ends them by itself
HALVES = {
    "nothing": b"",
    "greeting": GREETING,
    "CURVE greeting": GREETING.replace(b"NULL\0", b"CURVE"),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str, ClientKey]]:
    folder = tmp_path_factory.mktemp("run")
    key = KeyRing(folder / "keys").new("studio")
    address = f"tcp://127.0.0.1:{free_port()}"
    with daemon(folder, "--tcp", address, "--keys", folder / "keys") as it:
        yield it, address, key


def connected(stack: ExitStack, address: str) -> socket.socket:
    if address.startswith("tcp://"):
        host, port = address.removeprefix("tcp://").split(":")
        return stack.enter_context(socket.create_connection((host, int(port))))
    ours = stack.enter_context(socket.socket(socket.AF_UNIX))
    ours.connect(address.removeprefix("ipc://"))
    return ours


@pytest.mark.parametrize("sent", HALVES)
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_new_client_does_not_wait_for_silent_ones(
    running: tuple[Daemon, str, ClientKey], transport: str, sent: str
) -> None:
    it, tcp, key = running
    address = tcp if transport == "tcp" else it.address
    with ExitStack() as stack, Client(address, key=key) as old:
        assert old.health().ok
        for _ in range(NUM_SILENT):
            with suppress(OSError):  # it may have been ended already
                connected(stack, address).sendall(HALVES[sent])
        begun = time.monotonic()
        with Client(address, key=key) as new:
            assert new.health().ok
        assert time.monotonic() - begun < HANDSHAKE_SECONDS / 2
        assert old.health().ok  # one that has spoken keeps its place


def test_clients_that_have_spoken_keep_their_places(tmp_path: Path) -> None:
    with daemon(tmp_path, "--max-clients", 4) as small, ExitStack() as stack:
        clients = [stack.enter_context(Client(small.address)) for _ in range(4)]
        assert all(client.health().ok for client in clients)
        monitors = []
        for client in clients:
            assert client._connection is not None
            monitors.append(client._connection._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED))
        silent = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(40)]
        for each in silent:
            each.connect(str(small.path))
        assert all(client.health().ok for client in clients)
        assert not any(monitor.poll(0) for monitor in monitors)  # on the connections of before
