"""The server of the data socket: clients push raw frames and receive enhanced ones.

One thread (`run`) owns the socket and waits for nothing else; each session computes in its own
thread (`session.py`). So a slow, dead or hostile client costs the others only its share of the
engine, and only while it reads its results.

The socket's file mode decides who may connect, over TCP CURVE does. Over ipc a separate process
(`gate.py`) limits the parts and the number of messages; over TCP, where nothing can be counted,
`memory_guard.py` looks for messages that never end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from srstream.daemon.frames.memory_guard import ConnectionGuard
from srstream.daemon.frames.session import (
    MAX_UNSENT_FRAMES,
    FrameSession,
    OpenStage,
    Parts,
    SessionLimits,
    error_message,
)
from srstream.daemon.frames.sockets import SEND_QUEUE, CurveServer, FrameSockets
from srstream.daemon.logs import FewLines
from srstream.daemon.settings import SocketSettings
from srstream.errors import RefusedError, ServiceError, SrstreamError
from srstream.protocol.frames import (
    BYE,
    CREDIT,
    FRAME,
    HELLO,
    MAX_PARTS,
    Hello,
    ProtocolError,
    parse,
    parse_credit,
    read_frame,
)

logger = logging.getLogger(__name__)
logger.addFilter(FewLines(120))

MAX_SCALE = 4

WINDOW_FRAMES, WINDOW_BYTES = 24, 32 << 20
"""Input frames, and bytes, that may wait in a session; two frames are always allowed."""

TURN_MESSAGES, TURN_SECONDS = 64, 0.002
"""Limits of one turn of receiving, after which sessions have theirs; 32 times as many parts are
skipped."""

MIN_TICK_MS, MAX_TICK_MS = 1, 200

REVOKED_SECONDS = 0.2
_REVOKED_TEXT = "this key is not allowed any more."

JOIN_SECONDS = 5.0
"""How long `close` waits for a session's thread to finish its frame."""


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """The limits on clients."""

    max_sessions: int = 8
    max_pixels: int = 3840 * 2160
    """Width x height of an input frame."""
    max_bytes: int = 2 << 30
    """Memory for the frames of all sessions; each session reserves the most that it can hold."""
    frames_in_stage: int = 4
    """Frames of one session that are computed at once."""
    idle_seconds: float = 60.0
    """How long a session waits for a client that neither sends nor reads."""


@dataclass(frozen=True, slots=True)
class FramesStatus:
    """The server's state, for heartbeats and metrics."""

    num_sessions: int
    """Sessions, including ending ones until their memory is free."""
    num_frames: int
    """Frames computed since the start."""
    reserved_bytes: int


