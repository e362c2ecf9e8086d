"""The control socket: takes requests, sends replies and events. docs/protocol.md describes it.

Nothing that a client sends, or does not read, harms another client or the daemon. `endpoint.py`
sets the limits that libzmq keeps; here are the limits on requests under way.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import pydantic_core
import structlog
import zmq

from srstream.daemon.actions import Peer
from srstream.daemon.api.zmq.endpoint import Endpoint, PeerMessage, Sent
from srstream.daemon.api.zmq.gate import Gate, GateLimits
from srstream.daemon.api.zmq.memory_guard import MemoryGuard
from srstream.daemon.api.zmq.subscriptions import EventSource, Subscriptions
from srstream.daemon.authentication import (
    CURVE_DOMAIN,
    LOCAL_DOMAIN,
    ZapHandler,
    guard_curve,
    guard_local,
)
from srstream.daemon.settings import SocketSettings
from srstream.daemon.sockets import listen_tcp, listen_unix, lock_socket
from srstream.errors import RefusedError, ServiceError, SrstreamError, UsageError, error_to_wire
from srstream.protocol.control import (
    MAX_MESSAGE_BYTES,
    ErrorInfo,
    Event,
    Reply,
    Request,
    Status,
    Watch,
    parse_request,
)
from srstream.protocol.keys import KeyRing

logger = structlog.get_logger(__name__)

LOCAL = "local"

_INNER_NAME = "control.zmq"  # the ROUTER listens here, behind the gate; no one else can connect
_GATE_LIMITS = GateLimits(
    max_parts=64,  # a request has 1 or 2
    max_part_bytes=MAX_MESSAGE_BYTES,
    max_message_bytes=2 * MAX_MESSAGE_BYTES,
    max_unfinished_bytes=4 << 20,
    max_message_seconds=30.0,
    messages_per_second=2000.0,
)
_NUM_WAITING = 16  # connections beyond the limit that are let in to be refused with a reply
_MAX_PENDING = 256
_MAX_PENDING_BYTES = 256 << 10
_MAX_TEXT = 500
_RETRY_SECONDS = 0.01
_ROOM_SECONDS = 2.0  # time that a client has to make room for a reply
_SWEEP_SECONDS = 5.0
_REVOKED_SECONDS = 0.2
_REVOKED_TEXT = "this key is not allowed any more."


class ControlHandler(EventSource, Protocol):
    """Answers requests, except watches, which the server keeps itself."""

    async def handle(self, request: Request, peer: Peer) -> dict[str, Any] | bytes:
        """Returns the reply's `result`, or its JSON; an SrstreamError becomes an error reply."""
        ...


_PeerKey = tuple[Endpoint, bytes]


@dataclass
class _Pending:
    """Requests of one connection that wait for earlier ones."""

    messages: deque[PeerMessage] = field(default_factory=deque)
    num_bytes: int = 0


