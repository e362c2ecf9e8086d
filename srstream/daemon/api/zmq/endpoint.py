"""A ROUTER socket for untrusted clients: what it reads, keeps and sends for each is limited."""

from __future__ import annotations

import asyncio
import enum
import fcntl
import itertools
import os
import socket
import termios
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from operator import attrgetter

import zmq
from zmq.utils.monitor import parse_monitor_message

from srstream.daemon.api.zmq.connections import Connection, Connections, inode_of, shut_down
from srstream.daemon.api.zmq.credentials import UID_PROPERTY
from srstream.daemon.authentication import has_message
from srstream.daemon.memory import return_memory
from srstream.protocol.control import MAX_MESSAGE_BYTES

_Context = zmq.Context[zmq.Socket[bytes]]

_NUM_WAITING_IN = 8  # messages of one peer that libzmq holds until they are read
_NUM_WAITING_OUT = 8  # replies that libzmq holds for a peer that does not read
_BATCH = 64  # messages read before other callbacks of the loop have a turn
_MAX_PARTS = 2  # the payload, and before it the empty part that REQ sends
_MAX_DISCARDED = 1000  # parts of a message after which the connection is cut
_HEARTBEAT_MS, _SILENCE_MS = 10_000, 30_000
_HANDSHAKE_MS = 5_000
_NUM_SAMPLES, _SAMPLE_SECONDS = 4, 0.002


@dataclass(frozen=True)
class PeerMessage:
    """A message of a peer. `payload` is None if the message has not the form of a request."""

    identity: bytes
    envelope: tuple[bytes, ...]
    payload: bytes | None
    user: str | None
    """The public key of its sender, over CURVE."""
    uid: int | None
    """The user id of its sender, where a gate states it."""
    address: str


class Sent(enum.Enum):
    """The outcome of sending a message to a peer."""

    YES = enum.auto()
    FULL = enum.auto()
    """The peer has not read earlier messages."""
    GONE = enum.auto()


