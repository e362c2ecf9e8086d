"""Decides which job runs on which worker, and records what the workers report."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from srstream.daemon import retries
from srstream.daemon.api.publisher import Publisher
from srstream.daemon.metrics import Metrics
from srstream.daemon.queue import JobQueue
from srstream.daemon.reload import Configuration
from srstream.daemon.retries import Verdict
from srstream.daemon.settings import with_model
from srstream.daemon.storage.rows import QueuedJob
from srstream.daemon.storage.space import PendingWrites, Shortage
from srstream.daemon.workers.drain import drain, num_running
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
from srstream.errors import (
    DiskFullError,
    EngineError,
    JobError,
    NoSpaceError,
    StalledError,
    error_named,
)
from srstream.installing import own_version
from srstream.protocol.control import Event, HealthInfo, JobInfo

logger = logging.getLogger(__name__)

_DEFAULT_MODEL = "default_model"
_ALL = 1_000_000


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
        self._started_at = time.monotonic()
        # Read once: while pip replaces the package of a daemon that runs, there is none.
        self._version = own_version()
        self._publisher = Publisher(queue, metrics)
        self.subscribe = self._publisher.subscribe
        self._writes = PendingWrites()
        self._shortage = Shortage(configuration.settings.jobs.state_dir)
        devices = configuration.settings.workers.devices
        self.workers = [
            EngineProcess(f"engine-{n}", device, self._setup, self._heard, self._lost)
            for n, device in enumerate(devices)
        ]

    def recover(self) -> None:
        """Queue the jobs that ran when the daemon ended; delete the work that no job owns."""
        for job in self.queue.jobs(("running",), limit=_ALL):
            verdict = retries.after_stop(job, "the daemon was started anew")
            self._apply(job.id, verdict)
        kept = {job.id for job in self.queue.jobs(("queued", "paused"), limit=_ALL)}
        for directory in self._configuration.work_dir.glob("*"):
            if directory.name not in kept:
                shutil.rmtree(directory, ignore_errors=True)

    # --- giving jobs to workers --------------------------------------------------------------

    def schedule(self) -> None:
        """Give waiting jobs to workers that have room, the most urgent first."""
        if self.is_stopping:
            return
        self._look_for_space()
        alone = self._shortage.runs_alone
        settings = self._configuration.settings.jobs
        limit = 1 if alone else settings.max_running * len(self.workers)
        most = settings.max_running_per_client
        try:
            for job in self.queue.next_jobs(limit, begun_first=alone, most_of_client=most):
                worker = self._worker_for(job)
                if worker is None or (alone and self._num_running()):
                    # No job overtakes a suspect that waits to be alone, or it would wait forever.
                    return
                self._start(job, worker)
        except JobError as error:
            self._writes.note(str(error))

    def _look_for_space(self) -> None:
        """Write what a full disk has refused, and let jobs try again that waited for space."""
        has_room = self.queue.has_room()
        if not has_room:
            place = self._configuration.settings.jobs.state_dir
            self._writes.note(f"{place}: the disk is nearly full; no job is accepted.")
        self._writes.retry(has_room=has_room)
        self.queue.hurry(self._shortage.given_back())

    def forget_old(self, before: float) -> None:
        """Delete jobs that ended before a time, and the oldest events, from the queue."""
        try:
            self.queue.forget_old(before)
        except JobError as error:
            self._writes.note(str(error))

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
            started=job.started or max(time.time(), job.created),
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
        self._publisher.publish(event)
        if job.started is None:
            self._publisher.first_start(job)
        self._shortage.started(job.id)
        told = {"job": job.id, "segment": job.num_segments_done, "worker": worker.name}
        # While space is short, a job may start every minute.
        level = logging.DEBUG if self._shortage.problem else logging.INFO
        logger.log(level, "job started", extra=told)

    def _setup(self, name: str, device: str) -> Setup:
        settings = self._configuration.settings
        is_first = name == "engine-0"
        return Setup(
            name=name,
            device=device,
            security=self._configuration.security,
            mount_points=self._configuration.roots.mount_points,
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
            security=self._configuration.security,
            mount_points=self._configuration.roots.mount_points,
            logs=self._configuration.settings.logs,
        )
        for worker in self.workers:
            worker.send(configure)

    async def drain(self, seconds: float, tell: Callable[[int], None]) -> None:
        """Let segments end within `seconds`, then end the workers; see `workers.drain`."""
        await drain(self.workers, seconds, tell)
        self._writes.retry(has_room=False)

    def _num_running(self) -> int:
        return num_running(self.workers)

    # --- what workers report -----------------------------------------------------------------

    def _heard(self, worker: EngineProcess, message: WorkerMessage) -> None:
        if isinstance(message, Ready):
            told = {"worker": worker.name, "device": worker.device}
            logger.info("engine %s is ready: %s", message.engine, message.reason, extra=told)
            self.changed.set()
        elif isinstance(message, Beat):
            self._metrics.count(worker.name, message.counts)
            self._publisher.publish_progress(worker.running)
        elif isinstance(message, Happened):
            self._writes.do(lambda: self._note_event(message))
        elif isinstance(message, Pinned):
            self._writes.do(
                lambda: self.queue.update(message.job, weights_sha256=message.weights_sha256)
            )
        else:
            self._heard_end(worker, message)

    def _heard_end(self, worker: EngineProcess, ended: Ended) -> None:
        told = {"worker": worker.name, "device": worker.device}
        if not ended.job:
            worker.fault = ended.text
            self._metrics.error("worker", ended.kind)
            failed = "ends and is replaced" if worker.is_ready else "cannot start"
            logger.error("engine worker %s: %s", failed, ended.text, extra=told)
        elif ended.kind == StalledError.__name__:
            # A hanging call stays in its process; the job continues in a new one.
            told = {"worker": worker.name, "job": ended.job}
            logger.error("%s The engine worker is replaced.", ended.text, extra=told)
            self._metrics.error("job", ended.kind)
            note = {"event": "note", "text": ended.text}
            self._writes.do(
                lambda: self._publisher.publish(self.queue.tell(ended.job, "note", note))
            )
            worker.kill()
        else:
            worker.running.pop(ended.job, None)
            self._publisher.forget(ended.job)
            self._writes.do(lambda: self._end(ended))
            self.changed.set()

    def _lost(self, worker: EngineProcess, orders: list[JobOrder]) -> None:
        """Queue the jobs of a worker that died, to continue at their segments, or put one aside."""
        if not worker.is_leaving:
            self._metrics.worker_lost(worker.name)
        for order in orders:
            if not self.is_stopping:
                self._writes.do(partial(self._requeue, order.id))
        self.changed.set()

    def _requeue(self, job_id: str) -> None:
        job = self.queue.get(job_id)
        verdict = retries.after_crash(job, self._configuration.settings.jobs)
        self._publisher.publish(self._apply(job_id, verdict))

    def _note_event(self, message: Happened) -> None:
        job_id, content = message.job, message.event
        kind = content["event"]
        if kind == "segment":
            num_done = content["number"] + 1
            self._publisher.publish(
                self.queue.segment_done(job_id, num_done, content["num_segments"])
            )
        elif kind in ("note", "started"):
            keep = {key: value for key, value in content.items() if key != "schema_version"}
            self._publisher.publish(self.queue.tell(job_id, "note", keep))

    def _end(self, ended: Ended) -> None:
        """Decide what becomes of a job whose thread has ended."""
        job = self.queue.get(ended.job)
        if job.is_final:  # it was cancelled while a full disk delayed this
            self.forget_work(job.id)
            return
        if ended.outcome == "done":
            event = self.queue.change(job.id, "done", result=ended.result, error=None)
            logger.info("job done", extra={"job": job.id, "output": str(job.output)})
        elif ended.outcome == "stopped":
            event = self._apply(job.id, retries.after_stop(job))
        else:
            event = self._end_failed(job, ended)
        self._publisher.publish(event)
        if self.queue.get(job.id).is_final:
            self.forget_work(job.id)

    def _end_failed(self, job: QueuedJob, ended: Ended) -> Event:
        kind = error_named(ended.kind) or EngineError
        verdict = retries.after_failure(job, kind, ended.text, self._configuration.settings.jobs)
        lacks_space = issubclass(kind, DiskFullError | NoSpaceError)
        if lacks_space and verdict.state == "queued":
            verdict = self._make_room(job, verdict, is_full=issubclass(kind, DiskFullError))
        event = self._apply(job.id, verdict)
        self._metrics.error("job", ended.kind)
        told = {"job": job.id, "segment": job.num_segments_done, "state": verdict.state}
        level = logging.DEBUG if lacks_space else logging.WARNING  # said once, by the shortage
        logger.log(level, "%s", ended.text, extra=told)
        return event

    def _make_room(self, job: QueuedJob, verdict: Verdict, *, is_full: bool) -> Verdict:
        """Have a job that lacks space wait for the others, or take the space of one behind it."""
        self._shortage.note(job, str(verdict.columns["error"]), is_full=is_full)
        if is_full and self._shortage.may_go_on(job.id):
            return replace(verdict, pause_seconds=None)  # it starts when it can be alone
        if self._num_running():
            return verdict  # it goes on when another has ended
        others = self.queue.jobs(("queued",), limit=_ALL)
        other = self._shortage.give_up_for(job, others, self._configuration.work_dir)
        if other is None:
            return verdict
        text = f"Its unfinished work was deleted to make room for job {job.id}; it begins again."
        logger.warning("%s", text, extra={"job": other.id})
        self.queue.update(other.id, num_segments_done=0)
        self._publisher.publish(self.queue.tell(other.id, "note", {"event": "note", "text": text}))
        self.forget_work(other.id)
        return replace(verdict, pause_seconds=None)

    def _apply(self, job_id: str, verdict: Verdict) -> Event:
        return self.queue.change(
            job_id,
            verdict.state,
            verdict.data,
            pause_seconds=verdict.pause_seconds,
            **verdict.columns,
        )

    # --- events ------------------------------------------------------------------------------

    def publish(self, event: Event | None) -> None:
        """Pass on an event that a request has caused, and see whether a job can start."""
        self._publisher.publish(event)
        self.changed.set()

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
        left = self.queue.pause_left(job.id)
        retry_at = None if left is None else time.time() + left
        return job.info().model_copy(update={"retry_at": retry_at})

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
        self.queue.hurry(self._shortage.ended(job_id))

    def fps(self) -> float:
        """Frames a second of all running jobs together."""
        running = [order.progress for worker in self.workers for order in worker.running.values()]
        return sum(progress.fps or 0.0 for progress in running if progress is not None)

    def health(self) -> HealthInfo:
        """The daemon's condition."""
        counts = self.queue.counts()
        faults = self._writes.problem, self._shortage.problem, self.queue.problem
        problems = [text for text in faults if text]
        problems += [text for worker in self.workers for text in worker.problems()]
        return HealthInfo(
            ok=not problems,
            version=self._version,
            uptime_seconds=time.monotonic() - self._started_at,
            num_queued=counts.get("queued", 0),
            num_running=counts.get("running", 0),
            num_paused=counts.get("paused", 0),
            workers=tuple(worker.info() for worker in self.workers),
            problems=tuple(problems),
            notes=tuple(self.queue.notes),
        )
