"""Stands between clients and libzmq, and ends connections that send messages of too many parts.

libzmq hands a message on when its last part has come, and bounds neither their number nor their
sum; once it has them, taking them out again stops the daemon for a moment. So parts are counted
before it, in the frames of ZMTP 3 (https://rfc.zeromq.org/spec/23). Frames of CURVE are encrypted
and cannot be counted.
"""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import cast

import structlog

from srstream.service.protocol import MAX_MESSAGE_BYTES

log = structlog.get_logger(__name__)

_MAX_PARTS = 64  # a request has 1 or 2; some more get an error for an answer
_MAX_BYTES = 2 * MAX_MESSAGE_BYTES
_READ_BYTES = 16 << 10  # at once, so that others have a turn
_GREETING_BYTES = 64
_MORE, _LONG, _COMMAND = 1, 2, 4
_LOG_SECONDS = 60.0
_PAUSE_SECONDS = 0.5


class FrameError(Exception):
    """What comes is no ZMTP 3, or a message too large; the text says which."""


class FrameCounter:
    """Follows the frames of one direction of a connection, and keeps none of them."""

    def __init__(self) -> None:
        self._greeting = bytearray()
        self._header = bytearray()
        self._num_left = 0
        self._num_parts = 0
        self._num_bytes = 0

    def feed(self, data: memoryview) -> None:
        """Count what is in the next bytes.

        Raises:
            FrameError: the connection should end.
        """
        position = self._skip_greeting(data)
        end = len(data)
        while position < end:
            if self._num_left:
                taken = min(self._num_left, end - position)
                self._num_left -= taken
                position += taken
                continue
            # A header that lies whole in the data, as nearly all do, is read where it lies.
            flags = data[position] if not self._header else self._header[0]
            size = 9 if flags & _LONG else 2
            if not self._header and end - position >= size:
                length = int.from_bytes(data[position + 1 : position + size], "big")
                position += size
            else:
                taken = min(size - len(self._header), end - position)
                self._header += data[position : position + taken]
                position += taken
                if len(self._header) < size:
                    return
                length = int.from_bytes(self._header[1:], "big")
                self._header.clear()
            self._count(flags, length)

    def _skip_greeting(self, data: memoryview) -> int:
        missing = _GREETING_BYTES - len(self._greeting)
        if not missing:
            return 0
        self._greeting += data[:missing]
        seen = self._greeting
        if seen[0] != 0xFF or (len(seen) > 10 and seen[10] < 3):
            raise FrameError("not ZMTP 3")
        if len(seen) == _GREETING_BYTES and not seen[12:32].startswith(b"NULL\0"):
            raise FrameError("another mechanism than NULL")
        return min(missing, len(data))

    def _count(self, flags: int, length: int) -> None:
        if length > MAX_MESSAGE_BYTES:
            raise FrameError("a part too large")
        self._num_left = length
        if flags & _COMMAND:
            return
        self._num_parts += 1
        self._num_bytes += length
        if self._num_parts > _MAX_PARTS or self._num_bytes > _MAX_BYTES:
            raise FrameError("a message of too many parts")
        if not flags & _MORE:
            self._num_parts = self._num_bytes = 0


class Gate:
    """Takes connections at one unix socket and forwards them to another, where libzmq listens."""

    def __init__(self, listener: socket.socket, inner: Path, max_connections: int) -> None:
        """`listener` stays its owner's."""
        self._listener = listener
        self._inner = inner
        self._max_connections = max_connections
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients: set[_Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._logged_at = -_LOG_SECONDS
        self._num_ended = 0

    def start(self) -> None:
        """Take connections from now on, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """End all connections."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._listener)
        self._loop = None
        for task in self._tasks:
            task.cancel()
        for client in list(self._clients):
            client.end()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no descriptor is left: others may end meanwhile
            self.note(error.strerror or str(error))
            self._pause()
            return
        if len(self._clients) >= self._max_connections:
            connection.close()
            return
        client = _Client(self)
        self._clients.add(client)
        task = asyncio.get_running_loop().create_task(self._forward(connection, client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        loop.call_later(_PAUSE_SECONDS, self._go_on)

    def _go_on(self) -> None:
        if self._loop is not None:
            self.start()

    async def _forward(self, connection: socket.socket, client: _Client) -> None:
        """Connect to libzmq, then read what the client sends."""
        loop = asyncio.get_running_loop()
        inner = _Side()
        client.other, inner.other = inner, client
        try:
            await loop.create_unix_connection(lambda: inner, str(self._inner))
            await loop.connect_accepted_socket(lambda: client, connection)
        except OSError:
            connection.close()
            client.end()
            self._clients.discard(client)

    def forget(self, client: _Client) -> None:
        self._clients.discard(client)

    def note(self, reason: str) -> None:
        """Log why a connection was ended, at most once a minute."""
        self._num_ended += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOG_SECONDS:
            log.warning("connections ended", num_ended=self._num_ended, reason=reason)
            self._logged_at, self._num_ended = now, 0


class _Side(asyncio.BufferedProtocol):
    """One end of a forwarded connection, as it is towards libzmq.

    What the other end does not take is not read.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None
        self._buffer = bytearray(_READ_BYTES)
        self._early = b""
        """libzmq's greeting, which comes before the client's end is there. To pause reading until
        then is no way: a pause in `connection_made` does not last in Python 3.11.2, Debian 12's."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.other is not None and self.other._early:
            self.transport.write(self.other._early)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(memoryview(self._buffer)[:nbytes])
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)
        else:
            self._early += data

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()  # after what it was given is written


class _Client(_Side):
    """The end towards a client."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate
        self._counter = FrameCounter()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._counter.feed(memoryview(self._buffer)[:nbytes])
        except FrameError as error:
            self._gate.note(str(error))
            self.end()
            return
        super().buffer_updated(nbytes)

    def connection_lost(self, error: Exception | None) -> None:
        self._gate.forget(self)
        super().connection_lost(error)

    def end(self) -> None:
        """At once, with what libzmq has of an unfinished message."""
        for side in (self, self.other):
            if side is not None and side.transport is not None:
                side.transport.abort()
