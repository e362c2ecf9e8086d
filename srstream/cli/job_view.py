"""Shows jobs of the daemon to a person: as a line, a table, in full, and while they run."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from srstream.cli.stage_bar import StageBar
from srstream.terminal import count, format_seconds, plain_console

if TYPE_CHECKING:
    from srstream.protocol.control import Event, JobInfo


def sentence(job: JobInfo) -> str:
    """Return a job's state, its output, and why it failed."""
    reason = f": {job.error}" if job.error else ""
    return f"{job.id}: {job.state}, {job.output}{reason}"


def table(found: Iterable[JobInfo]) -> list[str]:
    """Return one line for each job."""
    lines = [f"{'job':<14} {'state':<11} {'prio':>4} {'segments':>9}  input"]
    lines += [
        f"{job.id:<14} {job.state:<11} {job.priority:>4} {_how_far(job):>9}  {job.input}"
        for job in found
    ]
    return lines


def details(job: JobInfo) -> list[str]:
    """Return all that is known of a job, with times of this machine's zone."""
    rows: list[tuple[str, Any]] = [
        ("job", job.id),
        ("state", job.state),
        ("input", job.input),
        ("output", job.output),
        ("priority", job.priority),
        ("submitter", job.submitter),
        ("model", job.model),
        ("weights", job.weights_sha256),
        ("created", _local_time(job.created)),
        ("started", _local_time(job.started)),
        ("ended", _local_time(job.ended)),
        ("took", _duration(job)),
        ("attempts", job.attempts or None),
        ("next attempt", _local_time(job.retry_at)),
        ("segments", _how_far(job) or None),
        ("progress", _progress(job)),
        ("error", job.error),
        *_result_rows(job.result or {}),
    ]
    return [f"{name:<14} {value}" for name, value in rows if value is not None]


def event_line(event: Event) -> str:
    """Return one event in a line."""
    data = " ".join(f"{name}={value}" for name, value in event.data.items())
    return f"{event.seq} {event.job or '-'} {event.kind} {data}"


class JobBar:
    """Shows how far a job is: a bar on a terminal, and otherwise nothing."""

    def __init__(self) -> None:
        self._bar = StageBar(plain_console(stderr=True))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, job: JobInfo) -> None:
        """Show a job's state or progress."""
        progress = job.progress
        if progress is None:
            self._bar.show(job.state, 0, None, "")
            return
        speed = f"{progress.fps:.1f} fps" if progress.fps else ""
        self._bar.show(progress.stage, progress.done, progress.total, speed)


def _how_far(job: JobInfo) -> str:
    """Return how many segments are done, of how many; empty while the number is unknown."""
    if job.num_segments is None:
        return ""
    return f"{job.num_segments_done}/{job.num_segments}"


def _local_time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _duration(job: JobInfo) -> str | None:
    if job.started is None or job.ended is None:
        return None
    return format_seconds(max(job.ended - job.started, 0.0))


def _progress(job: JobInfo) -> str | None:
    progress = job.progress
    if progress is None:
        return None
    speed = f", {progress.fps:.1f} fps" if progress.fps else ""
    return f"{progress.stage}, {progress.done} of {progress.total or '?'}{speed}"


def _result_rows(result: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return what a finished job made, without the whole receipt, which --json has."""
    receipt = result.get("receipt") or {}
    problems = receipt.get("problems") or []
    rows: list[tuple[str, Any]] = []
    if "num_frames" in result:
        rows.append(("frames", result["num_frames"]))
    if result.get("exit_code"):
        rows.append(("exit code", result["exit_code"]))
    if receipt:
        said = "all that the source holds" if receipt.get("ok") else count(len(problems), "problem")
        rows.append(("receipt", said))
        rows += [("", problem) for problem in problems]
    return rows
