"""Decides what becomes of a job that failed, crashed or was stopped; without side effects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from srstream.daemon.settings import JobSettings
from srstream.daemon.storage.rows import QueuedJob
from srstream.errors import (
    DiskFullError,
    EngineError,
    FolderGoneError,
    HostileInputError,
    JobError,
    MediaError,
    NoSpaceError,
    SrstreamError,
)
from srstream.protocol.control import JobState

MAX_FAILURES = 3
"""Failures at the same segment after which a job is put aside."""

CRASHES_IN_COMPANY = 2
"""Worker deaths at the same segment after which a job runs alone."""

SPACE_SECONDS = 60.0
"""Pause before a job that lacks disk space is tried again, unless space is given back earlier."""

FOLDER_SECONDS = 15.0
"""Pause before a job whose folder is not there is tried again."""

MAY_PASS = (EngineError, JobError)
"""Errors worth another attempt; all others are the fault of the request or of the file."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A job's next state, the columns that change with it, and what its event says besides."""

    state: JobState
    columns: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    pause_seconds: float | None = None
    """The pause before the next attempt; None: there need not be one."""


def is_suspect(job: QueuedJob) -> bool:
    """Return whether a job must run alone, because its worker died twice at the same segment."""
    return job.crashes >= CRASHES_IN_COMPANY


def after_crash(job: QueuedJob, settings: JobSettings) -> Verdict:
    """Decide after the death of a job's worker. Only a job that ran alone is known to be the cause.

    From the second death on, other jobs go first for a while, so that a worker that was killed from
    outside, or for lack of memory, does not count against this job.
    """
    wanted = _wanted(job)
    if wanted is not None:
        return wanted
    crashes = job.crashes + 1
    if crashes >= CRASHES_IN_COMPANY + MAX_FAILURES:
        error = (
            f"{job.input}: the engine worker died {crashes} times at segment "
            f"{job.num_segments_done}, {MAX_FAILURES} times of them with this job alone. It is put "
            "aside; `srstream resume` tries again."
        )
        return Verdict("quarantined", {"error": error, "crashes": crashes})
    columns: dict[str, Any] = {"crashes": crashes, "attempts": max(0, job.attempts - 1)}
    pause = _pause_seconds(crashes - 1, settings) if crashes > 1 else None
    return Verdict("queued", columns, {"reason": "the engine worker died"}, pause)


def after_stop(job: QueuedJob, reason: str = "stopped") -> Verdict:
    """Decide after a job ended because it was told to: it is cancelled, paused or queued again."""
    return _wanted(job) or Verdict(
        "queued", {"attempts": max(0, job.attempts - 1)}, {"reason": reason}
    )


def after_failure(
    job: QueuedJob, kind: type[SrstreamError], text: str, settings: JobSettings
) -> Verdict:
    """Decide after a job failed with an error of a given kind."""
    wanted = _wanted(job)
    if wanted is not None and wanted.state == "cancelled":
        return wanted
    if issubclass(kind, DiskFullError | NoSpaceError):
        # A job that waits for space loses nothing, however long it takes.
        columns: dict[str, Any] = {"error": text, "attempts": max(0, job.attempts - 1)}
        return Verdict("queued", columns, pause_seconds=SPACE_SECONDS)
    if issubclass(kind, FolderGoneError):
        # So does one that waits for a folder.
        columns = {"error": text, "attempts": max(0, job.attempts - 1)}
        return Verdict("queued", columns, pause_seconds=FOLDER_SECONDS)
    if issubclass(kind, HostileInputError):
        return Verdict("quarantined", {"error": text})
    if not issubclass(kind, MAY_PASS) or issubclass(kind, MediaError):
        return Verdict("failed", {"error": text})
    columns = {"error": text, "failures": job.failures + 1}
    if columns["failures"] >= MAX_FAILURES:
        return Verdict("quarantined", columns)
    if job.attempts >= settings.max_attempts:
        return Verdict("failed", {"error": text})
    return Verdict("queued", columns, pause_seconds=_pause_seconds(columns["failures"], settings))


def _wanted(job: QueuedJob) -> Verdict | None:
    """The verdict that a client asked for while the job ran; None if there is none."""
    if job.wanted == "cancel":
        return Verdict("cancelled", {"wanted": None})
    if job.wanted == "pause":
        attempts = max(0, job.attempts - 1)
        return Verdict("paused", {"wanted": None, "attempts": attempts})
    return None


def _pause_seconds(times: int, settings: JobSettings) -> float:
    """The pause before an attempt; it doubles with each failure."""
    return min(settings.retry_seconds * 2 ** min(times - 1, 20), settings.max_retry_seconds)
