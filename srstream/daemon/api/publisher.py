"""Passes the queue's events, and the progress of jobs, on to whoever listens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from srstream.daemon.metrics import Metrics
from srstream.daemon.queue import JobQueue
from srstream.daemon.workers.process import RunningOrder
from srstream.protocol.control import FINAL_STATES, Event, JobProgress

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 1.0


class Publisher:
    """Calls its listeners with each event after it is recorded, and with progress, which is not."""

    def __init__(self, queue: JobQueue, metrics: Metrics) -> None:
        self._queue, self._metrics = queue, metrics
        self._listeners: list[Callable[[Event], None]] = []
        self._reported: dict[str, tuple[float, JobProgress]] = {}
        """When the progress of each job was last published, and what it was."""

    def subscribe(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` from now on."""
        self._listeners.append(listener)

    def publish(self, event: Event | None) -> None:
        """Pass on an event that the queue has recorded."""
        if event is None:
            return
        told = {"job": event.job, "seq": event.seq, "kind": event.kind, "data": event.data}
        logger.debug("event", extra=told)
        if event.kind == "state" and event.data["state"] in FINAL_STATES and event.job:
            job = self._queue.get(event.job)
            if job.started is not None and job.ended is not None:
                self._metrics.job_ended(job.state, job.ended - job.started)
        self._tell(event)

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
