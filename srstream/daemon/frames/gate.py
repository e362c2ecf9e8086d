"""The gate of the data socket: a process of its own that counts what arrives (`zmq/gate.py`).

The process that computes receives whole messages of a bounded size, and its interpreter has nothing
to do with the rest. `GateProcess` runs it as `python -m srstream.daemon.frames.gate`; its order is
a `GateOrder`, its messages are what is to be logged and, once a second, a sign of life. It ends
when the channel does, whatever kills the other process, and not before clients have what was sent
to them last.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from srstream.daemon.api.zmq.gate import Gate, GateLimits
from srstream.errors import ServiceError
from srstream.sandbox.child import Channel, Child, start_child, take_order

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 2.0
"""Time in which the clients can receive what was sent to them last."""

_START_SECONDS, _RESTART_SECONDS = 30.0, 1.0
_BEAT_SECONDS, _SILENCE_SECONDS = 1.0, 5.0
_TELL_SECONDS = 10.0
"""How long a gate's end is a problem at least, so that whoever asks now and then hears of it."""


class GateOrder(BaseModel):
    """What the gate connects, and its limits."""

    model_config = ConfigDict(frozen=True)

    listener: int
    """Descriptor of the socket to which clients connect."""
    inner: Path
    max_connections: int
    limits: GateLimits


class Said(BaseModel):
    """A sentence for the log; the empty one is the sign of life of a gate that listens."""

    model_config = ConfigDict(frozen=True)

    text: str


class GateProcess:
    """The gate as the thread of the data socket sees it.

    A gate that dies, or gives no sign of life for `_SILENCE_SECONDS`, is replaced.

    Args:
        listener: the socket to which clients connect.
        inner: the socket on which libzmq listens.

    Raises:
        ServiceError: the gate does not start.
    """

    def __init__(
        self, listener: socket.socket, inner: Path, max_connections: int, limits: GateLimits
    ) -> None:
        self._order = GateOrder(
            listener=listener.fileno(), inner=inner, max_connections=max_connections, limits=limits
        )
        self._next_start = self._heard_at = 0.0
        self._has_begun = False
        self._problem, self._problem_ends = "", 0.0
        self._child: Child | None = self._start()
        if not self._is_listening(self._child):
            self.close()
            raise ServiceError("the gate of the data socket does not start.")

    @property
    def problem(self) -> str:
        """Why the gate was replaced just now, or is being replaced; empty if all is well."""
        is_over = self._has_begun and time.monotonic() > self._problem_ends
        return "" if is_over else self._problem

    def look(self) -> None:
        """Log what the gate says, and replace one that is gone or silent; cheap, so call it often.

        Any thread may ask for `problem` meanwhile.
        """
        if self._child is not None:
            self._listen(self._child)
        if self._child is None and time.monotonic() >= self._next_start:
            self._child = self._start()

    def close(self) -> None:
        """End the gate once the clients have what was sent to them."""
        child, self._child = self._child, None
        if child is not None:
            child.end(patience_seconds=2 * _DRAIN_SECONDS)

    def _start(self) -> Child:
        self._heard_at, self._has_begun = time.monotonic(), False
        self._next_start = self._heard_at + _RESTART_SECONDS
        return start_child(
            "srstream.daemon.frames.gate", self._order, descriptors=[self._order.listener]
        )

    def _is_listening(self, child: Child) -> bool:
        """Wait for the gate's first message."""
        with suppress(EOFError):
            self._has_begun = child.channel.receive(_START_SECONDS) is not None
            self._heard_at = time.monotonic()
        return self._has_begun

    def _listen(self, child: Child) -> None:
        try:
            while (message := child.channel.receive(0)) is not None:
                self._heard_at, self._has_begun = time.monotonic(), True
                if text := Said.model_validate_json(message).text:
                    logger.warning("%s", text)
        except EOFError:
            self._bury(child, "died")
            return
        silent = time.monotonic() - self._heard_at
        if silent > (_SILENCE_SECONDS if self._has_begun else _START_SECONDS):
            self._bury(child, f"gave no sign of life for {silent:.0f} s and was killed")

    def _bury(self, child: Child, reason: str) -> None:
        child.end()
        self._child, self._has_begun = None, False
        status = child.process.returncode
        self._problem = f"the gate of the data socket {reason} (status {status}); it is replaced."
        self._problem_ends = time.monotonic() + _TELL_SECONDS
        logger.error("%s", self._problem)


async def _serve(channel: Channel, gate: Gate) -> None:
    """Run the gate until the other process closes the channel or dies."""
    gate.start()
    channel.send(Said(text=""))
    beating = asyncio.ensure_future(_beat(channel))
    channel.connection.setblocking(False)
    with suppress(OSError):
        await asyncio.get_running_loop().sock_recv(channel.connection, 1)
    beating.cancel()
    gate.stop()
    end = time.monotonic() + _DRAIN_SECONDS
    while gate.num_connections and time.monotonic() < end:
        await asyncio.sleep(0.01)
    gate.close()


async def _beat(channel: Channel) -> None:
    """Give signs of life; a channel that is full has older ones in it."""
    while True:
        channel.offer(Said(text=""))
        await asyncio.sleep(_BEAT_SECONDS)


class _Teller(logging.Handler):
    """Sends the sentence of each log record to the other process, unless the channel is full."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.offer(Said(text=record.getMessage()))


def main() -> None:
    """Entry point of the process."""
    channel, order = take_order(GateOrder, outlives_parent=True)
    logging.basicConfig(handlers=[_Teller(channel)], level=logging.INFO)
    listener = socket.socket(fileno=order.listener)
    gate = Gate(listener, order.inner, order.max_connections, order.limits)
    # The other process decides when to stop; a service manager signals every process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(_serve(channel, gate))


if __name__ == "__main__":
    main()