class Endpoint:
    """A ROUTER in an asyncio loop, on a socket that already listens.

    libzmq keeps all parts of a message until the last one has come, however many there are. So the
    parts are read one by one, and a message with too many of them is dropped. `MemoryGuard` handles
    messages that never end.
    """

    def __init__(
        self,
        context: _Context,
        listener: socket.socket,
        secure: Callable[[zmq.Socket[bytes]], None],
        on_message: Callable[[Endpoint, PeerMessage], None],
        max_clients: int,
    ) -> None:
        """`secure` sets the ROUTER's options that decide who may connect."""
        self._context = context
        self._listener = listener
        self._secure = secure
        self._on_message = on_message
        self._connections = Connections(max_clients)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_scheduled = False
        self._open()

    def has_room(self) -> bool:
        """Return whether the newest connection, which is already counted, is within the limit."""
        self._count()
        return self._connections.has_room

    def start(self) -> None:
        """Begin to pass on messages, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._add_readers(self._loop)

    def connections_of(self, is_meant: Callable[[str], bool]) -> list[tuple[int, Connection]]:
        """The connections of the users for whom `is_meant` returns True, by descriptor."""
        return self._connections.of_users(is_meant)

    def end(self, descriptor: int) -> None:
        """End a connection at once."""
        self._connections.end(descriptor)

    def drop_connections(self) -> None:
        """End all connections and free what libzmq keeps for them. Clients connect again."""
        self._close_sockets()
        self._open()
        if self._loop is not None:
            self._add_readers(self._loop)

    def cut_hogs(self) -> int:
        """End connections that send faster than libzmq reads, or do not read what they are sent.

        Returns how many they were.
        """
        self._count()
        hogs = self._connections.descriptors()
        for _ in range(_NUM_SAMPLES):
            hogs = {each for each in hogs if self._num_waiting_bytes(each)}
            time.sleep(_SAMPLE_SECONDS)
        for each in hogs:
            self._connections.end(each)
        return len(hogs)

    def close(self) -> None:
        """Close the ROUTER; the owner of the listening socket removes its name."""
        self._close_sockets()
        self._loop = None

    def send(self, identity: bytes, envelope: tuple[bytes, ...], payload: bytes) -> Sent:
        """Send a message without waiting."""
        try:
            self._socket.send_multipart([identity, *envelope, payload], zmq.NOBLOCK)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError:
            return Sent.GONE
        finally:
            # Sending also handles what has arrived, which FD then no longer reports.
            self._schedule()
        return Sent.YES

    def _open(self) -> None:
        router = self._context.socket(zmq.ROUTER)
        descriptor = os.dup(
            self._listener.fileno()
        )  # libzmq closes the descriptor that it is given
        try:
            _bound(router)
            self._secure(router)
            router.setsockopt(zmq.USE_FD, descriptor)
            self._monitor = router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
            router.bind(_address(self._listener))
        except BaseException:
            router.disable_monitor()
            router.close(0)
            os.close(descriptor)
            raise
        self._socket = router
        self._connections.clear()

    def _close_sockets(self) -> None:
        if self._socket.closed:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._socket.FD)
            self._loop.remove_reader(self._monitor.FD)
        self._socket.disable_monitor()
        self._socket.close(0)

    def _add_readers(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_reader(self._socket.FD, self._read)
        loop.add_reader(self._monitor.FD, self._count)
        self._schedule()
        self._count()

    def _schedule(self) -> None:
        if self._loop is not None and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        """Pass on a batch of messages. FD reports changes only, so the rest is scheduled."""
        self._is_scheduled = False
        if self._socket.closed:
            return
        for _ in range(_BATCH):
            if not has_message(self._socket):
                return
            self._on_message(self, self._receive())
        self._schedule()

    def _receive(self) -> PeerMessage:
        identity = self._socket.recv(zmq.NOBLOCK, copy=False)
        parts = [identity]
        while parts[-1].more and len(parts) <= _MAX_PARTS:
            parts.append(self._socket.recv(zmq.NOBLOCK, copy=False))
        is_whole = not parts[-1].more
        descriptor = int(identity.get(zmq.SRCFD))
        if not is_whole and _num_discarded(self._socket) > _MAX_DISCARDED:
            shut_down(descriptor, inode_of(descriptor))
            return_memory()
        parts = parts[1:]
        user = _metadata(parts, "User-Id")
        if descriptor not in self._connections:
            self._count()
        self._connections.saw_message(descriptor, identity.bytes, user)
        is_req = len(parts) > 1 and len(parts[0]) == 0
        return PeerMessage(
            identity.bytes,
            (b"",) if is_req else (),
            parts[-1].bytes if is_whole and len(parts) == 1 + is_req else None,
            user,
            _uid(parts),
            _metadata(parts, "Peer-Address") or "",
        )

    def _count(self) -> None:
        """Update the connections."""
        while not self._monitor.closed and has_message(self._monitor):
            event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._connections.accept(event["value"])
            else:
                self._connections.disconnect(event["value"])

    def _num_waiting_bytes(self, descriptor: int) -> int:
        """Bytes that the kernel holds for a connection, in and out; 0 if it has ended."""
        try:
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.getsockname() != self._listener.getsockname():
                    return 0
                return sum(
                    int.from_bytes(fcntl.ioctl(connection, question, bytes(4)), "little")
                    for question in (termios.FIONREAD, termios.TIOCOUTQ)
                )
        except OSError:
            return 0


def _address(listener: socket.socket) -> str:
    """The socket's address for libzmq, which with USE_FD reads only the transport from it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"ipc://{name}"
    host = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
    return f"tcp://{host}:{name[1]}"


def _bound(router: zmq.Socket[bytes]) -> None:
    """Set the limits that libzmq keeps."""
    router.linger = 0
    router.maxmsgsize = MAX_MESSAGE_BYTES
    router.rcvhwm = _NUM_WAITING_IN
    router.sndhwm = _NUM_WAITING_OUT
    router.router_mandatory = True
    router.setsockopt(zmq.ROUTER_HANDOVER, 0)
    router.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    router.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)
    router.setsockopt(zmq.HEARTBEAT_TTL, _SILENCE_MS)
    router.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)


def _num_discarded(router: zmq.Socket[bytes]) -> int:
    """Discard the other parts of a message and return their number.

    No other client is served meanwhile, so the loop runs without Python code, which takes half the
    time: 0.1 s for 10^5 parts.
    """
    rest = iter(partial(router.recv, zmq.NOBLOCK, copy=False), None)
    counter = itertools.count(1)
    deque(zip(takewhile(attrgetter("more"), rest), counter, strict=False), maxlen=0)
    return next(counter)


def _uid(parts: list[zmq.Frame]) -> int | None:
    text = _metadata(parts, UID_PROPERTY)
    return None if text is None else int(text)


def _metadata(parts: list[zmq.Frame], name: str) -> str | None:
    if not parts:
        return None
    try:
        return str(parts[0].get(name)) or None
    except (zmq.ZMQError, UnicodeDecodeError):
        return None
