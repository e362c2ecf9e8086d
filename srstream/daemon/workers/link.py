"""The messages between supervisor and engine worker, JSON lines over a pair of sockets.

The pair is made before the worker starts and has no name, so no other process can use it.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from srstream.config import JobConfig
from srstream.daemon.settings import LogSettings, SecuritySettings, SocketSettings
from srstream.protocol.control import JobProgress

MAX_LINE_BYTES = 16 << 20


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def line(self) -> bytes:
        """The message as it is sent."""
        return self.model_dump_json(exclude_computed_fields=True).encode() + b"\n"


class Setup(_Line):
    """The first line that a worker receives."""

    name: str
    device: str
    parent_pid: int
    security: SecuritySettings
    sockets: SocketSettings
    defaults: JobConfig
    max_frame_sessions: int
    """0: this worker serves no frames."""
    keys_dir: Path | None = None
    """Folder of the keys of clients that may push frames over TCP."""
    logs: LogSettings


class JobOrder(_Line):
    """One job, as the supervisor orders it."""

    id: str
    input: Path
    output: Path
    overwrite: bool
    config: JobConfig
    priority: int
    directory: Path
    """The folder of its unfinished work."""
    may_change_weights: bool = False


class Start(_Line):
    """Do a job."""

    do: Literal["start"] = "start"
    order: JobOrder


class Stop(_Line):
    """End a job: at the end of its segment, or `now`, within a second."""

    do: Literal["stop"] = "stop"
    job: str
    now: bool


class Weigh(_Line):
    """Give a job the share of the engine that a priority stands for."""

    do: Literal["weigh"] = "weigh"
    job: str
    priority: int


class Configure(_Line):
    """Apply reloaded settings: the log's at once, the others to jobs that start later."""

    do: Literal["configure"] = "configure"
    security: SecuritySettings
    logs: LogSettings


class Exit(_Line):
    """End the worker."""

    do: Literal["exit"] = "exit"


Command = Start | Stop | Weigh | Configure | Exit
COMMAND: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="do")])


class Ready(_Line):
    """The engine is warmed up."""

    say: Literal["ready"] = "ready"
    engine: str
    reason: str


class Counts(_Line):
    """What a worker has done since it started."""

    frames: dict[str, int] = {}
    """Frames enhanced, by model."""
    pixels: int = 0
    """Input pixels to enlarge; `pixels_computed` counts those that a network computed."""
    pixels_computed: int = 0
    stage_seconds: dict[str, float] = {}
    frame_sessions: int = 0


class Beat(_Line):
    """The sign of life, twice a second. `advance`, by job, grows with every sign of progress."""

    say: Literal["beat"] = "beat"
    advance: dict[str, int]
    progress: dict[str, JobProgress]
    counts: Counts


class Happened(_Line):
    """An event of a job, as `srstream.jobs.events` defines it."""

    say: Literal["event"] = "event"
    job: str
    event: dict[str, Any]


class Pinned(_Line):
    """The weights that a job uses."""

    say: Literal["pinned"] = "pinned"
    job: str
    weights_sha256: str


class Ended(_Line):
    """A job's thread has ended. After a failure, `kind` is the class of the srstream error.

    Without a `job`, the worker itself cannot start.
    """

    say: Literal["ended"] = "ended"
    job: str
    outcome: Literal["done", "stopped", "failed"]
    kind: str = ""
    text: str = ""
    result: dict[str, Any] | None = None


WorkerMessage = Ready | Beat | Happened | Pinned | Ended
MESSAGE: TypeAdapter[WorkerMessage] = TypeAdapter(
    Annotated[WorkerMessage, Field(discriminator="say")]
)


class Link:
    """The worker's end: one thread reads lines, any thread may send messages."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._pending = b""

    def send(self, message: WorkerMessage) -> None:
        with self._lock:
            self._connection.sendall(message.line())

    def lines(self, timeout_seconds: float) -> Iterator[bytes]:
        """The lines that have arrived, after waiting for `timeout_seconds` at most.

        Raises:
            EOFError: the supervisor has ended.
        """
        if not select.select([self._connection], [], [], timeout_seconds)[0]:
            return
        chunk = self._connection.recv(1 << 20)
        if not chunk:
            raise EOFError
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        if len(self._pending) > MAX_LINE_BYTES:
            raise EOFError
        yield from lines

    def first_line(self) -> bytes:
        """Waits for the first line."""
        for _ in range(600):
            for line in self.lines(0.1):
                return line
        raise EOFError
