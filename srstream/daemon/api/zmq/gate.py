"""Forwards clients' bytes to libzmq, and ends connections that send messages of too many parts.

libzmq delivers a message when its last part has come, and limits neither the number of parts nor
their sum; reading very many of them stops the daemon for a moment. So the gate counts parts in the
frames of ZMTP 3 (https://rfc.zeromq.org/spec/23) before libzmq sees them. Frames of CURVE are
encrypted and cannot be counted.

A turn of the loop reads few bytes where frames begin, since small frames take longest to parse, and
a connection that sends very many messages is read more slowly. So no client waits long for others.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from srstream.daemon.api.zmq.credentials import HandshakeError, UidStamp, peer_uid
from srstream.daemon.logs import MinuteQuota

logger = logging.getLogger(__name__)

_SMALL_READ_BYTES, _LARGE_READ_BYTES = 2 << 10, 64 << 10
_ACCEPT_BATCH = 16
_MAX_AHEAD = 256  # messages that a connection may send ahead of its rate
_GREETING_BYTES = 64
_GREETING_SECONDS = 5.0
_MORE, _LONG, _COMMAND = 1, 2, 4
_PAUSE_SECONDS = 0.5
_SWEEP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What the gate lets through."""

    max_parts: int
    """Parts of a message; somewhat more than is valid, so that libzmq can answer slight excess."""
    max_part_bytes: int
    max_message_bytes: int
    max_unfinished_bytes: int
    """Bytes of all unfinished messages; beyond, the connection of the oldest is ended."""
    max_message_seconds: float
    """Time from the first byte of a message to its last."""
    messages_per_second: float
    """Rate of one connection in the long run; a faster sender has to wait."""


class FrameError(Exception):
    """The bytes are not ZMTP 3, or a message is too large; the text says which."""


class FrameCounter:
    """Counts the frames of one direction of a connection, and keeps none of them."""

    def __init__(self, limits: GateLimits) -> None:
        self._limits = limits
        self._greeting = bytearray()
        self._header = bytearray()
        self._num_parts = 0
        self._num_bytes = 0
        self._is_last = False
        self.num_left = 0
        """Bytes of the current part that have not come yet."""
        self.num_messages = 0
        """Messages that are complete."""
        self.num_commands = 0

    @property
    def num_unfinished_bytes(self) -> int:
        """Bytes that have come of an unfinished message."""
        return self._num_bytes - self.num_left if self._num_parts else 0

    def feed(self, data: memoryview) -> None:
        """Count the frames in the next bytes.

        Raises:
            FrameError: the connection must end.
        """
        position = self._skip_greeting(data)
        end = len(data)
        while position < end:
            if self.num_left:
                taken = min(self.num_left, end - position)
                self.num_left -= taken
                position += taken
                if not self.num_left and self._is_last:
                    self._end_message()
                continue
            # A header that is whole in the data, as nearly all are, is read in place.
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
            self._begin_part(flags, length)

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

    def _begin_part(self, flags: int, length: int) -> None:
        limits = self._limits
        if length > limits.max_part_bytes:
            raise FrameError("a part too large")
        self.num_left = length
        if flags & _COMMAND:
            self.num_commands += 1
            return
        self._num_parts += 1
        self._num_bytes += length
        if self._num_parts > limits.max_parts or self._num_bytes > limits.max_message_bytes:
            raise FrameError("a message of too many parts")
        self._is_last = not flags & _MORE
        if self._is_last and not length:
            self._end_message()

    def _end_message(self) -> None:
        self._num_parts = self._num_bytes = 0
        self._is_last = False
        self.num_messages += 1