class ControlServer:
    """Serves one ipc socket and, with keys, one TCP socket. All calls belong to the event loop."""

    def __init__(
        self, settings: SocketSettings, handler: ControlHandler, keys: KeyRing | None
    ) -> None:
        self._settings = settings
        self._handler = handler
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._lock: int | None = None
        self._owns_path = False
        self._gate: Gate | None = None
        self._zap: ZapHandler | None = None
        self._endpoints: dict[str, Endpoint] = {}
        self._listeners: list[socket.socket] = []
        self._pending: dict[_PeerKey, _Pending] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._new_backlog = asyncio.Event()
        self._watches: Subscriptions[_PeerKey] = Subscriptions(
            handler, self._send_event, settings.max_clients
        )

    def bind(self, listen_fd: int | None = None) -> None:
        """Open the sockets. Clients may connect from now on; `serve` answers them.

        Args:
            listen_fd: systemd's socket, which stays open; None: a socket is made.

        Raises:
            ServiceError: another daemon has the sockets, or they cannot be opened.
        """
        try:
            path = self._settings.control_path
            self._lock = lock_socket(path)
            self._zap = ZapHandler(self._context, self._keys, self._has_room)
            if listen_fd is None:
                listener = listen_unix(path, self._settings.mode, self._settings.group)
                self._owns_path = True
            else:
                listener = _inherited(listen_fd)
            self._listeners.append(listener)
            inner = path.with_name(_INNER_NAME)
            most = self._settings.max_clients + _NUM_WAITING
            self._gate = Gate(listener, inner, most, _GATE_LIMITS)
            self._add_endpoint(
                LOCAL_DOMAIN,
                listen_unix(inner, 0o600, None),
                guard_local,
            )
            if self._settings.control_tcp is not None:
                self._bind_tcp(self._settings.control_tcp)
        except BaseException:
            self.close()
            raise

    async def serve(self) -> None:
        """Answer until cancelled."""
        assert self._zap is not None, "bind first"
        self._zap.start()
        for endpoint in self._endpoints.values():
            endpoint.start()
        if self._gate is not None:
            self._gate.start()
        try:
            async with asyncio.TaskGroup() as group:
                endpoints = list(self._endpoints.values())
                group.create_task(MemoryGuard(endpoints, self._exposed_endpoints()).run())
                group.create_task(self._feed_watches())
                group.create_task(self._end_revoked())
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def publish(self, event: Event) -> None:
        """Send an event to the watches; the handler's `events_after` must already know it."""
        self._watches.publish(event)
        if self._watches.has_backlog:
            self._new_backlog.set()

    def close(self) -> None:
        """Close the sockets, and remove the names of those that were made here."""
        if self._gate is not None:
            self._gate.close()
            self._settings.control_path.with_name(_INNER_NAME).unlink(missing_ok=True)
            self._gate = None
        for endpoint in self._endpoints.values():
            endpoint.close()
        for listener in self._listeners:
            listener.close()
        if self._zap is not None:
            self._zap.close()
        self._endpoints, self._listeners, self._zap = {}, [], None
        self._context.destroy(0)
        if self._owns_path:
            self._settings.control_path.unlink(missing_ok=True)
            self._owns_path = False
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _bind_tcp(self, address: str) -> None:
        keys = self._keys
        if keys is None:
            raise ServiceError(f"{address}: TCP needs keys; make some with srstream keys new.")
        listener = listen_tcp(address)
        self._add_endpoint(CURVE_DOMAIN, listener, lambda it: guard_curve(it, keys))

    def _add_endpoint(self, domain: str, listener: socket.socket, secure: Any) -> None:
        self._listeners.append(listener)
        self._endpoints[domain] = Endpoint(
            self._context, listener, secure, self._on_message, self._settings.max_clients
        )

    def _exposed_endpoints(self) -> list[Endpoint]:
        """The endpoints over TCP: no gate can count what CURVE encrypts."""
        return [it for domain, it in self._endpoints.items() if domain != LOCAL_DOMAIN]

    def _has_room(self, domain: str) -> bool:
        return domain in self._endpoints and self._endpoints[domain].has_room()

    def _on_message(self, endpoint: Endpoint, message: PeerMessage) -> None:
        """Queue a message behind those of its connection; other connections do not wait."""
        if message.payload == b"" and not message.envelope:
            return  # the greeting of ZMQ_PROBE_ROUTER
        size = len(message.payload or b"")
        key = (endpoint, message.identity)
        pending = self._pending.get(key)
        if pending is None:
            if len(self._pending) >= self._settings.max_clients * len(self._endpoints):
                self._reply(endpoint, message, _refusal("", "the daemon is busy; try later."))
                return
            pending = self._pending[key] = _Pending()
            task = asyncio.get_running_loop().create_task(self._work_off(key, pending))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif len(pending.messages) >= _MAX_PENDING or pending.num_bytes + size > _MAX_PENDING_BYTES:
            text = "too many requests of this connection wait; read their replies first."
            self._reply(endpoint, message, _refusal(_id_of(message.payload), text))
            return
        pending.messages.append(message)
        pending.num_bytes += size

    async def _work_off(self, key: _PeerKey, pending: _Pending) -> None:
        try:
            while pending.messages:
                message = pending.messages.popleft()
                pending.num_bytes -= len(message.payload or b"")
                reply = await self._answer(key, message)
                end = time.monotonic() + _ROOM_SECONDS
                while self._reply(key[0], message, reply) is Sent.FULL and time.monotonic() < end:
                    await asyncio.sleep(_RETRY_SECONDS)
                self._new_backlog.set()
                await asyncio.sleep(0)  # gives other connections a turn
        finally:
            del self._pending[key]

    async def _answer(self, key: _PeerKey, message: PeerMessage) -> bytes:
        payload = message.payload
        if payload is None:
            return _refusal("", "a request is one part of JSON, after an empty one for REQ.")
        try:
            request = parse_request(payload)
        except UsageError as error:
            return _refusal(_id_of(payload), str(error))
        try:
            result = await self._result(key, message, request)
            if not isinstance(result, bytes):
                result = pydantic_core.to_json(result)
        except SrstreamError as error:
            return _error_reply(request.id, *error_to_wire(error))
        except Exception:
            logger.exception("a request failed inside the daemon", op=request.op)
            text = "an error inside the daemon; its log says more."
            return _error_reply(request.id, "InternalError", text)
        return _good_reply(request.id, result)

    async def _result(
        self, key: _PeerKey, message: PeerMessage, request: Request
    ) -> dict[str, Any] | bytes:
        peer = self._peer(key[0], message)
        if not isinstance(request, Watch):
            return await self._handler.handle(request, peer)
        if message.envelope:
            raise UsageError("a watch sends events besides its reply: use DEALER, not REQ.")
        if request.job is not None and request.credit:
            await self._handler.handle(
                Status(job=request.job), peer
            )  # raises if the job is unknown
        return dict(self._watches.begin(key, request))

    def _peer(self, endpoint: Endpoint, message: PeerMessage) -> Peer:
        """Who sent a message; what came before a revocation is refused after it."""
        if endpoint is self._endpoints.get(LOCAL_DOMAIN):
            uid = os.geteuid() if message.uid is None else message.uid  # None: not by the gate
            name = LOCAL if uid == os.geteuid() else f"uid:{uid}"
            return Peer(name, message.address, uid=uid)
        key = None if self._keys is None else self._keys.find(message.user or "")
        if key is None:
            raise RefusedError(_REVOKED_TEXT)
        return Peer(key.name, message.address, is_admin=key.role == "admin")

    def _reply(self, endpoint: Endpoint, message: PeerMessage, reply: bytes) -> Sent:
        """Send a reply; it is lost if its client makes no room for it."""
        return endpoint.send(message.identity, message.envelope, reply)

    def _send_event(self, key: _PeerKey, payload: bytes) -> Sent:
        endpoint, identity = key
        return endpoint.send(identity, (), payload)

    async def _end_revoked(self) -> None:
        """Tell the holders of revoked keys, and end what they have open, within a second."""
        told: set[_PeerKey] = set()
        while True:
            await asyncio.sleep(_REVOKED_SECONDS)
            still: set[_PeerKey] = set()
            for endpoint in self._exposed_endpoints():
                for descriptor, connection in endpoint.connections_of(self._is_revoked):
                    key = (endpoint, connection.identity or b"")
                    if key in told:  # and libzmq has had the time to send it
                        endpoint.end(descriptor)
                        continue
                    still.add(key)
                    self._watches.end(key)
                    logger.warning("a connection is ended: its key was revoked")
                    refusal = _error_reply("", RefusedError.__name__, _REVOKED_TEXT)
                    endpoint.send(key[1], (), refusal)
            told = still

    def _is_revoked(self, public: str) -> bool:
        return self._keys is None or self._keys.find(public) is None

    async def _feed_watches(self) -> None:
        """Send missed events to clients that are behind; slow readers are tried again."""
        while True:
            with suppress(TimeoutError):
                # `wait_for` of Python 3.11 swallows a cancellation that comes with the event.
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._new_backlog.wait()
            self._new_backlog.clear()
            while True:
                could_more = self._watches.catch_up()
                if not self._watches.has_backlog:
                    break
                await asyncio.sleep(0 if could_more else _RETRY_SECONDS)


