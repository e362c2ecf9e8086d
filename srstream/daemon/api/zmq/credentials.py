"""Writes the user id of a local client into its handshake, so that each of its messages has it.

A READY command of ZMTP 3 (https://rfc.zeromq.org/spec/23) holds properties, which libzmq attaches
to every message of the connection. Of two with the same name it takes the first, and the gate's
comes first, so no client can give itself another user id.
"""

from __future__ import annotations

import socket
import struct

UID_PROPERTY = "X-Srstream-Uid"

_GREETING_BYTES = 64
_LONG, _COMMAND = 2, 4
_READY = b"\x05READY"
_CREDENTIALS = struct.Struct("3i")


class HandshakeError(Exception):
    """The handshake is not that of ZMTP 3 without a security mechanism."""


def peer_uid(connection: socket.socket) -> int:
    """The user id of the process that made a unix connection, as the kernel knows it."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


class UidStamp:
    """Passes on the bytes of a connection, and adds the user id to its READY command."""

    def __init__(self, uid: int) -> None:
        name, value = UID_PROPERTY.encode(), str(uid).encode()
        self._property = bytes([len(name)]) + name + struct.pack("!I", len(value)) + value
        self._num_greeting = 0
        self._held = b""
        self._is_over = False

    def feed(self, data: bytes) -> bytes:
        """Return what is to be passed on; the beginning of the command is held until it is whole.

        Raises:
            HandshakeError: another command than READY comes first.
        """
        if self._is_over:
            return data
        num_greeting = min(len(data), _GREETING_BYTES - self._num_greeting)
        self._num_greeting += num_greeting
        self._held += data[num_greeting:]
        return data[:num_greeting] + self._stamped()

    def _stamped(self) -> bytes:
        held = self._held
        if not held:
            return b""
        size = 9 if held[0] & _LONG else 2
        end = size + len(_READY)
        if not held[0] & _COMMAND or not _READY.startswith(held[size:end]):
            raise HandshakeError("another first command than READY")
        if len(held) < end:
            return b""
        length = int.from_bytes(held[1:size], "big") + len(self._property)
        self._held, self._is_over = b"", True
        header = bytes([_COMMAND | _LONG]) + length.to_bytes(8, "big")
        return header + _READY + self._property + held[end:]