class FramesServer:
    """Serves the data socket. Call `start`, or `bind` and `run` in a thread; then `close`.

    Args:
        settings: where the sockets are, and who may connect.
        open_stage: makes the stage that enlarges a session's frames.
        curve: the daemon's keys, needed for TCP.
        is_allowed: tells whether a client's public key is allowed still, needed for TCP.
        context: the context of the ZAP handler; None, without TCP: a new one.
    """

    def __init__(
        self,
        settings: SocketSettings,
        *,
        open_stage: OpenStage,
        limits: FrameLimits | None = None,
        curve: CurveServer | None = None,
        is_allowed: Callable[[str], bool] | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self._open_stage, self._is_allowed = open_stage, is_allowed
        self.limits = limits or FrameLimits()
        self._sockets = FrameSockets(settings, self.limits.max_pixels, curve, context)
        self._wake_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._sessions: dict[bytes, FrameSession] = {}
        self._ending: list[FrameSession] = []
        self._num_frames_before = 0
        self._is_blocked = False
        self._tick_ms = MIN_TICK_MS
        self._next_beat = self._next_check = 0.0
        self._told_revoked: dict[bytes, float] = {}
        self._stopping = threading.Event()
        self._finished = threading.Event()
        self._finished.set()

    def bind(self) -> None:
        """Opens the sockets.

        Raises:
            ServiceError: another daemon has them, or they cannot be made.
            ConfigError: TCP is configured without keys, or its address cannot be used.
        """
        self._sockets.open()

    @property
    def status(self) -> FramesStatus:
        """The present state; may be read from any thread."""
        sessions = self._all_sessions()
        return FramesStatus(
            num_sessions=len(sessions),
            num_frames=self._num_frames_before + sum(s.num_frames for s in sessions),
            reserved_bytes=sum(s.limits.reserved_bytes for s in sessions),
        )

    @property
    def problem(self) -> str:
        """Why clients may not be reached at present; may be read from any thread."""
        return self._sockets.problem

    def _all_sessions(self) -> list[FrameSession]:
        return [*self._sessions.values(), *self._ending]

    def start(self) -> None:
        """Calls `bind`, then `run` in a new thread.

        Raises:
            ServiceError, ConfigError: as `bind` does.
        """
        self.bind()
        self._finished.clear()
        threading.Thread(target=self.run, name="frames", daemon=True).start()

    def run(self) -> None:
        """Serves until `close`, then tells connected clients that the daemon ends."""
        router, guard, gate = self._sockets.opened()
        self._finished.clear()
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._wake_descriptor, zmq.POLLIN)
        poller.register(guard.monitor, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                most_ms = self._tick_ms if self._is_blocked else MAX_TICK_MS
                poller.poll(min(most_ms, guard.look_ms))
                self._forget_wakes()
                guard.look()
                gate.look()
                began = time.monotonic()
                num_faults = self._receive(router, guard)
                self._look_after_sessions(router)
                self._end_revoked(router, guard)
                if num_faults:  # gives threads that compute as much time
                    time.sleep(min(time.monotonic() - began, TURN_SECONDS))
        finally:
            self._shut_down(router)
            self._finished.set()

    def close(self) -> None:
        """Ends `run`, waits for the sessions' threads and removes the socket."""
        self._stopping.set()
        self._wake()
        self._finished.wait()
        self._sockets.close()

    def _wake(self) -> None:
        os.eventfd_write(self._wake_descriptor, 1)

    def _forget_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_descriptor)

    def _receive(self, router: zmq.Socket[bytes], guard: ConnectionGuard) -> int:
        """Receives a turn's messages and returns how many were invalid."""
        num_messages = num_faults = 0
        end = time.monotonic() + TURN_SECONDS
        while num_messages < TURN_MESSAGES and time.monotonic() < end:
            try:
                peer = router.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            num_messages += 1
            parts = self._rest_of_message(router, peer)
            user = _user_of(peer)
            guard.saw_message(peer, user)
            try:
                self._check_allowed(peer.bytes, user)
                self._handle(peer.bytes, parts)
            except SrstreamError as error:
                num_faults += 1
                self._refuse(router, peer.bytes, error)
                guard.saw_fault(peer)
        return num_faults

    def _rest_of_message(
        self, router: zmq.Socket[bytes], first: zmq.Frame
    ) -> list[zmq.Frame] | None:
        """The parts after the peer's name; None if there are too many, which are dropped."""
        parts: list[zmq.Frame] = []
        num_parts, last = 0, first
        receive = router.recv  # without keywords: twice as fast, which matters for 100,000 parts
        while last.more:
            last = receive(0, False, False)
            num_parts += 1
            if num_parts <= MAX_PARTS:
                parts.append(last)
            elif num_parts % (32 * TURN_MESSAGES) == 0:
                self._look_after_sessions(router)
        return parts if num_parts <= MAX_PARTS else None

    def _handle(self, peer: bytes, parts: list[zmq.Frame] | None) -> None:
        if not parts:
            raise ProtocolError(f"a message has 1 to {MAX_PARTS} parts.")
        kind, rest = parts[0].bytes, [part.buffer for part in parts[1:]]
        session = self._sessions.get(peer)
        if kind == HELLO:
            self._greet(peer, session, rest)
            return
        if kind not in (FRAME, CREDIT, BYE):
            raise ProtocolError(f"{kind[:16]!r} is no kind of message that is known.")
        if session is None:
            raise ProtocolError(f"{kind.decode()}: no session is open; HELLO comes first.")
        session.touch()
        if kind == FRAME:
            session.put(read_frame(rest, session.form))
        elif kind == CREDIT:
            session.grant(parse_credit(rest))
        else:
            session.finish()

    def _check_allowed(self, peer: bytes, user: str | None) -> None:
        """Refuse the messages of a client whose key was revoked."""
        if user is not None and self._is_revoked(user):
            self._note_revoked(peer)
            raise RefusedError(_REVOKED_TEXT)

    def _note_revoked(self, peer: bytes) -> None:
        """Log that a connection ends, once, and remember when its client was told so."""
        if peer not in self._told_revoked:
            self._told_revoked[peer] = time.monotonic()
            logger.warning("a connection is ended: its key was revoked")

    def _is_revoked(self, user: str) -> bool:
        return self._is_allowed is None or not self._is_allowed(user)

    def _end_revoked(self, router: zmq.Socket[bytes], guard: ConnectionGuard) -> None:
        """Tell the holders of revoked keys, and end what they have open, within a second."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + REVOKED_SECONDS
        connected: set[bytes] = set()
        for descriptor, connection in guard.connections_of(self._is_revoked):
            peer = connection.identity or b""
            connected.add(peer)
            if peer not in self._told_revoked:
                self._note_revoked(peer)
                self._refuse(router, peer, RefusedError(_REVOKED_TEXT))
            elif now - self._told_revoked[peer] > REVOKED_SECONDS / 2:
                guard.end(descriptor)  # libzmq has had the time to send it
        for peer in self._told_revoked.keys() - connected:
            del self._told_revoked[peer]

    def _greet(self, peer: bytes, session: FrameSession | None, rest: list[memoryview]) -> None:
        if session is not None:
            raise ProtocolError("HELLO: the session is open already.")
        if len(rest) != 1:
            raise ProtocolError("HELLO: one part of JSON is expected.")
        hello = parse(Hello, rest[0])
        limits = self._limits_for(hello)
        session = FrameSession(hello, limits, open_stage=self._open_stage, wake=self._wake)
        self._sessions[peer] = session
        session.start()
        logger.info(
            "session=%s begins: %dx%d, model %s", session.id, hello.width, hello.height, hello.model
        )

    def _limits_for(self, hello: Hello) -> SessionLimits:
        """The limits of a new session, if the server has room for it.

        Raises:
            RefusedError: it has not, or the frames are too large.
        """
        limits, status = self.limits, self.status
        if hello.width * hello.height > limits.max_pixels:
            raise RefusedError(
                f"frames of {hello.width}x{hello.height}; at most {limits.max_pixels} pixels are "
                "taken."
            )
        if status.num_sessions >= limits.max_sessions:
            raise RefusedError(
                f"{status.num_sessions} sessions are open, as many as may be; try again later."
            )
        frame_bytes = hello.form.frame_bytes
        window = max(2, min(WINDOW_FRAMES, WINDOW_BYTES // frame_bytes))
        num_outputs = limits.frames_in_stage + MAX_UNSENT_FRAMES + SEND_QUEUE
        reserved = frame_bytes * (window + limits.frames_in_stage + num_outputs * MAX_SCALE**2)
        if status.reserved_bytes + reserved > limits.max_bytes:
            raise RefusedError(
                f"a session of {hello.width}x{hello.height} takes up to {reserved >> 20} MiB, and "
                f"{(limits.max_bytes - status.reserved_bytes) >> 20} are left; send smaller frames "
                "or try again later."
            )
        return SessionLimits(window, limits.frames_in_stage, limits.idle_seconds, reserved)

    def _refuse(self, router: zmq.Socket[bytes], peer: bytes, error: SrstreamError) -> None:
        """Sends a client the error, and ends its session if it has one."""
        session = self._sessions.get(peer)
        if session is not None:
            logger.warning("session=%s is ended: %s", session.id, error)
            self._drop(peer)
        self._send(router, peer, error_message(error))

    def _drop(self, peer: bytes) -> None:
        session = self._sessions.pop(peer)
        session.cancel()
        self._ending.append(session)

    def _look_after_sessions(self, router: zmq.Socket[bytes]) -> None:
        """Sends what can be sent, and ends sessions whose clients are gone."""
        self._is_blocked = False
        num_sent = 0
        for peer, session in list(self._sessions.items()):
            num_sent += self._send_all(router, peer, session)
            if peer in self._sessions and session.is_idle():
                seconds = session.limits.idle_seconds
                error = ServiceError(f"the client was not heard of for {seconds:g} s.")
                self._refuse(router, peer, error)
        self._tick_ms = MIN_TICK_MS if num_sent else min(2 * self._tick_ms, MAX_TICK_MS)
        self._beat(router)
        self._reap()

    def _send_all(self, router: zmq.Socket[bytes], peer: bytes, session: FrameSession) -> int:
        """Sends a session's messages as far as possible; returns how many were sent."""
        num_sent = 0
        while (message := session.next_message()) is not None:
            outcome = self._send(router, peer, message)
            if outcome == "full":
                self._is_blocked = True
                return num_sent
            num_sent += 1
            if outcome == "gone":
                logger.info("session=%s: the client is gone", session.id)
            if outcome == "gone" or session.sent(message):
                self._drop(peer)
                return num_sent
        return num_sent

    @staticmethod
    def _send(router: zmq.Socket[bytes], peer: bytes, message: Parts) -> str:
        """Sends a message; returns `sent`, `full` (the peer does not read) or `gone`."""
        for _ in range(2):
            try:
                router.send_multipart([peer, *message], zmq.NOBLOCK, copy=False)
            except zmq.Again:
                # libzmq checks once a millisecond whether there is room, or when asked this.
                router.get(zmq.EVENTS)
            except zmq.ZMQError:
                return "gone"
            else:
                return "sent"
        return "full"

    def _beat(self, router: zmq.Socket[bytes]) -> None:
        """Sends an empty credit now and then, which fails at once where the client is gone."""
        now = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + min(5.0, self.limits.idle_seconds / 4)
        for peer, session in list(self._sessions.items()):
            if self._send(router, peer, [CREDIT, b"0"]) == "gone":
                logger.info("session=%s: the client is gone", session.id)
                self._drop(peer)

    def _reap(self) -> None:
        for session in [s for s in self._ending if s.has_ended]:
            self._num_frames_before += session.num_frames
            self._ending.remove(session)
            logger.info("session=%s ended after %d frames", session.id, session.num_frames)

    def _shut_down(self, router: zmq.Socket[bytes]) -> None:
        self._sockets.hide()  # first, so that no new client connects
        for peer in list(self._sessions):
            self._refuse(router, peer, ServiceError("the daemon ends."))
        deadline = time.monotonic() + JOIN_SECONDS
        for session in self._ending:
            session.join(max(0.0, deadline - time.monotonic()))
        self._reap()


def _user_of(part: zmq.Frame) -> str | None:
    """The public key of the client that sent a message; None over ipc."""
    try:
        return str(part.get("User-Id"))
    except zmq.ZMQError:
        return None
