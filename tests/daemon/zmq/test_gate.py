"""The gate before libzmq: it counts frames however they are cut, and ends endless messages."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from srstream.client.jobs import Client
from srstream.daemon.api.zmq.gate import FrameCounter, FrameError, GateLimits
from tests.support.service.control import Daemon, daemon

GREETING = (
    b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
)  # signature, version, mechanism, as-server and filler
LIMITS = GateLimits(
    max_parts=64,
    max_part_bytes=1 << 16,
    max_message_bytes=1 << 17,
    max_unfinished_bytes=1 << 20,
    max_message_seconds=1.0,
    messages_per_second=1000.0,
)
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


def frame(body: bytes, *, more: bool = False, command: bool = False, long: bool = False) -> bytes:
    flags = more | (4 if command else 0)
    if long or len(body) > 255:
        return bytes([flags | 2]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


def feed(*pieces: bytes) -> None:
    counter = FrameCounter(LIMITS)
    for piece in pieces:
        counter.feed(memoryview(piece))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


messages = st.lists(
    st.lists(st.binary(max_size=400), min_size=1, max_size=8), min_size=1, max_size=5
)
places = st.lists(st.integers(0, 10_000), max_size=30)


@given(messages, places, st.booleans())
def test_messages_pass_however_they_are_cut(
    parts: list[list[bytes]], places: list[int], long: bool
) -> None:
    data = GREETING + frame(READY, command=True)
    for message in parts:
        for part in message[:-1]:
            data += frame(part, more=True, long=long)
        data += frame(message[-1], long=long) + frame(b"\x04PING", command=True)
    feed(*cut(data, places))
    many = b"".join(frame(b"x", more=True, long=long) for _ in range(65))
    with pytest.raises(FrameError, match="too many parts"):
        feed(*cut(data + many, places))


@given(st.binary(max_size=300), places)
def test_any_bytes_are_followed_or_refused(data: bytes, places: list[int]) -> None:
    for begin in (b"", GREETING):
        try:
            feed(*cut(begin + data, places))
        except FrameError:
            with pytest.raises(FrameError):  # where they are cut makes no difference
                feed(begin + data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\n", "not ZMTP 3"),
        (b"\xff" + bytes(8) + b"\x7f\x01", "not ZMTP 3"),
        (GREETING.replace(b"NULL\0", b"CURVE"), "another mechanism"),
        (GREETING + b"\x02" + (1 << 62).to_bytes(8, "big"), "a part too large"),
        (GREETING + b"\x06" + (1 << 20).to_bytes(8, "big"), "a part too large"),
        (GREETING + 3 * frame(bytes(60_000), more=True), "too many parts"),
    ],
)
def test_what_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(FrameError, match=said):
        feed(data)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("run"), "--max-clients", 20) as it:
        yield it


def connected(running: Daemon) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    connection.connect(str(running.path))
    return connection


def is_ended(connection: socket.socket) -> bool:
    """Whether the other side ends a connection, whatever it sends before."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("size", [0, 1, 1000, 65000])
def test_a_message_without_end_is_ended_and_hurts_nobody(running: Daemon, size: int) -> None:
    with Client(running.address) as client:
        assert client.health().ok
        before = running.resident_bytes()
        for _ in range(5):
            with connected(running) as connection:
                connection.sendall(GREETING + frame(READY, command=True))
                try:
                    for _ in range(1000):
                        connection.sendall(frame(bytes(size), more=True) * 100)
                except (ConnectionError, TimeoutError):
                    pass
                assert is_ended(connection)
            begun = time.monotonic()
            assert client.health().ok
            assert time.monotonic() - begun < 0.1
    assert running.resident_bytes() < 1.1 * before


def test_a_client_that_does_not_speak_is_ended(running: Daemon) -> None:
    with connected(running) as silent:
        silent.settimeout(10)
        assert is_ended(silent)  # libzmq's time for a handshake is 5 s
    with connected(running) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert is_ended(stranger)


def test_connections_leave_nothing_behind(running: Daemon) -> None:
    with Client(running.address) as client:
        client.health()
        before = running.num_descriptors()
        for _ in range(100):
            with Client(running.address) as other:
                other.health()
        deadline = time.monotonic() + 5
        while running.num_descriptors() > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert running.num_descriptors() <= before


def test_no_more_connections_than_allowed_and_room_again_later(running: Daemon) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    crowd = [context.socket(zmq.DEALER) for _ in range(60)]
    for each in crowd:
        each.linger = 0
        each.connect(running.address)
    time.sleep(0.5)
    # Three descriptors a client: its own, and both ends of the way to libzmq; and the base ones.
    assert running.num_descriptors() < 3 * (20 + 16) + 40
    for each in crowd:
        each.close()
    context.term()
    with Client(running.address) as client:
        assert client.health().ok


def test_only_the_daemons_user_can_go_round_the_gate(running: Daemon) -> None:
    inner = running.path.with_name("control.zmq")
    assert inner.stat().st_mode & 0o777 == 0o600
    assert inner.stat().st_uid == os.geteuid()


def test_nothing_is_left_when_the_daemon_ends(tmp_path: Path) -> None:
    with daemon(tmp_path):
        pass
    assert {each.name for each in tmp_path.iterdir()} == {"control.sock.lock"}
