"""The messages of the control socket, version 1, as plain data.

A message is one part of UTF-8 JSON. A client (DEALER or REQ) sends a request and gets one reply
with the same `id`; a watch also gets events, which have no `id`. docs/protocol.md has the details.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from srstream.errors import UsageError

PROTOCOL_VERSION: Literal[1] = 1

MAX_MESSAGE_BYTES = 64 << 10
"""Largest size of a request; a reply may be longer."""

MIN_PRIORITY, MAX_PRIORITY = -10, 10

JobState = Literal["queued", "running", "paused", "done", "failed", "quarantined", "cancelled"]
"""A job that waits for another attempt is `queued`. One that failed three times at one segment,
whose worker died there five times, or whose input is hostile is `quarantined`."""

FINAL_STATES: tuple[JobState, ...] = ("done", "failed", "quarantined", "cancelled")

JobId = Annotated[str, Field(pattern=r"^[0-9a-z]{8,40}$", description="id that `submit` returned")]
PathText = Annotated[
    str, Field(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$", description="absolute path")
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Priority = Annotated[
    int,
    Field(
        ge=MIN_PRIORITY,
        le=MAX_PRIORITY,
        description="higher ones start first; each step gives a running job 1.5 times the share",
    ),
]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Request(_Message):
    version: Literal[1] = PROTOCOL_VERSION
    id: str = Field("", max_length=64, description="returned in the reply")


class Submit(_Request):
    """Enhance a file. Submitting again with the same `key` returns the first job."""

    op: Literal["submit"] = "submit"
    input: PathText
    output: PathText | None = Field(
        None, description="None: INPUT_4x, in a folder that the daemon's configuration names"
    )
    config: dict[str, dict[str, Any] | bool] = Field(
        default_factory=dict,
        max_length=16,
        description="differences from the daemon's defaults, in the sections of `JobConfig`",
    )
    overwrite: bool = False
    priority: Priority = 0
    key: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="makes it harmless to repeat a submit; refused with another input",
    )


class Status(_Request):
    """Ask for one job."""

    op: Literal["status"] = "status"
    job: JobId


class List(_Request):
    """Ask for a page of jobs, newest first.

    The result has `jobs` and `next`, which is `before` for the next page; null: there is none. A
    page is at most a mebibyte, so it may have fewer jobs than `limit`.
    """

    op: Literal["list"] = "list"
    states: tuple[JobState, ...] = Field((), max_length=7, description="none: all")
    limit: int = Field(100, ge=1, le=1000)
    before: JobId | None = Field(None, description="only jobs older than this one: the next page")


class Cancel(_Request):
    """End a job for good; its unfinished work is deleted."""

    op: Literal["cancel"] = "cancel"
    job: JobId


class Pause(_Request):
    """Stop a job at the end of the segment under way; nothing is lost."""

    op: Literal["pause"] = "pause"
    job: JobId


class Resume(_Request):
    """Let a paused job continue; try a failed or quarantined one again."""

    op: Literal["resume"] = "resume"
    job: JobId


class SetPriority(_Request):
    """Change a job's priority, at once."""

    op: Literal["priority"] = "priority"
    job: JobId
    priority: Priority


class Watch(_Request):
    """Subscribe to events after `after`, up to `credit` of them; a renewed watch sends more.

    A connection has one watch; a new one replaces it. It ends after `WATCH_SECONDS` unless renewed.
    """

    op: Literal["watch"] = "watch"
    after: int = Field(
        -1, ge=-1, description="sequence number of the last event seen; -1: from now"
    )
    job: JobId | None = Field(None, description="only events of this job")
    credit: int = Field(1000, ge=0, le=10_000, description="0 ends the watch")


WATCH_SECONDS = 120
"""How long a watch lasts unless renewed."""


class ModelsList(_Request):
    """Ask for every model that a job may name, and for the default."""

    op: Literal["models.list"] = "models.list"