class Gate:
    """Accepts connections at one unix socket and forwards them to another, where libzmq listens."""

    def __init__(
        self, listener: socket.socket, inner: Path, max_connections: int, limits: GateLimits
    ) -> None:
        """The caller keeps `listener` and closes it."""
        self._listener = listener
        self._inner = inner
        self._max_connections = max_connections
        self.limits = limits
        self.buffer = memoryview(bytearray(_LARGE_READ_BYTES))
        """Read buffer that all connections share; nothing stays in it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._clients: dict[_Client, asyncio.Task[None]] = {}  # in the order in which they came
        self._unfinished: dict[_Client, _Unfinished] = {}
        self._num_unfinished_bytes = 0
        self._endings = MinuteQuota()

    def start(self) -> None:
        """Begin to accept connections, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)
        self._sweep()

    @property
    def num_connections(self) -> int:
        return len(self._clients)

    def stop(self) -> None:
        """Accept no more connections."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._listener)
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._loop = self._sweeper = None

    def close(self) -> None:
        """End all connections."""
        self.stop()
        for client in list(self._clients):
            client.end()

    def _accept(self) -> None:
        """Accept what waits, but only so many that other connections have a turn soon."""
        for _ in range(_ACCEPT_BATCH):
            if not self._accept_one():
                return

    def _accept_one(self) -> bool:
        """Accept a connection; returns whether another one may wait."""
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:  # no descriptor is free; other connections may end meanwhile
            self.note(error.strerror or str(error))
            self._pause()
            return False
        if len(self._clients) >= self._max_connections and not self._end_silent():
            connection.close()
            return True
        client = _Client(self, peer_uid(connection))
        task = asyncio.get_running_loop().create_task(self._forward(connection, client))
        client.connecting = self._clients[client] = task
        return True

    def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        loop.call_later(_PAUSE_SECONDS, self._go_on)

    def _go_on(self) -> None:
        if self._loop is not None:
            self._loop.add_reader(self._listener, self._accept)

    async def _forward(self, connection: socket.socket, client: _Client) -> None:
        """Connect to libzmq once the client has sent something, then read what it sends."""
        loop = asyncio.get_running_loop()
        inner = _Side(self)
        client.other, inner.other = inner, client
        try:
            async with asyncio.timeout(_GREETING_SECONDS):
                await _first_bytes(connection)
            await loop.create_unix_connection(lambda: inner, str(self._inner))
            await loop.connect_accepted_socket(lambda: client, connection)
        except (OSError, asyncio.CancelledError):
            client.end()
            self._clients.pop(client, None)
            connection.close()

    def _end_silent(self) -> bool:
        """End the oldest connection that has sent no message; returns whether there is one."""
        silent = next((client for client in self._clients if client.is_silent), None)
        if silent is not None:
            self.cut(silent, "too many of them, and the oldest said nothing")
        return silent is not None

    def forget(self, client: _Client) -> None:
        self._clients.pop(client, None)
        self.take_note(client, 0)

    def take_note(self, client: _Client, num_unfinished_bytes: int) -> None:
        """Note how many bytes of an unfinished message have come from a client."""
        known = self._unfinished.get(client)
        if known is None:
            if not num_unfinished_bytes:
                return
            known = self._unfinished[client] = _Unfinished(time.monotonic())
        self._num_unfinished_bytes += num_unfinished_bytes - known.num_bytes
        known.num_bytes = num_unfinished_bytes
        if not num_unfinished_bytes:
            del self._unfinished[client]
        elif self._num_unfinished_bytes > self.limits.max_unfinished_bytes:
            self.cut(next(iter(self._unfinished)), "too much that was not finished")

    def cut(self, client: _Client, reason: str) -> None:
        """End a connection, and log the reason at most once a minute."""
        self.note(reason)
        client.end()
        self.forget(client)

    def note(self, reason: str) -> None:
        num_left_out = self._endings.admit()
        if num_left_out is not None:
            logger.warning("connections ended: %d; the last one: %s", num_left_out + 1, reason)

    def _sweep(self) -> None:
        """End the connections whose messages take too long."""
        oldest = time.monotonic() - self.limits.max_message_seconds
        for client, unfinished in list(self._unfinished.items()):
            if unfinished.begun < oldest:
                self.cut(client, "a message that was not finished in time")
        if self._loop is not None:
            self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep)


async def _first_bytes(connection: socket.socket) -> None:
    """Wait until there is something to read.

    Raises:
        OSError: the connection has ended instead.
    """
    loop, has_sent = asyncio.get_running_loop(), asyncio.Event()
    connection.setblocking(False)
    loop.add_reader(connection, has_sent.set)
    try:
        await has_sent.wait()
    finally:
        loop.remove_reader(connection)
    if not connection.recv(1, socket.MSG_PEEK):
        raise ConnectionError("nothing was sent")


@dataclass(slots=True)
class _Unfinished:
    """A message of which only the beginning has come."""

    begun: float
    num_bytes: int = 0


class _Side(asyncio.BufferedProtocol):
    """One end of a forwarded connection; used as such towards libzmq.

    It stops reading while the other end takes no more bytes.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None
        self._is_full = False
        self._is_resting = False
        self._early = b""
        """libzmq's greeting, if it comes before the client's end exists: in Python 3.11.2 (Debian
        12), pausing in `connection_made` has no lasting effect."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(0)
        if self.other is not None and self.other._early:
            self.transport.write(self.other._early)
        self.read_or_wait()
        if self.other is not None:
            self.other.read_or_wait()

    def read_or_wait(self) -> None:
        """Read while the other end takes bytes."""
        if self.transport is None:
            return
        other = self.other
        if self._is_resting or other is None or other.transport is None or other._is_full:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._gate.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.forward(bytes(self._gate.buffer[:nbytes]))

    def forward(self, data: bytes) -> None:
        """Give bytes to the other end, or keep them until there is one."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)
        else:
            self._early += data

    def pause_writing(self) -> None:
        self._be_full(True)

    def resume_writing(self) -> None:
        self._be_full(False)

    def _be_full(self, is_full: bool) -> None:
        self._is_full = is_full
        if self.other is not None:
            self.other.read_or_wait()

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()  # after writing what it was given


