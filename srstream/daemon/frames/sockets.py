"""The sockets over which clients push frames: a ROUTER, the gate in front of it, and its guard."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from srstream.daemon.api.zmq.gate import GateLimits
from srstream.daemon.frames.gate import GateProcess
from srstream.daemon.frames.memory_guard import ConnectionGuard
from srstream.daemon.settings import SocketSettings
from srstream.daemon.sockets import listen_unix, lock_socket
from srstream.errors import ConfigError
from srstream.frame import MAX_PLANES
from srstream.protocol.frames import MAX_TEXT_BYTES

SEND_QUEUE = 4
"""Messages that libzmq keeps for a peer that does not read."""

RECEIVE_QUEUE = 16
"""Messages of one peer that libzmq keeps until they are read."""

HANDSHAKE_MS = 5_000

MAX_UNFINISHED_BYTES = 128 << 20
"""Size of all messages on their way through the gate; two of the largest are always allowed."""

ZAP_ADDRESS = "inproc://zeromq.zap.01"


@dataclass(frozen=True, slots=True)
class CurveServer:
    """The daemon's keys for TCP. The domain's ZAP handler runs in the same context."""

    public_key: bytes
    secret_key: bytes = field(repr=False)
    zap_domain: bytes


class FrameSockets:
    """Opens and closes the data socket: over ipc behind a gate, and with keys over TCP.

    Args:
        max_pixels: width x height of the largest frame that clients may push.
        curve: the daemon's keys, needed for TCP.
        context: the context of the ZAP handler; None, without TCP: a new one.
    """

    def __init__(
        self,
        settings: SocketSettings,
        max_pixels: int,
        curve: CurveServer | None,
        context: zmq.Context[zmq.Socket[bytes]] | None,
    ) -> None:
        self._settings, self._max_pixels, self._curve = settings, max_pixels, curve
        self._owns_context = context is None
        self._context = context or zmq.Context()
        self._router: zmq.Socket[bytes] | None = None
        self._guard: ConnectionGuard | None = None
        self._gate: GateProcess | None = None
        self._listeners: list[socket.socket] = []
        self._lock: int | None = None

    def open(self) -> None:
        """Opens the sockets.

        Raises:
            ServiceError: another daemon has them, or they cannot be made.
            ConfigError: TCP is configured without keys, or its address cannot be used.
        """
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def opened(self) -> tuple[zmq.Socket[bytes], ConnectionGuard, GateProcess]:
        """The ROUTER, its guard and its gate, which belong to one thread."""
        assert self._router is not None, "bind comes first"
        assert self._guard is not None and self._gate is not None
        return self._router, self._guard, self._gate

    @property
    def problem(self) -> str:
        """Why the gate was replaced just now, or is being replaced; empty if all is well."""
        gate = self._gate
        return "" if gate is None else gate.problem

    def hide(self) -> None:
        """Removes the socket's name, so that nobody new connects."""
        self._settings.frames_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes everything and removes the sockets' names."""
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if self._router is not None:
            self._router.close()
            self._router = None
        if self._owns_context:
            self._context.term()
        if self._gate is not None:
            self._gate.close()
            self._gate = None
        if self._listeners:
            self._settings.frames_path.unlink(missing_ok=True)
            self._inner_path.unlink(missing_ok=True)
        while self._listeners:
            self._listeners.pop().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self) -> None:
        path = self._settings.frames_path
        self._lock = lock_socket(path)
        inner = listen_unix(self._inner_path, 0o600, None)
        self._listeners.append(inner)
        listener = listen_unix(path, self._settings.mode, self._settings.group)
        self._listeners.append(listener)
        self._router = self._new_router()
        self._guard = ConnectionGuard(self._router, self._settings.max_clients)
        self._router.setsockopt(zmq.USE_FD, os.dup(inner.fileno()))  # libzmq closes it
        self._router.bind(f"ipc://{self._inner_path}")
        self._router.setsockopt(zmq.USE_FD, -1)
        if self._settings.frames_tcp is not None:
            self._bind_tcp(self._router, self._settings.frames_tcp)
        limits = gate_limits(self._max_part_bytes)
        self._gate = GateProcess(listener, self._inner_path, self._settings.max_clients, limits)

    @property
    def _inner_path(self) -> Path:
        """Where the ROUTER listens, behind the gate; no one else can connect to it."""
        return self._settings.frames_path.with_name("frames.zmq")

    @property
    def _max_part_bytes(self) -> int:
        return max(2 * self._max_pixels, MAX_TEXT_BYTES)

    def _new_router(self) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 500)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        router.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE)
        router.setsockopt(zmq.MAXMSGSIZE, self._max_part_bytes)
        router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        return router

    def _bind_tcp(self, router: zmq.Socket[bytes], address: str) -> None:
        """Binds TCP last: options apply to later binds only, so the ipc socket needs no keys."""
        if self._curve is None:
            raise ConfigError(f"sockets.frames_tcp: {address} needs keys; see `srstream keys`.")
        self._check_zap_handler()
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_PUBLICKEY, self._curve.public_key)
        router.setsockopt(zmq.CURVE_SECRETKEY, self._curve.secret_key)
        router.setsockopt(zmq.ZAP_DOMAIN, self._curve.zap_domain)
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        # A peer whose machine is gone sends nothing; over ipc the kernel reports the end.
        router.setsockopt(zmq.HEARTBEAT_IVL, 10_000)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)
        try:
            router.bind(address)
        except zmq.ZMQError as error:
            raise ConfigError(f"sockets.frames_tcp: {address}: {error.strerror}.") from error

    def _check_zap_handler(self) -> None:
        """Checks that a ZAP handler runs, which shows by its address being taken.

        Raises:
            ConfigError: none does; nobody would be let in, or everybody.
        """
        probe = self._context.socket(zmq.REP)
        try:
            probe.bind(ZAP_ADDRESS)
        except zmq.ZMQError:
            return
        finally:
            probe.close(linger=0)
        raise ConfigError("sockets.frames_tcp: no ZAP handler runs in the engine worker.")


def gate_limits(max_part_bytes: int) -> GateLimits:
    """The gate's limits: what a client's frames need, and little more."""
    return GateLimits(
        max_parts=64,
        max_part_bytes=max_part_bytes,
        max_message_bytes=MAX_PLANES * max_part_bytes + (64 << 10),
        max_unfinished_bytes=max(MAX_UNFINISHED_BYTES, 2 * MAX_PLANES * max_part_bytes),
        max_message_seconds=30.0,
        messages_per_second=4000.0,
    )
