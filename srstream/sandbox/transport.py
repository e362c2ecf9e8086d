"""Frames over ZeroMQ with credits: the consumer grants bytes, the producer never sends more.

A high-water mark counts messages, and a dead PULL socket loses its queue. Therefore the consumer
(ROUTER) states how many bytes it can take, and the producer (DEALER) waits for that credit. One
frame may always be under way, however large it is.

Messages, first part first (b"" never leads):
    producer → consumer   FRAME header plane...   NOTE text   END json   ERROR json
    consumer → producer   CREDIT bytes
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import zmq

from srstream.errors import SrstreamError, error_to_wire
from srstream.frame import Frame, decode_frame, encode_frame

FRAME: Final = b"FRAME"
NOTE: Final = b"NOTE"
END: Final = b"END"
ERROR: Final = b"ERROR"
CREDIT: Final = b"CREDIT"

SOCKET_NAME: Final = "frames.ipc"


def endpoint(directory_descriptor: int) -> str:
    """Return the address of the frame socket in a folder that both processes hold open.

    The path through the descriptor is short (a unix socket's limit is 107 bytes) and lies
    inside the job's own folder, where only its owner can connect.
    """
    return f"ipc:///proc/self/fd/{directory_descriptor}/{SOCKET_NAME}"


class FrameSender:
    """The producer's end; it blocks until there is credit.

    There is no time limit: the consumer decides what is slow and what hangs, and the producer dies
    with it.
    """

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 10_000)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.connect(address)
        self._credit_bytes = 0
        self._socket.send_multipart([NOTE, b""])

    def wait_until_connected(self) -> None:
        """Wait for the consumer's first credit, after which the process needs no further socket."""
        self._take_credit(block=True)

    def send(self, frame: Frame) -> None:
        """Send one frame as soon as credit allows."""
        self._take_credit(block=False)
        while self._credit_bytes <= 0:
            self._take_credit(block=True)
        self._credit_bytes -= frame.num_bytes
        self._socket.send_multipart([FRAME, *encode_frame(frame)], copy=False)

    def note(self, text: str) -> None:
        """Send a sentence for the user."""
        self._socket.send_multipart([NOTE, text.encode()])

    def end(self, report: dict[str, Any]) -> None:
        """Send the decoder's report, after which no frame follows."""
        self._socket.send_multipart([END, json.dumps(report).encode()])

    def fail(self, error: SrstreamError) -> None:
        """Send the error with which the producer failed."""
        kind, text = error_to_wire(error)
        self._socket.send_multipart([ERROR, json.dumps({"kind": kind, "text": text}).encode()])

    def close(self) -> None:
        """Send the queue and close the socket."""
        self._socket.close()
        self._context.term()

    def _take_credit(self, *, block: bool) -> None:
        if block:
            self._socket.poll()
        while self._socket.poll(0):
            kind, amount = self._socket.recv_multipart()
            if kind == CREDIT:
                self._credit_bytes += int(amount)


class FrameReceiver:
    """The consumer's end, bound in the job's folder; it grants credit as frames are released."""

    def __init__(self, directory: Path, *, window_bytes: int) -> None:
        self.directory_descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        (directory / SOCKET_NAME).unlink(missing_ok=True)
        self._path = directory / SOCKET_NAME
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.bind(endpoint(self.directory_descriptor))
        self._window_bytes = window_bytes
        self._peer: bytes | None = None
        self.credit_bytes = 0
        """Bytes granted and not used; negative if the last frame exceeded the credit."""

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The socket, for a poller; only `receive` reads it."""
        return self._socket

    def receive(self, timeout_seconds: float) -> tuple[bytes, Frame | str | dict[str, Any]] | None:
        """Return the next message, or None if none arrives in time."""
        if not self._socket.poll(int(timeout_seconds * 1000)):
            return None
        peer, kind, *parts = self._socket.recv_multipart(copy=False)
        if self._peer is None:
            self._peer = peer.bytes
            self._grant(self._window_bytes)
        elif self._peer != peer.bytes:
            return None
        return kind.bytes, self._read(kind.bytes, parts)

    def _read(self, kind: bytes, parts: Sequence[zmq.Frame]) -> Frame | str | dict[str, Any]:
        if kind == FRAME:
            frame = decode_frame([part.buffer for part in parts])
            self.credit_bytes -= frame.num_bytes
            return frame
        if kind == NOTE:
            return parts[0].bytes.decode()
        message: dict[str, Any] = json.loads(parts[0].bytes)
        return message

    def release(self, frame: Frame) -> None:
        """Tell the producer that `frame` has left this process's memory."""
        self._grant(frame.num_bytes)

    def _grant(self, num_bytes: int) -> None:
        if self._peer is not None:
            self.credit_bytes += num_bytes
            try:
                self._socket.send_multipart([self._peer, CREDIT, b"%d" % num_bytes])
            except zmq.ZMQError:
                return  # The producer has ended; what it sent is already here.

    def close(self) -> None:
        """Close the socket and remove its file."""
        self._socket.close()
        self._context.term()
        self._path.unlink(missing_ok=True)
        os.close(self.directory_descriptor)
