"""The user id in the handshake: it comes whole however the bytes are cut, and cannot be forged."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srstream.daemon.api.zmq.credentials import UID_PROPERTY, HandshakeError, UidStamp
from tests.daemon.zmq.test_gate import GREETING, READY, cut, frame
from tests.support.service.control import daemon


def property_of(value: bytes) -> bytes:
    name = UID_PROPERTY.encode()
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value


@given(st.lists(st.integers(0, 10_000), max_size=30), st.booleans(), st.binary(max_size=400))
def test_only_the_command_changes_however_it_is_cut(
    places: list[int], long: bool, rest: bytes
) -> None:
    stamp = UidStamp(1234)
    data = GREETING + frame(READY, command=True, long=long) + rest
    passed = b"".join(stamp.feed(piece) for piece in cut(data, places))
    expected = READY[:6] + property_of(b"1234") + READY[6:]
    assert passed == GREETING + frame(expected, command=True, long=True) + rest


@pytest.mark.parametrize(
    "first", [frame(READY), frame(b"\x05ERROR", command=True), b"\x04\x00\x00"]
)
def test_another_beginning_is_refused(first: bytes) -> None:
    with pytest.raises(HandshakeError):
        UidStamp(0).feed(GREETING + first + bytes(10))


def test_a_user_id_that_a_client_states_itself_does_not_count(tmp_path: Path) -> None:
    with daemon(tmp_path) as running, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(running.path))
        forged = READY + property_of(b"%d" % (os.geteuid() + 1))
        client.sendall(GREETING)
        answer_until(client, lambda received: len(received) >= len(GREETING))
        client.sendall(frame(forged, command=True))
        # libzmq takes no message before it has sent READY itself.
        answer_until(client, lambda received: b"READY" in received)
        client.sendall(frame(b'{"op": "health"}'))
        assert b'"peer":"local"' in answer_until(client, lambda received: b'"peer"' in received)


def answer_until(client: socket.socket, is_enough: Callable[[bytes], bool]) -> bytes:
    received = b""
    while not is_enough(received):
        more = client.recv(4096)
        assert more, f"the connection was ended after {received!r}"
        received += more
    return received
