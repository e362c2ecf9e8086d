"""The client of the data socket: sends frames, returns enhanced frames, and handles credit."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zmq

from srstream import errors
from srstream.errors import ServiceError, SrstreamError, UsageError
from srstream.frame import ColorSpec, Frame, FrameForm, PlaneLayout, encode_frame
from srstream.protocol.addresses import FRAMES_NAME, default_address
from srstream.protocol.frames import (
    BYE,
    CREDIT,
    END,
    ERROR,
    FRAME,
    FRAMES_VERSION,
    HELLO,
    NOTE,
    READY,
    ProtocolError,
    Ready,
    frame_of_planes,
    layout_named,
    parse,
    parse_credit,
    read_frame,
)

if TYPE_CHECKING:
    import av


@dataclass(frozen=True, slots=True)
class CurveClient:
    """Keys for TCP: the daemon's public key, and this client's pair."""

    server_key: bytes
    public_key: bytes
    secret_key: bytes = field(repr=False)


class FrameStream:
    """A session with the daemon, which enhances frames of one size and layout in order.

        with FrameStream(width, height, layout="yuv420p", model="fast") as stream:
            for enhanced in stream.enhance(frames):
                ...

    It is not thread-safe. `output` describes the enhanced frames.

    Args:
        layout: a planar pixel format of libav, or a `PlaneLayout`.
        color: the meaning of the samples, before and after.
        restore, detail: see `srstream.config.ModelConfig`.
        time_base: the time from one frame to the next, for frames given as bare planes.
        address: address of the data socket; None: this user's, or else the system service's.
        curve: keys, needed over TCP.
        ahead_frames: results that the daemon may send before one is taken.
        timeout_seconds: silence after which the daemon counts as dead.

    Raises:
        srstream.errors.SrstreamError: no daemon answers, or it refuses the session.
    """

    def __init__(
        self,
        width: int,
        height: int,
        *,
        layout: str | PlaneLayout = "yuv420p",
        color: ColorSpec | None = None,
        model: str = "fast",
        restore: float = 0.0,
        detail: float = 0.0,
        time_base: Fraction = Fraction(1, 25),
        address: str | Path | None = None,
        curve: CurveClient | None = None,
        ahead_frames: int = 4,
        timeout_seconds: float = 30.0,
    ) -> None:
        layout = layout_named(layout) if isinstance(layout, str) else layout
        self.form = FrameForm(width, height, layout, color or ColorSpec())
        self.notes: list[str] = []
        """Notes that the daemon has sent, one sentence each."""
        self._time_base, self._timeout_seconds = time_base, timeout_seconds
        self._credit = self._num_sent = self._num_received = 0
        self._end: dict[str, Any] | None = None
        self._has_failed = False
        self._waiting: deque[tuple[bytes, list[memoryview]]] = deque()
        """Messages that came while one could not be sent."""
        self._context = zmq.Context()
        self._socket = _connected(self._context, _address(address), curve)
        hello = {
            "version": FRAMES_VERSION,
            "width": width,
            "height": height,
            "layout": asdict(layout),
            "color": asdict(self.form.color),
            "model": model,
            "restore": restore,
            "detail": detail,
        }
        try:
            self._send([HELLO, json.dumps(hello).encode()])
            self._grant(max(1, ahead_frames))
            ready = self._greeted()
        except BaseException:
            self._free(linger_ms=0)
            raise
        self.output, self.session = ready.form, ready.session
        self.idle_seconds = ready.idle_seconds
        """How long the daemon waits for a sign of life; see `heartbeat`."""
        self._credit += ready.credit_frames

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def enhance(self, frames: Iterable[Any]) -> Iterator[Frame]:
        """Yield an enhanced frame for each given one, in order and with its time.

        Takes instances of `Frame`, sequences of planes (a single array for gray) or frames of PyAV.
        It may be called again for further frames. A frame is sent only when there is credit for
        it.

        Raises:
            srstream.errors.UsageError: a frame is not of the stream's size, layout or depth.
            srstream.errors.SrstreamError: the daemon ended the session.
        """
        if self._num_sent != self._num_received:
            raise UsageError("frames of the last call are still on their way; take them all.")
        for given in frames:
            frame = self._frame(given)
            while not self._credit:
                yield from self._arrived()
            self._send([FRAME, *encode_frame(frame)])
            self._credit -= 1
            self._num_sent += 1
            while self._waiting or self._socket.poll(0):
                yield from self._arrived()
        while self._num_received < self._num_sent:
            yield from self._arrived()

    def heartbeat(self) -> None:
        """Sends a sign of life, needed when no frame is sent or taken for a long time."""
        self._grant(0)

    def close(self) -> None:
        """Ends the session; if all frames were taken, waits for the daemon to confirm it."""
        if self._socket.closed:
            return
        if self._has_failed:
            self._free(linger_ms=0)
            return
        try:
            self._send([BYE])
            while self._num_sent == self._num_received and self._end is None:
                self._receive()
        except SrstreamError:
            pass  # The session is over in any case, and no frame is missing.
        finally:
            self._free(linger_ms=1000)

    def _free(self, *, linger_ms: int) -> None:
        self._socket.close(linger=linger_ms)
        self._context.term()

    def _arrived(self) -> Iterator[Frame]:
        """Waits for a message; yields it if it is a frame, and then renews its credit."""
        frame = self._receive()
        if frame is not None:
            self._num_received += 1
            yield frame
            self._grant(1)

    def _greeted(self) -> Ready:
        while True:
            kind, parts = self._message()
            if kind == READY:
                return parse(Ready, parts[0])
            self._take_note(kind, parts)

    def _receive(self) -> Frame | None:
        kind, parts = self._message()
        if kind == FRAME:
            return read_frame(parts, self.output)
        self._take_note(kind, parts)
        return None

    def _take_note(self, kind: bytes, parts: list[memoryview]) -> None:
        """Handles a message that is no frame; unknown kinds of a newer daemon are ignored."""
        if kind == CREDIT:
            self._credit += parse_credit(parts)
        elif kind == NOTE:
            self.notes.append(bytes(parts[0]).decode())
        elif kind == END:
            self._end = json.loads(bytes(parts[0]))
        elif kind == ERROR:
            raise self._ended_by(parts)

    def _ended_by(self, parts: list[memoryview]) -> SrstreamError:
        """The daemon's error, which ends the session."""
        self._has_failed = True
        return _error(json.loads(bytes(parts[0])))

    def _message(self) -> tuple[bytes, list[memoryview]]:
        return self._waiting.popleft() if self._waiting else self._received()

    def _received(self) -> tuple[bytes, list[memoryview]]:
        if not self._socket.poll(int(self._timeout_seconds * 1000)):
            raise ServiceError(
                f"the daemon said nothing for {self._timeout_seconds:g} s; see `srstream health`."
            )
        first, *others = self._socket.recv_multipart(copy=False)
        kind, parts = first.bytes, [part.buffer for part in others]
        return kind, parts

    def _grant(self, num_frames: int) -> None:
        self._send([CREDIT, b"%d" % num_frames])

    def _send(self, parts: list[bytes | memoryview]) -> None:
        """Send a message; libzmq takes none where the daemon refuses the connection.

        Raises:
            SrstreamError: the daemon's error if it has sent one, else that it cannot be reached.
        """
        while True:
            # Not after a poll: the connection may end in between, and a send would wait forever.
            with contextlib.suppress(zmq.Again):
                self._socket.send_multipart(parts, zmq.NOBLOCK)
                return
            message = self._received()
            self._waiting.append(message)
            if message[0] == ERROR:
                raise self._ended_by(message[1])

    def _frame(self, given: Any) -> Frame:
        form = self.form
        if isinstance(given, Frame):
            frame = frame_of_planes(given.planes, form, given.pts, given.time_base)
            return replace(
                frame,
                duration=given.duration,
                is_key=given.is_key,
                concealed=given.concealed,
            )
        if hasattr(given, "format"):
            return self._frame_of_av(given)
        planes = [given] if isinstance(given, np.ndarray) else list(given)
        return frame_of_planes(planes, form, self._num_sent, self._time_base)

    def _frame_of_av(self, picture: av.VideoFrame) -> Frame:
        from srstream.media.layouts import extract_planes

        layout, planes = extract_planes(picture)
        if layout != self.form.layout:
            raise UsageError(f"a frame of {picture.format.name} came; {self.form.layout} was said.")
        has_time = picture.pts is not None and picture.time_base is not None
        pts = picture.pts if has_time else self._num_sent
        time_base = picture.time_base if has_time else self._time_base
        assert pts is not None and time_base is not None
        frame = frame_of_planes(planes, self.form, pts, Fraction(time_base))
        return replace(frame, is_key=bool(picture.key_frame))


def _address(given: str | Path | None) -> str:
    if given is None:
        return default_address(FRAMES_NAME)
    return given if isinstance(given, str) else f"ipc://{given}"


def _connected(
    context: zmq.Context[zmq.Socket[bytes]], address: str, curve: CurveClient | None
) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.SNDHWM, 0)  # credit limits what is under way
    socket.setsockopt(zmq.RCVHWM, 0)
    if curve is not None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, curve.server_key)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, curve.public_key)
        socket.setsockopt(zmq.CURVE_SECRETKEY, curve.secret_key)
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        socket.close()
        context.term()
        raise UsageError(f"{address}: cannot be connected to ({error.strerror}).") from error
    return socket


def _error(content: dict[str, Any]) -> SrstreamError:
    """The daemon's error, in its own class if that is one of srstream's."""
    name, text = str(content.get("kind")), str(content.get("text"))
    known = ProtocolError if name == "ProtocolError" else getattr(errors, name, SrstreamError)
    if not (isinstance(known, type) and issubclass(known, SrstreamError)):
        known = SrstreamError
    return known(text)
