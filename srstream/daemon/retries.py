"""Decides what becomes of a job that failed, crashed or was stopped; without side effects."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from srstream.daemon.queue import QueuedJob
from srstream.daemon.settings import JobSettings
from srstream.errors import (
    DiskFullError,
    EngineError,
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

MAX_SPACE_SECONDS = 15.0
"""Longest pause between two looks at whether a full disk has space again."""

MAY_PASS = (EngineError, JobError)
"""Errors worth another attempt; all others are the fault of the request or of the file."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A job's next state, the columns that change with it, and what its event says besides."""

    state: JobState
    columns: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


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
    if crashes > 1:
        columns["retry_at"] = time.time() + _pause_seconds(crashes - 1, settings)
    return Verdict("queued", columns, {"reason": "the engine worker died"})


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
    failures = job.failures + 1
    if issubclass(kind, DiskFullError | NoSpaceError):
        # A job that waits for space loses nothing, however long it takes.
        later = _later(failures, text, settings, MAX_SPACE_SECONDS)
        return Verdict("queued", {**later, "attempts": max(0, job.attempts - 1)})
    if issubclass(kind, HostileInputError):
        return Verdict("quarantined", {"error": text})
    if not issubclass(kind, MAY_PASS) or issubclass(kind, MediaError):
        return Verdict("failed", {"error": text})
    if failures >= MAX_FAILURES:
        return Verdict("quarantined", {"error": text, "failures": failures})
    if job.attempts >= settings.max_attempts:
        return Verdict("failed", {"error": text})
    return Verdict("queued", _later(failures, text, settings))


def _wanted(job: QueuedJob) -> Verdict | None:
    """The verdict that a client asked for while the job ran; None if there is none."""
    if job.wanted == "cancel":
        return Verdict("cancelled", {"wanted": None})
    if job.wanted == "pause":
        attempts = max(0, job.attempts - 1)
        return Verdict("paused", {"wanted": None, "attempts": attempts})
    return None


def _later(
    failures: int, text: str, settings: JobSettings, longest_seconds: float = math.inf
) -> dict[str, Any]:
    pause = min(_pause_seconds(failures, settings), longest_seconds)
    return {"failures": failures, "error": text, "retry_at": time.time() + pause}


def _pause_seconds(times: int, settings: JobSettings) -> float:
    """The pause before an attempt; it doubles with each failure."""
    return min(settings.retry_seconds * 2 ** min(times - 1, 20), settings.max_retry_seconds)
