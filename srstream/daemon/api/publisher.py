"""Passes the queue's events, and the progress of jobs, on to whoever listens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from srstream.daemon.metrics import Metrics
from srstream.daemon.queue import JobQueue
from srstream.daemon.storage.rows import QueuedJob
from srstream.daemon.workers.process import RunningOrder
from srstream.protocol.control import Event, JobProgress

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 1.0


class Publisher:
    """Calls its listeners with each event after it is recorded, and with progress, which is not."""

    def __init__(self, queue: JobQueue, metrics: Metrics) -> None:
        self._queue, self._metrics = queue, metrics
        self._listeners: list[Callable[[Event], None]] = []
        self._reported: dict[str, tuple[float, JobProgress]] = {}
        """When the progress of each job was last published, and what it was."""
        self._queued_at: dict[str, float] = {}
        self._started_at: dict[str, float] = {}
        """When, by the monotonic clock, jobs were queued and started for the first time."""

    def subscribe(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` from now on."""
        self._listeners.append(listener)

    def publish(self, event: Event | None) -> None:
        """Pass on an event that the queue has recorded."""
        if event is None:
            return
        told = {"job": event.job, "seq": event.seq, "kind": event.kind, "data": event.data}
        logger.debug("event", extra=told)
        if event.kind == "state" and event.job:
            self._measure(self._queue.get(event.job))
        self._tell(event)

    def _measure(self, job: QueuedJob) -> None:
        """Note when a job was queued and started; tell the metrics how long it ran.

        Of jobs from before the daemon's start only the wall clock's times are known.
        """
        now = time.monotonic()
        if job.state == "queued":
            self._queued_at.setdefault(job.id, now)
        elif job.state == "running" and job.id not in self._started_at:
            self._started_at[job.id] = now
        elif job.is_final:
            self._queued_at.pop(job.id, None)
            started_at = self._started_at.pop(job.id, None)
            if started_at is not None:
                self._metrics.job_ended(job.state, now - started_at)
            elif job.started is not None and job.ended is not None:
                self._metrics.job_ended(job.state, job.ended - job.started)

    def first_start(self, job: QueuedJob) -> None:
        """Tell the metrics how long a job waited that starts for the first time."""
        queued_at = self._queued_at.get(job.id)
        waited = time.time() - job.created if queued_at is None else time.monotonic() - queued_at
        self._metrics.job_started(waited)

    def publish_progress(self, running: Mapping[str, RunningOrder]) -> None:
        """Pass on how far jobs are, once a second at most for each."""
        now = time.monotonic()
        for job_id, order in running.items():
            if order.progress is None:
                continue
            reported_at, reported = self._reported.get(job_id, (0.0, None))
            if now - reported_at < _PROGRESS_SECONDS or reported == order.progress:
                continue
            self._reported[job_id] = now, order.progress
            self._tell(
                Event(
                    seq=self._queue.last_seq,
                    time=time.time(),
                    job=job_id,
                    kind="progress",
                    data=order.progress.model_dump(),
                )
            )

    def forget(self, job_id: str) -> None:
        """Forget the progress of a job that runs no more."""
        self._reported.pop(job_id, None)

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)
