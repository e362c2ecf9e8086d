"""The gate of the data socket, in a separate process (`daemon/api/zmq/gate.py` does the counting).

The process that computes gets complete messages of limited size, and its interpreter spends no time
on others. `GateProcess` runs this as `python -m srstream.daemon.frames.gate ARGUMENTS` and logs the
lines that it sends over a socket. The gate ends when that socket is closed, however the other
process ended.
"""

from __future__ import annotations

import asyncio
import json
import logging
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from srstream.daemon.api.zmq.gate import Gate, GateLimits
from srstream.errors import ServiceError

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 2.0
"""Time for the last messages to reach the clients."""

_START_SECONDS, _RESTART_SECONDS = 30.0, 1.0
_MAX_SAID_BYTES = 4096


class GateProcess:
    """Runs the gate's process, and starts it again if it dies.

    Args:
        listener: the socket to which clients connect.
        inner: the path of the socket on which libzmq listens.

    Raises:
        ServiceError: the gate does not start.
    """

    def __init__(
        self, listener: socket.socket, inner: Path, max_connections: int, limits: GateLimits
    ) -> None:
        self._listener = listener
        self._arguments = {
            "listener": listener.fileno(),
            "inner": str(inner),
            "max_connections": max_connections,
            "limits": asdict(limits),
        }
        self._next_start = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._start()
        if not select.select([self._link], [], [], _START_SECONDS)[0] or not self._link.recv(1):
            self.close()
            raise ServiceError("the gate of the data socket does not start.")

    def look(self) -> None:
        """Log the gate's lines, and replace it if it has died; cheap, so to be called often."""
        if self._process is not None:
            self._listen()
        if self._process is None and time.monotonic() >= self._next_start:
            self._start()

    def close(self) -> None:
        """Have the gate end once the clients have received what was sent to them."""
        if self._process is None:
            return
        self._link.close()
        try:
            self._process.wait(2 * _DRAIN_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _start(self) -> None:
        self._next_start = time.monotonic() + _RESTART_SECONDS
        self._link, theirs = socket.socketpair()
        self._link.setblocking(False)
        with theirs:
            arguments = json.dumps({**self._arguments, "link": theirs.fileno()})
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "srstream.daemon.frames.gate", arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=[self._listener.fileno(), theirs.fileno()],
            )

    def _listen(self) -> None:
        try:
            said = self._link.recv(_MAX_SAID_BYTES)
        except BlockingIOError:
            return
        if said:
            if text := said.decode(errors="replace").strip():
                logger.warning("%s", text)
            return
        assert self._process is not None
        self._link.close()
        self._process.kill()
        logger.error("the gate of the data socket died (%d)", self._process.wait())
        self._process = None


async def _serve(link: socket.socket, gate: Gate) -> None:
    """Serve until the other process closes the link or dies."""
    gate.start()
    link.setblocking(False)
    link.send(b"\n")
    with suppress(OSError):
        await asyncio.get_running_loop().sock_recv(link, 1)
    gate.stop()
    end = time.monotonic() + _DRAIN_SECONDS
    while gate.num_connections and time.monotonic() < end:
        await asyncio.sleep(0.01)
    gate.close()


class _Teller(logging.Handler):
    """Sends log lines to the other process; lines that find no room are lost."""

    def __init__(self, link: socket.socket) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            self._link.send(record.getMessage().encode() + b"\n")


def main() -> None:
    """Entry point of the process."""
    told = json.loads(sys.argv[1])
    link = socket.socket(fileno=told["link"])
    logging.basicConfig(handlers=[_Teller(link)], level=logging.INFO)
    listener = socket.socket(fileno=told["listener"])
    limits = GateLimits(**told["limits"])
    gate = Gate(listener, Path(told["inner"]), told["max_connections"], limits)
    # The other process decides when to stop; signals may reach the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(_serve(link, gate))


if __name__ == "__main__":
    main()
