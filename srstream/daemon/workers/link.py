"""The messages on the channel between supervisor and engine worker (`sandbox/child.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from srstream.config import JobConfig
from srstream.daemon.settings import LogSettings, SecuritySettings, SocketSettings
from srstream.media.output_checks import OutputTables
from srstream.protocol.control import JobProgress

MAX_MESSAGE_BYTES = 16 << 20


class _LinkMessage(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Setup(_LinkMessage):
    """The order of a worker."""

    name: str
    device: str
    security: SecuritySettings
    mount_points: dict[Path, Path] = {}
    """Where the file systems of the roots are mounted; see `Roots`."""
    sockets: SocketSettings
    defaults: JobConfig
    max_frame_sessions: int
    """0: this worker serves no frames."""
    keys_dir: Path | None = None
    """Folder of the keys of clients that may push frames over TCP."""
    logs: LogSettings


class JobOrder(_LinkMessage):
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


class Start(_LinkMessage):
    """Do a job."""

    do: Literal["start"] = "start"
    order: JobOrder


class Stop(_LinkMessage):
    """End a job: at the end of its segment, or `now`, within a second."""

    do: Literal["stop"] = "stop"
    job: str
    now: bool


class Weigh(_LinkMessage):
    """Give a job the share of the engine that a priority stands for."""

    do: Literal["weigh"] = "weigh"
    job: str
    priority: int


class Configure(_LinkMessage):
    """Apply reloaded settings: the log's at once, the others to jobs that start later."""

    do: Literal["configure"] = "configure"
    security: SecuritySettings
    mount_points: dict[Path, Path]
    logs: LogSettings


class Exit(_LinkMessage):
    """End the worker."""

    do: Literal["exit"] = "exit"


Command = Start | Stop | Weigh | Configure | Exit
COMMAND: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="do")])


class Ready(_LinkMessage):
    """The engine is warmed up."""

    say: Literal["ready"] = "ready"
    engine: str
    reason: str
    tables: OutputTables
    """What outputs can be written here; the supervisor loads no libav to find out."""


class Counts(_LinkMessage):
    """What a worker has done since it started."""

    frames: dict[str, int] = {}
    """Frames enhanced, by model."""
    pixels: int = 0
    """Input pixels to enlarge; `pixels_computed` counts those that a network computed."""
    pixels_computed: int = 0
    stage_seconds: dict[str, float] = {}
    frame_sessions: int = 0


class Beat(_LinkMessage):
    """The sign of life, twice a second. `advance`, by job, grows with every sign of progress."""

    say: Literal["beat"] = "beat"
    advance: dict[str, int]
    progress: dict[str, JobProgress]
    counts: Counts
    problem: str = ""
    """What is wrong although the worker lives; empty: nothing."""


class Happened(_LinkMessage):
    """An event of a job, as `srstream.jobs.events` defines it."""

    say: Literal["event"] = "event"
    job: str
    event: dict[str, Any]


class Pinned(_LinkMessage):
    """The weights that a job uses."""

    say: Literal["pinned"] = "pinned"
    job: str
    weights_sha256: str


class Ended(_LinkMessage):
    """A job's thread has ended. After a failure, `kind` is the class of the srstream error.

    Without a `job`, the worker itself cannot start or go on.
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
