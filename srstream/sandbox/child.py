"""Starts, talks to and ends a child process; every child of srstream uses this.

The two processes talk over a pair of connected sockets without a name. The child finds its end as
its standard input. A message is a pydantic model as JSON, after its length in bytes as a big-endian
32-bit number. The first message is the child's order. Files are passed as inherited descriptors,
whose numbers the order states.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Final, TypeVar

from pydantic import BaseModel

if TYPE_CHECKING:
    import asyncio

CONFINED: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Variables for a child that confines itself: NumPy's early threads would stay unconfined."""

_MAX_MESSAGE_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 20
_END_SECONDS = 10.0
_LENGTH = struct.Struct("!I")
_CREDENTIALS = struct.Struct("3i")
_PR_SET_PDEATHSIG = 1

_Order = TypeVar("_Order", bound=BaseModel)


def packed(message: BaseModel) -> bytes:
    """Return the bytes of a message on a channel."""
    content = message.model_dump_json(exclude_computed_fields=True).encode()
    return _LENGTH.pack(len(content)) + content


async def read_message(reader: asyncio.StreamReader, max_bytes: int) -> bytes:
    """Return the JSON of the next message.

    Raises:
        EOFError, ConnectionError: the other process has gone, or sent too large a message.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > max_bytes:
        raise EOFError(f"a message of {length} bytes is too large")
    return await reader.readexactly(length)


async def ended(child: Child) -> int:
    """Wait for the end of a child without blocking the event loop; return its exit status."""
    import asyncio  # the children import this module too, and most run no loop

    if (status := child.status) is not None:
        return status
    descriptor, has_ended = os.pidfd_open(child.pid), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, has_ended.set)
    try:
        await has_ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return child.process.wait()


class Channel:
    """One end of the connection between a child and its parent.

    Any thread may send; one thread at a time receives. `EOFError` says that the other process has
    gone.
    """

    def __init__(self, connection: socket.socket, max_bytes: int = _MAX_MESSAGE_BYTES) -> None:
        self.connection, self._max_bytes = connection, max_bytes
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._unsent = b""

    def send(self, message: BaseModel) -> None:
        """Send a message; wait while the other process is behind."""
        try:
            with self._lock:
                self.connection.sendall(packed(message))
        except ConnectionError as error:
            raise EOFError("the other process has gone") from error

    def offer(self, message: BaseModel) -> bool:
        """Send a message if there is room for it now, else drop it and return False.

        An end that has offered a message never sends one.
        """
        with self._lock, contextlib.suppress(OSError):
            if self._unsent:
                sent = self.connection.send(self._unsent, socket.MSG_DONTWAIT)
                self._unsent = self._unsent[sent:]
            if not self._unsent:
                content = packed(message)
                self._unsent = content[self.connection.send(content, socket.MSG_DONTWAIT) :]
                return True
        return False

    def receive(self, timeout_seconds: float | None = None) -> bytes | None:
        """Return the JSON of the next message, or None if none is complete in time.

        Raises:
            EOFError: the other process has gone, or sent too large a message.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while (message := self._taken()) is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self.connection], [], [], left)[0]:
                return None
            try:
                chunk = self.connection.recv(_CHUNK_BYTES)
            except ConnectionError as error:
                raise EOFError("the other process has gone") from error
            if not chunk:
                raise EOFError("the other process has gone")
            self._pending += chunk
        return message

    def _taken(self) -> bytes | None:
        """Take the first message out of what has arrived; None if it is not complete."""
        if len(self._pending) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._pending)
        if length > self._max_bytes:
            raise EOFError(f"a message of {length} bytes is too large")
        end = _LENGTH.size + length
        if len(self._pending) < end:
            return None
        message = bytes(self._pending[_LENGTH.size : end])
        del self._pending[:end]
        return message

    def close(self) -> None:
        """Close this end; the other process sees the end of the channel."""
        self.connection.close()


class Child:
    """A process that this one started."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel) -> None:
        self.process, self.channel = process, channel

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while the child runs."""
        return self.process.poll()

    def kill(self) -> None:
        """Kill the child, and do not wait for its end."""
        self.process.kill()

    def end(self, patience_seconds: float = 0.0) -> None:
        """Close the channel, give the child time to end by itself, then kill it.

        Waits for the end of the child, but not forever, should the kernel not let it go.
        """
        self.channel.close()
        if patience_seconds:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_seconds)
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_SECONDS)


def start_child(
    module: str,
    order: BaseModel,
    *,
    descriptors: Sequence[int] = (),
    log: IO[bytes] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Child:
    """Start a module of srstream as a process and send it its order.

    A child that dies at once raises nothing here; whoever waits for its messages notices.

    Args:
        descriptors: inherited by the child under the same numbers.
        log: receives the child's standard error; None: this process's own standard error.
        variables: added to the environment of this process.
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = subprocess.Popen(
                # -P: a file of the user's called av.py in the current folder is not imported.
                [sys.executable, "-P", "-m", module],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=descriptors,
                env={**os.environ, **(variables or {})},
                # The parent handles Ctrl-C; the terminal signals the parent's group alone.
                process_group=0,
            )
    except BaseException:
        ours.close()
        raise
    child = Child(process, Channel(ours))
    with contextlib.suppress(EOFError):
        child.channel.send(order)
    return child


def write_log(line: str) -> None:
    """Write a line to a child's log, its standard error; on a full disk the line is lost."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))


def take_order(kind: type[_Order], *, outlives_parent: bool = False) -> tuple[Channel, _Order]:
    """Return a child's channel to its parent, and its order.

    From then on the kernel kills this process when the thread that started it ends.

    Args:
        outlives_parent: the child has work left when its parent is killed, and ends by itself
            after the channel closes.

    Raises:
        EOFError: the parent has gone.
    """
    channel = Channel(socket.socket(fileno=os.dup(0)))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if not outlives_parent:
        credentials = channel.connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        die_with_parent(_CREDENTIALS.unpack(credentials)[0])
    message = channel.receive()
    assert message is not None  # there is no time limit
    return channel, kind.model_validate_json(message)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(1)
