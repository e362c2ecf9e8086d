"""The rows of the queue as the daemon uses them: jobs and events."""

from __future__ import annotations

import json
import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from srstream.config import JobConfig
from srstream.protocol.control import FINAL_STATES, Event, JobInfo, JobProgress, JobState

EventKind = Literal["state", "segment", "note", "daemon"]


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job on record: one row of the queue."""

    id: str
    state: JobState
    input: Path
    output: Path
    overwrite: bool
    config: JobConfig
    names_model: bool
    """Whether the client named the model; otherwise it is the daemon's default."""
    priority: int
    submitter: str
    created: float
    started: float | None
    ended: float | None
    attempts: int
    failures: int
    """Failures in a row without a new segment."""
    crashes: int
    """How often in a row its worker died while the job was at the same segment."""
    retry_at: float | None
    error: str | None
    num_segments: int | None
    num_segments_done: int
    weights_sha256: str | None
    changes_weights: bool
    """Whether it continues with other weights than those it began with."""
    wanted: Literal["cancel", "pause"] | None
    """What a client asked for while the job ran; it is done once the job's thread has ended."""
    result: dict[str, Any] | None

    @property
    def is_final(self) -> bool:
        return self.state in FINAL_STATES

    def info(self, progress: JobProgress | None = None) -> JobInfo:
        """The job as clients see it."""
        return JobInfo(
            id=self.id,
            state=self.state,
            input=str(self.input),
            output=str(self.output),
            priority=self.priority,
            submitter=self.submitter,
            created=self.created,
            started=self.started,
            ended=self.ended,
            attempts=self.attempts,
            retry_at=self.retry_at,
            error=self.error,
            num_segments=self.num_segments,
            num_segments_done=self.num_segments_done,
            progress=progress if self.state == "running" else None,
            model=self.config.model.name,
            weights_sha256=self.weights_sha256,
            result=self.result,
        )


def new_job_id(now: float, newest: str) -> str:
    """A new id: 11 hexadecimal digits of milliseconds, then 8 random ones.

    It sorts behind the newest id that there is, also after the wall clock was set back.
    """
    milliseconds = int(now * 1000)
    if newest:
        milliseconds = max(milliseconds, int(newest[:11], 16) + 1)
    return f"{milliseconds:011x}{secrets.token_hex(4)}"


def job_of(row: sqlite3.Row) -> QueuedJob:
    """The job that a row of the queue describes."""
    values = {name: row[name] for name in row.keys() if name not in ("key", "checksum")}  # noqa: SIM118
    return QueuedJob(
        **{
            **values,
            "input": Path(row["input"]),
            "output": Path(row["output"]),
            "overwrite": bool(row["overwrite"]),
            "names_model": bool(row["names_model"]),
            "changes_weights": bool(row["changes_weights"]),
            "config": JobConfig.model_validate_json(row["config"]),
            "result": None if row["result"] is None else json.loads(row["result"]),
        }
    )


def event_of(row: sqlite3.Row) -> Event:
    """The event that a row of the queue describes."""
    return Event(
        seq=row["seq"],
        time=row["time"],
        job=row["job"],
        kind=row["kind"],
        data=json.loads(row["data"]),
    )
