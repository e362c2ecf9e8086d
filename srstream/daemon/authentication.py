"""Decides who may connect: the ZAP handler that libzmq asks about every connection, and CURVE.

ZAP: https://rfc.zeromq.org/spec/27. A context has one handler. Its sockets have a domain and
`ZAP_ENFORCE_DOMAIN`, so that nobody gets in without a handler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
import zmq
from zmq.utils import z85

from srstream.daemon.logs import MinuteQuota
from srstream.errors import ServiceError
from srstream.protocol.keys import KeyRing

_ENDPOINT = "inproc://zeromq.zap.01"
_NUM_CURVE_PARTS = 7

logger = structlog.get_logger(__name__)


class ZapHandler:
    """Answers libzmq's question whether a connection is allowed.

    `has_room` is called with the domain. Over CURVE the key must also be in the ring; as text it
    becomes the `User-Id` of every message of the connection.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], keys: KeyRing | None,
        has_room: Callable[[str], bool],
    ) -> None:  # fmt: skip
        self._keys = keys
        self._has_room = has_room
        self._loop: asyncio.AbstractEventLoop | None = None
        self._denials = MinuteQuota()
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        try:
            self._socket.bind(_ENDPOINT)
        except zmq.ZMQError as error:
            self._socket.close()
            raise ServiceError(
                f"nobody would check who connects: no ZAP handler ({error.strerror})."
            ) from error

    def start(self) -> None:
        """Begin to answer, in the running loop; until then connections wait."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.FD, self._answer_all)
        self._loop.call_soon(self._answer_all)

    def close(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._socket.FD)
        self._loop = None
        self._socket.close()

    def _answer_all(self) -> None:
        # FD reports changes only, so all messages must be read each time.
        while not self._socket.closed and has_message(self._socket):
            parts = self._socket.recv_multipart(zmq.NOBLOCK)
            status, text, user = self._judge(parts)
            version, request = parts[0], parts[1] if len(parts) > 1 else b""
            self._socket.send_multipart([version, request, status, text, user, b""], zmq.NOBLOCK)

    def _judge(self, parts: list[bytes]) -> tuple[bytes, bytes, bytes]:
        domain, address, mechanism = (
            (parts[2].decode(errors="replace"), parts[3].decode(errors="replace"), parts[5])
            if len(parts) > 5
            else ("", "", b"")
        )
        if not self._has_room(domain):
            self._log_denied(address, "all places are taken")
            return (
                b"300",
                b"all places are taken",
                b"",
            )  # the client tries again; after 400 it would not
        if mechanism == b"NULL" and domain == LOCAL_DOMAIN:
            return b"200", b"OK", b""
        if mechanism == b"CURVE" and len(parts) == _NUM_CURVE_PARTS and self._keys is not None:
            public = z85.encode(parts[6])
            if self._keys.find(public.decode()) is not None:
                return b"200", b"OK", public
        self._log_denied(address, "unknown key")
        return b"400", b"unknown key", b""

    def _log_denied(self, address: str, reason: str) -> None:
        """Log a refusal, once a minute: a client tries again ten times a second."""
        num_left_out = self._denials.admit()
        if num_left_out is not None:
            num_refused = num_left_out + 1
            logger.warning(
                "connections refused", num_refused=num_refused, address=address, reason=reason
            )


def has_message(socket: zmq.Socket[bytes]) -> bool:
    """Return whether a message can be received now. The call also resets what FD reports."""
    return bool(int(socket.get(zmq.EVENTS)) & zmq.POLLIN)


LOCAL_DOMAIN = "srstream.local"
"""Domain of sockets that the file system guards; only room is checked."""

CURVE_DOMAIN = "srstream.curve"
"""Domain of sockets over TCP, where a client needs an allowed key."""


def guard_local(socket: zmq.Socket[bytes]) -> None:
    """Prepare a socket, before `bind`, so that the ZAP handler checks whether there is room."""
    socket.zap_domain = LOCAL_DOMAIN.encode()
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def guard_curve(socket: zmq.Socket[bytes], keys: KeyRing) -> None:
    """Prepare a socket, before `bind`, so that only holders of an allowed key get in."""
    socket.curve_secretkey = keys.secret.encode()
    socket.curve_publickey = keys.public.encode()
    socket.curve_server = True
    socket.zap_domain = CURVE_DOMAIN.encode()
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