def _inherited(descriptor: int) -> socket.socket:
    """Copy the listening socket that systemd opened.

    Raises:
        ServiceError: the descriptor is no listening unix socket.
    """
    try:
        listener = socket.socket(fileno=os.dup(descriptor))
    except OSError as error:
        raise ServiceError(f"descriptor {descriptor} is no socket: {error.strerror}.") from error
    if listener.family != socket.AF_UNIX or not listener.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        listener.close()
        raise ServiceError(f"descriptor {descriptor} is no unix socket that listens.")
    return listener


def _refusal(identifier: str, text: str) -> bytes:
    return _error_reply(identifier, "ProtocolError", text)


def _error_reply(identifier: str, kind: str, text: str) -> bytes:
    if len(text) > _MAX_TEXT:
        text = text[:_MAX_TEXT] + " ..."
    return _encoded(Reply(id=identifier, ok=False, error=ErrorInfo(kind=kind, text=text)))


def _good_reply(identifier: str, result: bytes) -> bytes:
    """A reply around the JSON of its result, which is not parsed again."""
    before, after = _encoded(Reply(id=identifier, ok=True)).rsplit(b"null", 2)[:2]
    return before + result + after + b"null}"


def _encoded(reply: Reply) -> bytes:
    return reply.model_dump_json().encode()


def _id_of(payload: bytes | None) -> str:
    """The `id` in an invalid request, which tells its sender which one was refused; or ""."""
    try:
        values = pydantic_core.from_json(payload or b"")
    except ValueError:
        return ""
    found = values.get("id") if isinstance(values, dict) else None
    return found if isinstance(found, str) and len(found) <= 64 else ""
