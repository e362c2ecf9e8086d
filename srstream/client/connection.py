"""A connection to the daemon: requests with their replies, and the events in between."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from typing import Any

import zmq
from pydantic import ValidationError

from srstream.errors import NoDaemonError, ServiceError, UsageError, error_from_wire
from srstream.protocol.control import (
    PROTOCOL_VERSION,
    Event,
    EventMessage,
    Reply,
)
from srstream.protocol.keys import ClientKey

_HEARTBEAT_MS, _SILENCE_MS = 5_000, 15_000


class NoAnswerError(NoDaemonError):
    """The daemon did not answer in time."""


class Connection:
    """A DEALER, and the events that it has received before they were asked for."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, key: ClientKey | None
    ) -> None:
        self.address = address
        self._numbers = itertools.count(1)
        self._events: list[Event] = []
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.immediate = True
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)
        if key is not None and address.startswith("tcp://"):
            self._socket.curve_publickey = key.public.encode()
            self._socket.curve_secretkey = key.secret.encode()
            self._socket.curve_serverkey = key.server.encode()
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._socket.close()
            raise UsageError(f"{address}: {error.strerror}.") from error

    def close(self) -> None:
        self._socket.close()

    def ask(self, op: str, values: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        """Send a request and return its result; events before it wait for `next_event`."""
        ends = time.monotonic() + timeout_seconds
        identifier = str(next(self._numbers))
        self._send({"version": PROTOCOL_VERSION, "id": identifier, "op": op, **values}, ends)
        while (message := self._receive(ends)) is not None:
            if isinstance(message, Event):
                self._events.append(message)
            elif message.id in (identifier, ""):
                return _result(message)
        raise NoAnswerError(f"the daemon at {self.address} gave no answer in {timeout_seconds} s.")

    def next_event(self, timeout_seconds: float) -> Event | None:
        """The next event; None if none comes in time.

        Raises:
            SrstreamError: the daemon has ended the watch, and says why.
        """
        if self._events:
            return self._events.pop(0)
        ends = time.monotonic() + timeout_seconds
        while (message := self._receive(ends)) is not None:
            if isinstance(message, Event):
                return message
            if not message.ok and not message.id:
                _result(message)
        return None

    def _send(self, values: dict[str, Any], ends: float) -> None:
        while self._socket.poll(_ms_until(ends), zmq.POLLOUT):
            with contextlib.suppress(zmq.Again):  # the connection has ended since the poll
                self._socket.send_json(values, zmq.NOBLOCK)
                return
        over_tcp = self.address.startswith("tcp://")
        raise NoAnswerError(
            f"no daemon can be reached at {self.address}"
            + (", or it does not know the key." if over_tcp else ", or it takes no more.")
        )

    def _receive(self, ends: float) -> Reply | Event | None:
        if not self._socket.poll(_ms_until(ends), zmq.POLLIN):
            return None
        payload = self._socket.recv_multipart(zmq.NOBLOCK)[-1]
        try:
            if payload.startswith(b'{"version":1,"event":'):
                return EventMessage.model_validate_json(payload).event
            return Reply.model_validate_json(payload)
        except ValidationError as error:
            raise ServiceError(
                f"{self.address} does not speak version {PROTOCOL_VERSION} of srstream's protocol."
            ) from error


def check_there(path: str) -> None:
    """Check that a daemon listens at `path`; libzmq would try to connect forever.

    Raises:
        ServiceError: none does.
    """
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NoDaemonError(
            f"no daemon listens at {path}; start one with srstream serve."
        ) from None
    except (TimeoutError, BlockingIOError):
        pass  # the daemon is there, but busy
    except OSError as error:
        raise ServiceError(f"{path}: {error.strerror or error}.") from error


def _result(reply: Reply) -> dict[str, Any]:
    """The result of a reply; its error is raised."""
    if reply.ok:
        return reply.result or {}
    if reply.error is None:
        raise ServiceError("the daemon refused, and did not say why.")
    raise error_from_wire(reply.error.kind, reply.error.text, ServiceError)


def _ms_until(ends: float) -> int:
    return max(0, int(1000 * (ends - time.monotonic()) + 0.999))
