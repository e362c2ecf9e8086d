"""Decides which job runs on which worker, and records what the workers report."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from srstream.daemon import retries
from srstream.daemon.metrics import Metrics
from srstream.daemon.queue import JobQueue, QueuedJob
from srstream.daemon.reload import Configuration
from srstream.daemon.settings import with_model
from srstream.daemon.workers.link import (
    Beat,
    Configure,
    Ended,
    Happened,
    JobOrder,
    Pinned,
    Ready,
    Setup,
    Stop,
    Weigh,
    WorkerMessage,
)
from srstream.daemon.workers.process import EngineProcess
from srstream.errors import DiskFullError, EngineError, StalledError, error_named
from srstream.protocol.control import FINAL_STATES, Event, HealthInfo, JobInfo, JobProgress

logger = logging.getLogger(__name__)

_DEFAULT_MODEL = "default_model"
_PROGRESS_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_STOP_SECONDS, _LEAVE_SECONDS = 5.0, 6.0
_POLL_SECONDS = 0.1
_ALL = 1_000_000
_T = TypeVar("_T")


class Scheduler:
    """Gives the queue's jobs to the workers, and records what becomes of them.

    All calls belong to the event loop.

    Args:
        keys_dir: folder of the keys of clients that may push frames over TCP; None: no client may.
        give_up: is called when a worker dies again and again, so that the daemon ends.
    """

    def __init__(
        self,
        configuration: Configuration,
        queue: JobQueue,
        metrics: Metrics,
        keys_dir: Path | None,
        give_up: Callable[[], None],
    ) -> None:
        self._configuration, self.queue, self._metrics = configuration, queue, metrics
        self._keys_dir, self._give_up = keys_dir, give_up
        self.changed = asyncio.Event()
        """Set when a job may be able to start."""
        self.is_stopping = False
        """Set by the supervisor: no job starts, and none goes back into the queue."""
        self._started_at = time.time()
        self._listeners: list[Callable[[Event], None]] = []
        self._reported: dict[str, tuple[float, JobProgress]] = {}
        """When the progress of each job was last published, and what it was."""
        self._problem: str | None = None
        """Why the queue cannot be written at present."""
        devices = configuration.settings.workers.devices
        self.workers = [
            EngineProcess(f"engine-{n}", device, self._setup, self._heard, self._lost)
            for n, device in enumerate(devices)
        ]

    def subscribe(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with each event after it is recorded, and with progress, which is not."""
        self._listeners.append(listener)

    def recover(self) -> None:
        """Queue the jobs that ran when the daemon ended; delete the work that no job owns."""
        for job in self.queue.jobs(("running",), limit=_ALL):
            verdict = retries.after_stop(job, "the daemon was started anew")
            self.queue.change(job.id, verdict.state, verdict.data, **verdict.columns)
        kept = {job.id for job in self.queue.jobs(("queued", "paused"), limit=_ALL)}
        for directory in self._configuration.work_dir.glob("*"):
            if directory.name not in kept:
                shutil.rmtree(directory, ignore_errors=True)

    # --- giving jobs to workers --------------------------------------------------------------

    def schedule(self) -> None:
        """Give waiting jobs to workers that have room, the most urgent first.

        A full disk is a problem that `health` shows until the queue can be written again.
        """
        if self.is_stopping:
            return
        try:
            if self._problem is not None:
                self.queue.remember("probed", str(time.time()))
                self._problem = None
                logger.info("the queue can be written again")
            limit = self._configuration.settings.jobs.max_running * len(self.workers)
            for job in self.queue.next_jobs(limit):
                worker = self._worker_for(job)
                if worker is None:
                    # No job overtakes a suspect that waits to be alone, or it would wait forever.
                    return
                self._start(job, worker)
        except DiskFullError as error:
            self._note_full_disk(error)

    def forget_old(self) -> None:
        """Delete jobs that ended too long ago, and the oldest events, from the queue."""
        try:
            self.queue.forget_old(self._configuration.settings.jobs.keep_days)
        except DiskFullError as error:
            self._note_full_disk(error)

    def _worker_for(self, job: QueuedJob) -> EngineProcess | None:
        """The least busy worker that may take a job; a suspect must run alone."""
        ready = [worker for worker in self.workers if worker.is_ready]
        if retries.is_suspect(job):
            return next((worker for worker in ready if not worker.running), None)
        free = [
            worker
            for worker in ready
            if len(worker.running) < self._configuration.settings.jobs.max_running
            and not any(retries.is_suspect(self.queue.get(other)) for other in worker.running)
        ]
        return min(free, key=lambda worker: len(worker.running), default=None)

    def _start(self, job: QueuedJob, worker: EngineProcess) -> None:
        config = job.config
        if job.started is None and not job.names_model:
            config = with_model(config, self.default_model)
        event = self.queue.change(
            job.id,
            "running",
            {"worker": worker.name},
            started=job.started or time.time(),
            attempts=job.attempts + 1,
            retry_at=None,
            config=config.model_dump_json(),
        )
        worker.start_job(
            JobOrder(
                id=job.id,
                input=job.input,
                output=job.output,
                overwrite=job.overwrite,
                config=config,
                priority=job.priority,
                directory=self._configuration.work_dir / job.id,
                may_change_weights=job.changes_weights,
            )
        )
        self._publish(event)
        if job.started is None:
            self._metrics.job_started(time.time() - job.created)
        told = {"job": job.id, "segment": job.num_segments_done, "worker": worker.name}
        logger.info("job started", extra=told)

    def _setup(self, name: str, device: str) -> Setup:
        settings = self._configuration.settings
        is_first = name == "engine-0"
        return Setup(
            name=name,
            device=device,
            security=self._configuration.security,
            sockets=settings.sockets,
            defaults=with_model(settings.defaults, self.default_model),
            max_frame_sessions=settings.jobs.max_frame_sessions if is_first else 0,
            keys_dir=self._keys_dir,
            logs=settings.logs,
        )

    # --- looking after workers ---------------------------------------------------------------

    def check_workers(self) -> bool:
        """Replace workers that hang; returns whether none does."""
        settings, is_advancing = self._configuration.settings.workers, True
        for worker in self.workers:
            why = worker.stall(settings.stall_seconds, settings.heartbeat_seconds)
            if why is not None:
                is_advancing = False
                told = {"worker": worker.name, "jobs": list(worker.running)}
                logger.error("engine worker %s; it is replaced", why, extra=told)
                worker.kill()
            if worker.num_deaths_in_a_row > settings.max_restarts:
                logger.error(
                    "engine worker %s died %d times in a row%s; the daemon ends",
                    worker.name,
                    worker.num_deaths_in_a_row,
                    f" ({worker.fault})" if worker.fault else "",
                )
                self._give_up()
        return is_advancing

    def configure_workers(self) -> None:
        """Send the configuration in force to the workers."""
        configure = Configure(
            security=self._configuration.security, logs=self._configuration.settings.logs
        )
        for worker in self.workers:
            worker.send(configure)

    async def drain(self, seconds: float, tell: Callable[[int], None]) -> None:
        """Let segments end within `seconds`, then stop all jobs and end the workers.

        Args:
            tell: is called ten times a second with the number of jobs that still run.
        """
        deadline = time.monotonic() + seconds
        self._stop_jobs(now=False)
        while self._num_running() and time.monotonic() < deadline:
            tell(self._num_running())
            await asyncio.sleep(_POLL_SECONDS)
        self._stop_jobs(now=True)
        await _until(lambda: not self._num_running(), _STOP_SECONDS)
        for worker in self.workers:
            worker.leave()
        # The workers tell clients of the data socket that the daemon ends.
        await _until(lambda: all(worker.pid is None for worker in self.workers), _LEAVE_SECONDS)
        for worker in self.workers:
            worker.kill()

    def _stop_jobs(self, *, now: bool) -> None:
        for worker in self.workers:
            for job in worker.running:
                worker.send(Stop(job=job, now=now))

    def _num_running(self) -> int:
        return sum(len(worker.running) for worker in self.workers)

    # --- what workers report -----------------------------------------------------------------

    async def _heard(self, worker: EngineProcess, message: WorkerMessage) -> None:
        if isinstance(message, Ready):
            told = {"worker": worker.name, "device": worker.device}
            logger.info("engine %s is ready: %s", message.engine, message.reason, extra=told)
            self.changed.set()
        elif isinstance(message, Beat):
            self._metrics.count(worker.name, message.counts)
            self._publish_progress(worker)
        elif isinstance(message, Happened):
            await self._stored(lambda: self._note_event(message))
        elif isinstance(message, Pinned):
            await self._stored(
                lambda: self.queue.update(message.job, weights_sha256=message.weights_sha256)
            )
        else:
            await self._heard_end(worker, message)

    async def _heard_end(self, worker: EngineProcess, ended: Ended) -> None:
        told = {"worker": worker.name, "device": worker.device}
        if not ended.job:
            worker.fault = ended.text
            self._metrics.error("worker", ended.kind)
            logger.error("engine worker cannot start: %s", ended.text, extra=told)
        elif ended.kind == StalledError.__name__:
            # A hanging call stays in its process; the job continues in a new one.
            told = {"worker": worker.name, "job": ended.job}
            logger.error("%s The engine worker is replaced.", ended.text, extra=told)
            self._metrics.error("job", ended.kind)
            note = {"event": "note", "text": ended.text}
            await self._stored(lambda: self._publish(self.queue.tell(ended.job, "note", note)))
            worker.kill()
        else:
            await self._stored(lambda: self._end(ended))
            worker.running.pop(ended.job, None)
            self._reported.pop(ended.job, None)
            self.changed.set()

    async def _lost(self, worker: EngineProcess, orders: list[JobOrder]) -> None:
        """Queue the jobs of a worker that died, to continue at their segments, or put one aside."""
        if not worker.is_leaving:
            self._metrics.worker_lost(worker.name)
        for order in orders:
            if not self.is_stopping:
                await self._stored(lambda order=order: self._requeue(order.id))  # type: ignore[misc]
        self.changed.set()

    def _requeue(self, job_id: str) -> None:
        job = self.queue.get(job_id)
        verdict = retries.after_crash(job, self._configuration.settings.jobs)
        self._publish(self.queue.change(job_id, verdict.state, verdict.data, **verdict.columns))

    def _note_event(self, message: Happened) -> None:
        job_id, content = message.job, message.event
        kind = content["event"]
        if kind == "segment":
            num_done = content["number"] + 1
            self._publish(self.queue.segment_done(job_id, num_done, content["num_segments"]))
        elif kind in ("note", "started"):
            keep = {key: value for key, value in content.items() if key != "schema_version"}
            self._publish(self.queue.tell(job_id, "note", keep))

    def _end(self, ended: Ended) -> None:
        """Decide what becomes of a job whose thread has ended."""
        job = self.queue.get(ended.job)
        if ended.outcome == "done":
            event = self.queue.change(job.id, "done", result=ended.result, error=None)
            logger.info("job done", extra={"job": job.id, "output": str(job.output)})
        elif ended.outcome == "stopped":
            verdict = retries.after_stop(job)
            event = self.queue.change(job.id, verdict.state, verdict.data, **verdict.columns)
        else:
            kind = error_named(ended.kind) or EngineError
            settings = self._configuration.settings.jobs
            verdict = retries.after_failure(job, kind, ended.text, settings)
            event = self.queue.change(job.id, verdict.state, verdict.data, **verdict.columns)
            self._metrics.error("job", ended.kind)
            told = {"job": job.id, "segment": job.num_segments_done, "state": verdict.state}
            logger.warning("%s", ended.text, extra=told)
        self._publish(event)
        if self.queue.get(job.id).is_final:
            self.forget_work(job.id)

    async def _stored(self, work: Callable[[], _T]) -> _T:
        """Do something with the queue; while the disk is full, repeat it until it works."""
        while True:
            try:
                return work()
            except DiskFullError as error:
                self._note_full_disk(error)
                await asyncio.sleep(_RETRY_SECONDS)

    def _note_full_disk(self, error: DiskFullError) -> None:
        if self._problem is None:
            logger.error("%s", error)
        self._problem = str(error)

    # --- events ------------------------------------------------------------------------------

    def publish(self, event: Event | None) -> None:
        """Pass on an event that a request has caused, and see whether a job can start."""
        self._publish(event)
        self.changed.set()

    def _publish(self, event: Event | None) -> None:
        if event is None:
            return
        told = {"job": event.job, "seq": event.seq, "kind": event.kind, "data": event.data}
        logger.debug("event", extra=told)
        if event.kind == "state" and event.data["state"] in FINAL_STATES and event.job:
            job = self.queue.get(event.job)
            if job.started is not None and job.ended is not None:
                self._metrics.job_ended(job.state, job.ended - job.started)
        for listener in self._listeners:
            listener(event)

    def _publish_progress(self, worker: EngineProcess) -> None:
        now = time.monotonic()
        for job_id, running in worker.running.items():
            if running.progress is None:
                continue
            reported_at, reported = self._reported.get(job_id, (0.0, None))
            if now - reported_at < _PROGRESS_SECONDS or reported == running.progress:
                continue
            self._reported[job_id] = now, running.progress
            event = Event(
                seq=self.queue.last_seq,
                time=time.time(),
                job=job_id,
                kind="progress",
                data=running.progress.model_dump(),
            )
            self._publish(event)

    # --- what is asked of it -----------------------------------------------------------------

    @property
    def default_model(self) -> str:
        """The model of jobs that name none."""
        defaults = self._configuration.settings.defaults
        return self.queue.setting(_DEFAULT_MODEL) or defaults.model.name

    def use_model(self, name: str) -> None:
        """Make a model the default."""
        self.queue.remember(_DEFAULT_MODEL, name)

    def info(self, job: QueuedJob) -> JobInfo:
        """A job as clients see it."""
        for worker in self.workers:
            if job.id in worker.running:
                return job.info(worker.running[job.id].progress)
        return job.info()

    def stop_job(self, job_id: str, *, now: bool) -> bool:
        """Ask the worker that has a job to end it; False where none has."""
        for worker in self.workers:
            if job_id in worker.running:
                worker.send(Stop(job=job_id, now=now))
                return True
        return False

    def weigh_job(self, job_id: str, priority: int) -> None:
        """Give a running job the share of its engine that a priority stands for."""
        for worker in self.workers:
            if job_id in worker.running:
                worker.send(Weigh(job=job_id, priority=priority))

    def forget_work(self, job_id: str) -> None:
        """Delete the unfinished work of a job that does not run."""
        shutil.rmtree(self._configuration.work_dir / job_id, ignore_errors=True)

    def fps(self) -> float:
        """Frames a second of all running jobs together."""
        running = [order.progress for worker in self.workers for order in worker.running.values()]
        return sum(progress.fps or 0.0 for progress in running if progress is not None)

    def health(self) -> HealthInfo:
        """The daemon's condition."""
        counts = self.queue.counts()
        problems = [] if self._problem is None else [self._problem]
        problems += [
            f"engine worker {worker.name} is not ready{f': {worker.fault}' if worker.fault else ''}"
            for worker in self.workers
            if not worker.is_ready
        ]
        return HealthInfo(
            ok=not problems,
            version=version("srstream"),
            uptime_seconds=time.time() - self._started_at,
            num_queued=counts.get("queued", 0),
            num_running=counts.get("running", 0),
            num_paused=counts.get("paused", 0),
            workers=tuple(worker.info() for worker in self.workers),
            problems=tuple(problems),
        )


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds, for `seconds` at most."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