class _Client(_Side):
    """The end towards a client."""

    def __init__(self, gate: Gate, uid: int) -> None:
        super().__init__(gate)
        self._counter = FrameCounter(gate.limits)
        self._stamp = UidStamp(uid)
        self.connecting: asyncio.Task[None] | None = None
        self._num_ahead = 0.0
        self._counted_at = time.monotonic()

    @property
    def is_silent(self) -> bool:
        """Whether no whole message has come yet."""
        return not self._counter.num_messages

    def get_buffer(self, sizehint: int) -> memoryview:
        """Read more bytes at a time within a large part, where there are no frames to parse."""
        return self._gate.buffer[: max(_SMALL_READ_BYTES, self._counter.num_left)]

    def buffer_updated(self, nbytes: int) -> None:
        counter = self._counter
        num_messages, num_commands = counter.num_messages, counter.num_commands
        try:
            counter.feed(self._gate.buffer[:nbytes])
            self.forward(self._stamp.feed(bytes(self._gate.buffer[:nbytes])))
        except (FrameError, HandshakeError) as error:
            self._gate.cut(self, str(error))
            return
        if counter.num_messages > num_messages:
            self._gate.take_note(self, 0)
        self._gate.take_note(self, counter.num_unfinished_bytes)
        self._pace(counter.num_messages - num_messages + counter.num_commands - num_commands)

    def _pace(self, num_messages: int) -> None:
        """Pause reading, if messages come faster than the limit."""
        if not num_messages:
            return
        now, rate = time.monotonic(), self._gate.limits.messages_per_second
        self._num_ahead = max(0.0, self._num_ahead - rate * (now - self._counted_at))
        self._num_ahead, self._counted_at = self._num_ahead + num_messages, now
        if self._num_ahead > _MAX_AHEAD:
            self._rest(True)
            seconds = (self._num_ahead - _MAX_AHEAD) / rate
            asyncio.get_running_loop().call_later(seconds, self._rest, False)

    def _rest(self, is_resting: bool) -> None:
        self._is_resting = is_resting
        self.read_or_wait()

    def connection_lost(self, error: Exception | None) -> None:
        self._gate.forget(self)
        super().connection_lost(error)

    def end(self) -> None:
        """End the connection at once, so that libzmq drops an unfinished message."""
        if self.connecting is not None and self.connecting is not asyncio.current_task():
            self.connecting.cancel()
        for side in (self, self.other):
            if side is not None and side.transport is not None:
                side.transport.abort()
