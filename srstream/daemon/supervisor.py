"""The daemon's life: startup, main loop, shutdown. The one process that is never allowed to die.

It holds the queue and the control socket, decides which job runs where, and replaces what hangs or
dies. It touches no media, so it imports neither libav nor a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from srstream.daemon import actions as requests
from srstream.daemon import logs, policy
from srstream.daemon.actions import Peer
from srstream.daemon.api.zmq.control import ControlServer
from srstream.daemon.folders import check_private, check_roots, open_roots, with_watched
from srstream.daemon.inbox.folders import WatchFolders, check_apart
from srstream.daemon.metrics import Metrics, MetricsServer
from srstream.daemon.queue import Job, JobQueue
from srstream.daemon.roots import Roots
from srstream.daemon.settings import (
    SecuritySettings,
    ServiceSettings,
    keys_dir,
    load_settings,
)
from srstream.daemon.systemd import Notifier, Readiness, listen_fds
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
    ConfigError,
    DiskFullError,
    EngineError,
    JobError,
    SrstreamError,
    StalledError,
    UsageError,
    error_named,
)
from srstream.models.registry import REGISTRY_VARIABLE
from srstream.protocol.control import (
    FINAL_STATES,
    Event,
    HealthInfo,
    JobInfo,
    JobProgress,
    Request,
    Submit,
)
from srstream.protocol.keys import KeyRing

logger = logging.getLogger(__name__)

EXIT_FAILED = 1
_TICK_SECONDS = 1.0
_SWEEP_SECONDS = 3600.0
_PROGRESS_SECONDS = 1.0
WATCH_SUBMITTER = "watch"
_DEFAULT_MODEL = "default_model"
_T = TypeVar("_T")


class Supervisor:
    """The daemon.

    Args:
        path: of the configuration, read again at a reload; None: the usual one.
    """

    def __init__(self, path: Path | None, settings: ServiceSettings) -> None:
        self._path, self._settings = path, settings
        self._started_at = time.time()
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._exit_code = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._workers: list[EngineProcess] = []
        self._told_progress: dict[str, tuple[float, JobProgress]] = {}
        self._problem: str | None = None
        """Why the queue could not be written, while it cannot."""
        self._readiness = Readiness(Notifier(), settings.ready_file)
        self._metrics = Metrics()

    # --- life --------------------------------------------------------------------------------

    async def run(self) -> int:
        """The daemon from its start to its end; its exit code.

        Raises:
            SrstreamError: it cannot start, in one sentence.
        """
        self._startup()
        try:
            await self._main_loop()
        finally:
            await self._shutdown()
        return self._exit_code

    def _startup(self) -> None:
        state = self._settings.jobs.state_dir
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._settings.sockets.runtime_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._lock = _locked(state / "lock")
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}.") from error
        check_private(self._settings.sockets.runtime_dir)
        check_private(state)
        os.environ[REGISTRY_VARIABLE] = str(state / "models")
        self._watch = WatchFolders(
            self._settings.watch,
            self._take_file,
            self._info_of,
            state / "watch.sqlite",
            self._narrow_roots,
        )
        self._roots = open_roots(self._security)
        self._queue = JobQueue(state / "jobs.sqlite")
        self._recover()
        self._keys = open_keys(self._path, self._settings)
        self._control = ControlServer(self._settings.sockets, self, self._keys)
        self._control.bind(listen_fds().get("control"))
        self._metrics_server = MetricsServer(
            self._settings.metrics, self._render_metrics, self.health
        )
        self._metrics_server.bind()
        self._workers = [
            EngineProcess(f"engine-{n}", device, self._setup, self._heard, self._lost)
            for n, device in enumerate(self._settings.workers.devices)
        ]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_by_signal)
        self._spawn(self._control.serve())
        self._spawn(self._metrics_server.serve())
        for worker in self._workers:
            self._spawn(worker.live())
        self._spawn(self._watch.run())
        self._readiness.tick(self.health(), 0.0, is_advancing=True)

    async def _main_loop(self) -> None:
        """Whenever something has changed, and once a second: start what can start."""
        swept_at = 0.0
        while not self._stopping.is_set():
            stopping = asyncio.ensure_future(self._stopping.wait())
            waking = asyncio.ensure_future(self._wake.wait())
            await asyncio.wait(
                (stopping, waking), timeout=_TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            stopping.cancel()
            waking.cancel()
            self._wake.clear()
            is_advancing = self._check_workers()
            self._check_tasks()
            try:
                if self._problem is not None:
                    self._queue.remember("probed", str(time.time()))
                    self._problem = None
                    logger.info("the queue can be written again")
                self._schedule()
                if time.monotonic() - swept_at > _SWEEP_SECONDS:
                    swept_at = time.monotonic()
                    self._queue.forget_old(self._settings.jobs.keep_days)
                    self._watch.forget_old(self._settings.jobs.keep_days)
            except DiskFullError as error:
                self._trouble(error)
            self._readiness.tick(self.health(), self._fps(), is_advancing=is_advancing)

    async def _shutdown(self) -> None:
        """Let segments end within the time given, then stop; nothing of a job is lost."""
        self._stopping.set()
        self._readiness.stopping()
        deadline = time.monotonic() + self._settings.drain_seconds
        self._stop_all(now=False)
        while self._num_running() and time.monotonic() < deadline:
            self._readiness.draining(self._num_running())
            await asyncio.sleep(0.1)
        self._stop_all(now=True)
        for _ in range(50):
            if not self._num_running():
                break
            await asyncio.sleep(0.1)
        for worker in self._workers:
            worker.leave()
        # They tell the clients of the data socket that the daemon ends.
        for _ in range(60):
            if all(worker.pid is None for worker in self._workers):
                break
            await asyncio.sleep(0.1)
        for worker in self._workers:
            worker.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._control.close()
        self._metrics_server.close()
        self._watch.close()
        self._queue.close()
        self._roots.close()
        self._lock.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.ensure_future(work))

    def _check_tasks(self) -> None:
        """A part of the daemon that has ended by itself ends the daemon: systemd starts it anew."""
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("a part of the daemon failed: %r", error, exc_info=error)
                self._give_up()

    def _give_up(self) -> None:
        self._exit_code = EXIT_FAILED
        self._stopping.set()

    def _recover(self) -> None:
        """What ran when the daemon ended is queued again; what no job owns is deleted."""
        for job in self._queue.jobs(("running",), limit=1_000_000):
            verdict = policy.after_stop(job, "the daemon was started anew")
            self._queue.change(job.id, verdict.state, verdict.data, **verdict.columns)
        kept = {job.id for job in self._queue.jobs(("queued", "paused"), limit=1_000_000)}
        for directory in self._work_dir.glob("*"):
            if directory.name not in kept:
                shutil.rmtree(directory, ignore_errors=True)

    @property
    def _security(self) -> SecuritySettings:
        return self._secured(self._settings)

    def _secured(self, settings: ServiceSettings) -> SecuritySettings:
        """With the watched folders, and those that files taken before a reload still need."""
        unfinished = [
            entry
            for entry in self._watch.unfinished_entries()
            if entry.folder.is_dir() and entry.output.is_dir()
        ]
        return with_watched(settings.security, (*settings.watch, *unfinished))

    @property
    def _work_dir(self) -> Path:
        return self._settings.jobs.state_dir / "work"

    # --- scheduling --------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Give waiting jobs to workers that have room, the most urgent first."""
        if self._stopping.is_set():
            return
        limit = self._settings.jobs.max_running * len(self._workers)
        for job in self._queue.next_jobs(limit):
            worker = self._worker_for(job)
            if worker is None:
                # Nobody overtakes a suspect that waits to be alone, or it would wait for ever.
                return
            self._start(job, worker)

    def _worker_for(self, job: Job) -> EngineProcess | None:
        """The least busy worker that may take it; a suspect runs alone, so that guilt is clear."""
        ready = [worker for worker in self._workers if worker.is_ready]
        if policy.is_suspect(job):
            return next((worker for worker in ready if not worker.running), None)
        free = [
            worker
            for worker in ready
            if len(worker.running) < self._settings.jobs.max_running
            and not any(policy.is_suspect(self._queue.get(other)) for other in worker.running)
        ]
        return min(free, key=lambda worker: len(worker.running), default=None)

    def _start(self, job: Job, worker: EngineProcess) -> None:
        config = job.config
        if job.started is None and not job.names_model:
            config = requests.with_model(config, self.default_model)
        event = self._queue.change(
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
                directory=self._work_dir / job.id,
                may_change_weights=job.changes_weights,
            )
        )
        self._publish(event)
        if job.started is None:
            self._metrics.job_started(time.time() - job.created)
        told = {"job": job.id, "segment": job.num_segments_done, "worker": worker.name}
        logger.info("job started", extra=told)

    def _check_workers(self) -> bool:
        """Replace workers that hang; whether there are none."""
        settings, is_advancing = self._settings.workers, True
        for worker in self._workers:
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

    def _fps(self) -> float:
        """Of all jobs together."""
        running = [order.progress for worker in self._workers for order in worker.running.values()]
        return sum(progress.fps or 0.0 for progress in running if progress is not None)

    def _stop_all(self, *, now: bool) -> None:
        for worker in self._workers:
            for job in worker.running:
                worker.send(Stop(job=job, now=now))

    def _num_running(self) -> int:
        return sum(len(worker.running) for worker in self._workers)

    # --- what workers say --------------------------------------------------------------------

    async def _heard(self, worker: EngineProcess, message: WorkerMessage) -> None:
        if isinstance(message, Ready):
            told = {"worker": worker.name, "device": worker.device}
            logger.info("engine %s is ready: %s", message.engine, message.reason, extra=told)
            self._wake.set()
        elif isinstance(message, Beat):
            self._metrics.count(worker.name, message.counts)
            self._tell_progress(worker)
        elif isinstance(message, Happened):
            await self._stored(lambda: self._note_event(message))
        elif isinstance(message, Pinned):
            await self._stored(
                lambda: self._queue.update(message.job, weights_sha256=message.weights_sha256)
            )
        elif not message.job:
            worker.fault = message.text
            self._metrics.error("worker", message.kind)
            told = {"worker": worker.name, "device": worker.device}
            logger.error("engine worker cannot start: %s", message.text, extra=told)
        elif message.kind == StalledError.__name__:
            # What hangs in its process stays there; the job goes on in a new one.
            told = {"worker": worker.name, "job": message.job}
            logger.error("%s The engine worker is replaced.", message.text, extra=told)
            self._metrics.error("job", message.kind)
            note = {"event": "note", "text": message.text}
            await self._stored(lambda: self._publish(self._queue.tell(message.job, "note", note)))
            worker.kill()
        else:
            await self._stored(lambda: self._end(message))
            worker.running.pop(message.job, None)
            self._told_progress.pop(message.job, None)
            self._wake.set()

    async def _lost(self, worker: EngineProcess, orders: list[JobOrder]) -> None:
        """A worker died: its jobs go on at the segment, unless one of them always does that."""
        if not worker.is_leaving:
            self._metrics.worker_lost(worker.name)
        for order in orders:
            if not self._stopping.is_set():
                await self._stored(lambda order=order: self._requeue(order.id))  # type: ignore[misc]
        self._wake.set()

    def _requeue(self, job_id: str) -> None:
        job = self._queue.get(job_id)
        verdict = policy.after_crash(job, self._settings.jobs)
        self._publish(self._queue.change(job_id, verdict.state, verdict.data, **verdict.columns))

    def _note_event(self, message: Happened) -> None:
        job_id, content = message.job, message.event
        kind = content["event"]
        if kind == "segment":
            num_done = content["number"] + 1
            self._publish(self._queue.segment_done(job_id, num_done, content["num_segments"]))
        elif kind in ("note", "started"):
            keep = {key: value for key, value in content.items() if key != "schema_version"}
            self._publish(self._queue.tell(job_id, "note", keep))

    def _end(self, ended: Ended) -> None:
        """A job's thread is through: what becomes of the job."""
        job = self._queue.get(ended.job)
        directory = self._work_dir / job.id
        if ended.outcome == "done":
            event = self._queue.change(job.id, "done", result=ended.result, error=None)
            logger.info("job done", extra={"job": job.id, "output": str(job.output)})
        elif ended.outcome == "stopped":
            verdict = policy.after_stop(job)
            event = self._queue.change(job.id, verdict.state, verdict.data, **verdict.columns)
        else:
            kind = error_named(ended.kind) or EngineError
            verdict = policy.after_failure(job, kind, ended.text, self._settings.jobs)
            event = self._queue.change(job.id, verdict.state, verdict.data, **verdict.columns)
            self._metrics.error("job", ended.kind)
            told = {"job": job.id, "segment": job.num_segments_done, "state": verdict.state}
            logger.warning("%s", ended.text, extra=told)
        self._publish(event)
        if self._queue.get(job.id).is_final:
            shutil.rmtree(directory, ignore_errors=True)

    def _job_ended(self, job: Job) -> None:
        if job.started is not None and job.ended is not None:
            self._metrics.job_ended(job.state, job.ended - job.started)
        self._spawn(self._watch.job_ended(job.info()))

    async def _take_file(self, request: Submit) -> JobInfo:
        """A watch folder's job."""
        return JobInfo.model_validate(requests.submit(self, request, Peer(WATCH_SUBMITTER)))

    def _info_of(self, job_id: str) -> JobInfo | None:
        try:
            return self.info(self._queue.get(job_id))
        except UsageError:
            return None

    def _render_metrics(self) -> bytes:
        return self._metrics.render(self._queue.counts(), self.health(), self._fps())

    async def _stored(self, work: Callable[[], _T]) -> _T:
        """Do something with the queue; while the disk is full, again and again until it works."""
        while True:
            try:
                return work()
            except DiskFullError as error:
                self._trouble(error)
                await asyncio.sleep(_TICK_SECONDS)

    def _trouble(self, error: DiskFullError) -> None:
        if self._problem is None:
            logger.error("%s", error)
        self._problem = str(error)

    def _tell_progress(self, worker: EngineProcess) -> None:
        now = time.monotonic()
        for job_id, running in worker.running.items():
            if running.progress is None:
                continue
            told_at, told = self._told_progress.get(job_id, (0.0, None))
            if now - told_at < _PROGRESS_SECONDS or told == running.progress:
                continue
            self._told_progress[job_id] = now, running.progress
            event = Event(
                seq=self._queue.last_seq,
                time=time.time(),
                job=job_id,
                kind="progress",
                data=running.progress.model_dump(),
            )
            self._publish(event)

    def _publish(self, event: Event | None) -> None:
        if event is not None:
            told = {"job": event.job, "seq": event.seq, "kind": event.kind, "data": event.data}
            logger.debug("event", extra=told)
            self._control.publish(event)
            if event.kind == "state" and event.data["state"] in FINAL_STATES and event.job:
                self._job_ended(self._queue.get(event.job))

    def _setup(self, name: str, device: str) -> Setup:
        settings = self._settings
        is_first = name == "engine-0"
        return Setup(
            name=name,
            device=device,
            parent_pid=os.getpid(),
            security=self._security,
            sockets=settings.sockets,
            defaults=requests.with_model(settings.defaults, self.default_model),
            max_frame_sessions=settings.jobs.max_frame_sessions if is_first else 0,
            keys_dir=None if self._keys is None else self._keys.folder,
            logs=settings.logs,
        )

    # --- what clients ask --------------------------------------------------------------------

    async def handle(self, request: Request, peer: Peer) -> dict[str, Any]:
        """Answer one request; see `requests.py` for what each does."""
        with self._metrics.request(request.op):
            return await requests.answer(self, request, peer)

    def events_after(self, after: int, job: str | None, limit: int) -> list[Event]:
        return self._queue.events_after(after, job, limit)

    def last_seq(self) -> int:
        return self._queue.last_seq

    @property
    def settings(self) -> ServiceSettings:
        return self._settings

    @property
    def queue(self) -> JobQueue:
        return self._queue

    @property
    def roots(self) -> Roots:
        return self._roots

    @property
    def default_model(self) -> str:
        """Of jobs that name none."""
        return self._queue.setting(_DEFAULT_MODEL) or self._settings.defaults.model.name

    def use_model(self, name: str) -> None:
        """Make it the default."""
        self._queue.remember(_DEFAULT_MODEL, name)

    def info(self, job: Job) -> JobInfo:
        """What is told of a job."""
        for worker in self._workers:
            if job.id in worker.running:
                return job.info(worker.running[job.id].progress)
        return job.info()

    def publish(self, event: Event | None) -> None:
        """Tell the watches, and see whether something can start."""
        self._publish(event)
        self._wake.set()

    def stop_job(self, job_id: str, *, now: bool) -> bool:
        """Ask the worker that has a job to end it; False where none has."""
        for worker in self._workers:
            if job_id in worker.running:
                worker.send(Stop(job=job_id, now=now))
                return True
        return False

    def weigh_job(self, job_id: str, priority: int) -> None:
        """Give a running job another share."""
        for worker in self._workers:
            if job_id in worker.running:
                worker.send(Weigh(job=job_id, priority=priority))

    def forget_work(self, job_id: str) -> None:
        """Delete what was done of a job that nobody works on."""
        shutil.rmtree(self._work_dir / job_id, ignore_errors=True)

    def health(self) -> HealthInfo:
        """How the daemon is."""
        counts = self._queue.counts()
        problems = [] if self._problem is None else [self._problem]
        problems += [
            f"engine worker {worker.name} is not ready{f': {worker.fault}' if worker.fault else ''}"
            for worker in self._workers
            if not worker.is_ready
        ]
        return HealthInfo(
            ok=not problems,
            version=version("srstream"),
            uptime_seconds=time.time() - self._started_at,
            num_queued=counts.get("queued", 0),
            num_running=counts.get("running", 0),
            num_paused=counts.get("paused", 0),
            workers=tuple(worker.info() for worker in self._workers),
            problems=tuple(problems),
        )

    def reload(self) -> list[str]:
        """Take a new configuration; returns the names of what needs a restart to count.

        Raises:
            SrstreamError: it is wrong, or a socket cannot be had; the old one is kept.
        """
        self._readiness.reloading()
        try:
            wanted = load_settings(self._path)
            needing_restart = requests.needing_restart(self._settings, wanted)
            self._switch_to(requests.until_restart(self._settings, wanted))
        finally:
            self._readiness.reloaded()
        logger.info("configuration reloaded")
        self._wake.set()
        return needing_restart

    def _switch_to(self, new: ServiceSettings) -> None:
        """First everything that can fail, then the rest, so that nothing is half applied."""
        with contextlib.ExitStack() as undo:
            check_apart(new.watch)
            check_roots(new, self._path)
            roots = open_roots(self._secured(new))
            undo.callback(roots.close)
            sockets = self._metrics_server.opened(new.metrics)
            undo.callback(self._metrics_server.give_up, sockets)
            if self._keys is not None:
                self._keys.reload()
            undo.pop_all()
        self._settings = new
        logs.configure(new.logs)
        self._metrics_server.use(sockets)
        self._watch.reconfigure(new.watch)
        self._use_roots(roots)

    def _use_roots(self, roots: Roots) -> None:
        self._roots.close()
        self._roots = roots
        for worker in self._workers:
            worker.send(Configure(security=self._security, logs=self._settings.logs))

    def _narrow_roots(self) -> None:
        """A folder that is no longer watched is given up with the last of its jobs."""
        try:
            self._use_roots(open_roots(self._security))
        except ConfigError as error:
            logger.warning("folders that are no longer watched stay open: %s", error)

    def _reload_by_signal(self) -> None:
        try:
            self.reload()
        except SrstreamError as error:
            logger.error("configuration refused, the old one stays: %s", error)


def open_keys(path: Path | None, settings: ServiceSettings) -> KeyRing | None:
    """The keys of those who may connect over TCP; None where nobody may.

    Raises:
        ConfigError: others may read or change them.
    """
    if settings.sockets.control_tcp is None and settings.sockets.frames_tcp is None:
        return None
    return KeyRing(keys_dir(settings, path))


def _locked(path: Path) -> BinaryIO:
    """The state folder's lock, held.

    Raises:
        JobError: another daemon has it.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise JobError(
            f"{path.parent}: another srstream daemon works in this folder. Stop it first, or give "
            "this one another jobs.state_dir."
        ) from error
    return file


def serve(path: Path | None) -> int:
    """Run the daemon with a configuration file until it is told to stop; its exit code.

    Raises:
        SrstreamError: it cannot start, in one sentence.
    """
    settings = load_settings(path)
    logs.configure(settings.logs)
    check_roots(settings, path)
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(Supervisor(path, settings).run())
    return 0
