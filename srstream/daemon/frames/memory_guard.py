"""Ends connections of the data socket that send invalid or endless messages, or are too many.

libzmq keeps all parts of a message until the last one has come, limits each part only, and cannot
cut off a single peer. So this module watches the connections' descriptors from outside. Over ipc
`gate.py` counts messages before; over TCP this is the only guard.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import parse_monitor_message

from srstream.daemon.api.zmq.connections import Connection, Connections, inode_of, shut_down
from srstream.daemon.logs import FewLines
from srstream.daemon.memory import resident_bytes, return_memory

logger = logging.getLogger(__name__)
logger.addFilter(FewLines(30))

MAX_GROWTH_BYTES = 64 << 20
"""Growth of this process after which the guard looks for an endless message."""

MAX_FAULTS = 100
"""Invalid messages of a connection that are answered with an ERROR; the last one ends it."""

_MAX_OFFENDERS = 4096
"""Number of offenders that are remembered; the oldest is forgotten first."""

_LOOK_SECONDS, _HURRIED_LOOK_SECONDS = 0.1, 0.02
_MAX_SEEN_SENDING = 25
_TRIM_SECONDS = 0.5
_TRIM_AFTER_SECONDS = 3.0
"""How long after a connection has ended libzmq may still free its unfinished message."""
_FORGET_SECONDS = 5.0


@dataclass(slots=True)
class _Offender:
    """A connection that sent invalid messages, kept by its name in libzmq, which is unique."""

    descriptor: int
    inode: int
    num_faults: int = 0


class ConnectionGuard:
    """Watches the connections of one ROUTER, in the thread that owns it.

    Memory alone proves nothing, since jobs take some too. A connection is cut when memory has grown
    and its bytes were waiting again and again while none of its messages ended; a frame of the
    largest size ends long before.
    """

    def __init__(
        self,
        router: zmq.Socket[bytes],
        max_connections: int,
        max_growth_bytes: int = MAX_GROWTH_BYTES,
    ) -> None:
        self._router, self._max_connections = router, max_connections
        self._max_growth_bytes = max_growth_bytes
        self.monitor = router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._connections = Connections(max_connections)
        self._num_seen_sending: Counter[int] = Counter()
        """By descriptor."""
        self._offenders: dict[bytes, _Offender] = {}
        self._baseline_bytes = resident_bytes()
        self._grown_since: float | None = None
        self._next_look = self._next_trim = self._trim_until = 0.0

    def close(self) -> None:
        """Close the monitor; to be called before the router is closed."""
        self._router.disable_monitor()
        self.monitor.close(linger=0)

    @property
    def look_ms(self) -> int:
        """Time after which `look` must be called again."""
        return int(1000 * self._look_seconds)

    @property
    def _look_seconds(self) -> float:
        return _LOOK_SECONDS if self._grown_since is None else _HURRIED_LOOK_SECONDS

    def saw_message(self, part: zmq.Frame, user: str | None) -> None:
        """Note that a message of `part`'s connection is complete, and the key of its sender."""
        descriptor = int(part.get(zmq.SRCFD))
        if descriptor not in self._connections:
            self._update()
        self._num_seen_sending.pop(descriptor, None)
        self._connections.saw_message(descriptor, part.bytes, user)

    def saw_fault(self, part: zmq.Frame) -> None:
        """Note that a message of `part`'s connection was invalid; the last allowed one ends it."""
        name = part.bytes
        # Not by the descriptor: messages left by an ended connection would count for the next one
        # with the same descriptor.
        offender = self._offenders.get(name)
        if offender is None:
            descriptor = int(part.get(zmq.SRCFD))
            offender = self._offenders[name] = _Offender(descriptor, inode_of(descriptor))
            if len(self._offenders) > _MAX_OFFENDERS:
                del self._offenders[next(iter(self._offenders))]
        offender.num_faults += 1
        if offender.num_faults >= MAX_FAULTS:
            logger.warning("a connection was cut: %d wrong messages", MAX_FAULTS)
            del self._offenders[name]
            shut_down(offender.descriptor, offender.inode)

    def look(self) -> None:
        """Update the connections, and cut those that must be; cheap, so to be called often."""
        self._update()
        now = time.monotonic()
        if now >= self._next_look:
            self._look_at_memory(now)
            self._next_look = now + self._look_seconds

    def connections_of(self, is_meant: Callable[[str], bool]) -> list[tuple[int, Connection]]:
        """The connections of the users for whom `is_meant` returns True, by descriptor."""
        return self._connections.of_users(is_meant)

    def end(self, descriptor: int) -> None:
        """End a connection at once."""
        self._connections.end(descriptor)

    def _update(self) -> None:
        while self.monitor.poll(0):
            event = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
            descriptor = event["value"]
            self._num_seen_sending.pop(descriptor, None)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._accept(descriptor)
            else:
                self._connections.disconnect(descriptor)
                self._trim_until = time.monotonic() + _TRIM_AFTER_SECONDS

    def _accept(self, descriptor: int) -> None:
        self._connections.accept(descriptor)
        if not self._connections.has_room:
            logger.warning("connections are refused: %d are open", self._max_connections)
            self._connections.end(descriptor)

    def _look_at_memory(self, now: float) -> None:
        has_grown = self._has_grown()
        if now >= self._next_trim and (has_grown or now < self._trim_until):
            self._next_trim = now + _TRIM_SECONDS
            return_memory()
        if not has_grown:
            self._grown_since = None
            return
        if self._grown_since is None:
            self._grown_since = now
            self._num_seen_sending.clear()
        elif self._cut_endless():
            self._grown_since = now  # libzmq frees its memory a moment later
        elif now - self._grown_since > _FORGET_SECONDS:
            self._baseline_bytes = resident_bytes()  # so the growth has another cause

    def _has_grown(self) -> bool:
        resident = resident_bytes()
        self._baseline_bytes = min(self._baseline_bytes, resident)
        return resident - self._baseline_bytes > self._max_growth_bytes

    def _cut_endless(self) -> bool:
        """Cut connections whose message does not end; returns whether any was cut."""
        was_cut = False
        for descriptor in self._connections.descriptors():
            self._num_seen_sending[descriptor] += _is_sending(descriptor)
            if self._num_seen_sending[descriptor] >= _MAX_SEEN_SENDING:
                logger.warning("a connection was cut: it sent a message without end")
                self._connections.end(descriptor)
                was_cut = True
        return was_cut


def _is_sending(descriptor: int) -> bool:
    """Return whether bytes of the connection wait in the kernel."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as ours:
            return bool(ours.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False
