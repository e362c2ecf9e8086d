"""What becomes of a job that failed, crashed or was stopped. Pure decisions, no side effects."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from srstream.errors import (
    DiskFullError,
    EngineError,
    HostileInputError,
    JobError,
    MediaError,
    NoSpaceError,
    SrstreamError,
)
from srstream.service.jobs import Job
from srstream.service.protocol import JobState
from srstream.service.settings import JobSettings

MAX_FAILURES = 3
"""At the same segment, before a job is put aside."""

MAX_SPACE_SECONDS = 15.0
"""Longest pause before it is seen whether a full disk has space again."""

MAY_PASS = (EngineError, JobError)
"""What is worth another attempt; everything else is the request's or the file's own fault."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state a job goes to, what is told of it, and the columns that change with it."""

    state: JobState
    columns: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


def is_suspect(job: Job) -> bool:
    """Whether a job is to run alone, because workers died under it twice at the same segment."""
    return job.crashes >= MAX_FAILURES - 1


def after_crash(job: Job) -> Verdict:
    """Its worker died. Who was to blame is known only of a job that ran alone."""
    wanted = _wanted(job)
    if wanted is not None:
        return wanted
    if is_suspect(job):
        error = (
            f"{job.input}: the engine worker died three times at segment {job.num_segments_done}, "
            "the last time with this job alone. It is put aside; `srstream resume` tries again."
        )
        return Verdict("quarantined", {"error": error})
    return Verdict(
        "queued",
        {"crashes": job.crashes + 1, "attempts": max(0, job.attempts - 1)},
        {"reason": "the engine worker died"},
    )


def after_stop(job: Job, reason: str = "stopped") -> Verdict:
    """It ended because it was told to: what it was told for is what was wanted of it."""
    return _wanted(job) or Verdict(
        "queued", {"attempts": max(0, job.attempts - 1)}, {"reason": reason}
    )


def after_failure(job: Job, kind: type[SrstreamError], text: str, settings: JobSettings) -> Verdict:
    """It failed, with an error of this kind."""
    wanted = _wanted(job)
    if wanted is not None and wanted.state == "cancelled":
        return wanted
    failures = job.failures + 1
    if issubclass(kind, DiskFullError | NoSpaceError):
        # Whoever waits for space loses nothing, however long it takes.
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


def _wanted(job: Job) -> Verdict | None:
    """What a client has asked for meanwhile."""
    if job.wanted == "cancel":
        return Verdict("cancelled", {"wanted": None})
    if job.wanted == "pause":
        attempts = max(0, job.attempts - 1)
        return Verdict("paused", {"wanted": None, "attempts": attempts})
    return None


def _later(
    failures: int, text: str, settings: JobSettings, longest_seconds: float = math.inf
) -> dict[str, Any]:
    """Doubled from failure to failure."""
    pause = settings.retry_seconds * 2 ** min(failures - 1, 20)
    pause = min(pause, settings.max_retry_seconds, longest_seconds)
    return {"failures": failures, "error": text, "retry_at": time.time() + pause}