class ModelsAdd(_Request):
    """Register weights, a .safetensors file beneath a read root, under a name."""

    op: Literal["models.add"] = "models.add"
    weights: PathText
    name: Name | None = None
    replace: bool = False


class ModelsUse(_Request):
    """Make a model the default of jobs that name none.

    Jobs that have begun end with the weights that they began with. With `running`, those that run
    with the former default change to it at the end of their segments.
    """

    op: Literal["models.use"] = "models.use"
    name: Name
    running: bool = False


class ModelsRemove(_Request):
    """Remove a registered model and delete its files.

    It is refused while the model is a default, or an unfinished job uses it.
    """

    op: Literal["models.remove"] = "models.remove"
    name: Name


class Reload(_Request):
    """Read the configuration again; an invalid one is refused and the old one kept."""

    op: Literal["reload"] = "reload"


class Health(_Request):
    """Ask for the daemon's condition."""

    op: Literal["health"] = "health"


Request = Annotated[
    Submit
    | Status
    | List
    | Cancel
    | Pause
    | Resume
    | SetPriority
    | Watch
    | ModelsList
    | ModelsAdd
    | ModelsUse
    | ModelsRemove
    | Reload
    | Health,
    Field(discriminator="op"),
]
_REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


class JobProgress(_Message):
    """The progress of a running job."""

    stage: str
    done: int
    total: int | None = None
    fps: float | None = None


class JobInfo(_Message):
    """A job as clients see it. Times are seconds since 1970."""

    id: str
    state: JobState
    input: str
    output: str
    priority: int
    submitter: str
    created: float
    started: float | None = None
    ended: float | None = None
    attempts: int = 0
    retry_at: float | None = None
    error: str | None = Field(None, description="why it failed, or why it is tried again")
    num_segments: int | None = None
    num_segments_done: int = 0
    progress: JobProgress | None = None
    model: str | None = None
    weights_sha256: str | None = None
    result: dict[str, Any] | None = Field(
        None, description="result of a job that is done: output, frames, exit code, receipt"
    )


class Event(_Message):
    """Something that happened to a job, or (`job` None) to the daemon.

    `seq` counts from 1, without gaps, over all jobs. Events of kind `progress` are not recorded:
    they carry the `seq` of the last recorded event, and are not sent again.
    """

    seq: int
    time: float
    job: str | None
    kind: Literal["state", "segment", "note", "progress", "daemon"]
    data: dict[str, Any]


class WorkerInfo(_Message):
    """One engine worker."""

    name: str
    device: str
    pid: int | None
    state: Literal["starting", "ready", "draining", "dead"]
    num_jobs: int
    num_restarts: int


class HealthInfo(_Message):
    """The daemon's condition; `srstream health` makes its exit code from `ok`."""

    ok: bool
    version: str
    uptime_seconds: float
    num_queued: int
    num_running: int
    num_paused: int
    workers: tuple[WorkerInfo, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = Field(
        (), description="what happened to the daemon's folders and files and is over, and when"
    )


class ErrorInfo(_Message):
    """An error: `kind` is its class in srstream, or `ProtocolError`; `text` is a sentence."""

    kind: str
    text: str


class Reply(BaseModel):
    """The answer to one request. Exactly one of `result` and `error` is set."""

    model_config = ConfigDict(frozen=True)  # a newer daemon may send more fields

    version: int = PROTOCOL_VERSION
    id: str = ""
    ok: bool
    result: dict[str, Any] | None = None
    error: ErrorInfo | None = None


class EventMessage(BaseModel):
    """The message that carries an event to a watch."""

    model_config = ConfigDict(frozen=True)

    version: int = PROTOCOL_VERSION
    event: Event


def parse_request(payload: bytes) -> Request:
    """Parse and check a request.

    Raises:
        UsageError: it is no valid request of this version.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise UsageError(
            f"a request of {len(payload)} bytes; at most {MAX_MESSAGE_BYTES} are read."
        )
    try:
        return _REQUEST.validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "request"
        raise UsageError(f"{where}: {first['msg'].lower()}.") from None
