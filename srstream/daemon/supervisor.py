"""The daemon's life: it starts its parts in order, runs, reloads, and stops them in reverse.

This is the process that must never die, so it touches no media and imports neither libav nor a
network. `scheduler.py` decides which job runs where, and `actions.py` answers requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from srstream.daemon import logs
from srstream.daemon.actions import INBOX, Actions
from srstream.daemon.api.submission import job_config
from srstream.daemon.api.zmq.control import ControlServer
from srstream.daemon.clock import Clock
from srstream.daemon.folders.held import Sight
from srstream.daemon.folders.state import INBOX_NAME, QUEUE_NAME, StateFolder, check_private
from srstream.daemon.health import Checks, FolderNotes
from srstream.daemon.inbox.folders import Inbox, check_apart
from srstream.daemon.metrics import Metrics, MetricsServer
from srstream.daemon.queue import JobQueue
from srstream.daemon.reload import (
    Configuration,
    check_roots,
    needing_restart,
    until_restart,
)
from srstream.daemon.scheduler import Scheduler
from srstream.daemon.settings import ServiceSettings, keys_dir, load_settings
from srstream.daemon.systemd import Notifier, Readiness, listen_fds
from srstream.errors import ConfigError, SrstreamError, UsageError
from srstream.models.registry import REGISTRY_VARIABLE
from srstream.protocol.control import FINAL_STATES, Event, JobInfo, Submit
from srstream.protocol.keys import KeyRing

logger = logging.getLogger(__name__)

EXIT_FAILED = 1
_TICK_SECONDS = 1.0
_SWEEP_SECONDS = 3600.0
_ALL = 1_000_000


class Supervisor:
    """Owns every part of the daemon, from its start to its end.

    Args:
        path: the configuration file, read again at a reload; None: the default one.
    """

    def __init__(self, path: Path | None, settings: ServiceSettings) -> None:
        self._path, self._initial_settings = path, settings
        self._stopping = asyncio.Event()
        self._exit_code = 0
        self._swept_at = time.monotonic()
        self._clock = Clock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._readiness = Readiness(Notifier(), settings.ready_file)

    async def run(self) -> int:
        """Run the daemon from its start to its end; returns its exit code.

        Raises:
            SrstreamError: it cannot start. What was opened before the failure is closed.
        """
        with contextlib.ExitStack() as opened:
            self._open(self._initial_settings, opened)
            try:
                self._start()
                await self._main_loop()
            finally:
                await self._drain()
        return self._exit_code

    # --- start -------------------------------------------------------------------------------

    def _open(self, settings: ServiceSettings, opened: contextlib.ExitStack) -> None:
        """Open the parts in order; `opened` closes them in reverse."""
        self._open_folders(settings, opened)
        state, notes = settings.jobs.state_dir, FolderNotes()
        self._inbox = Inbox(
            settings.watch,
            self._submit_file,
            self._info_of,
            state / INBOX_NAME,
            self._narrow,
            lambda changes: job_config(self._configuration.settings, dict(changes)).scaling,
        )
        opened.callback(self._inbox.close)
        self._configuration = Configuration(
            self._path, settings, lambda: self._inbox.unfinished_entries(), notes.add
        )
        opened.callback(self._configuration.close)
        queue = JobQueue(state / QUEUE_NAME)
        opened.callback(queue.close)
        self._state.note_journals()
        queue.notes.extend(self._inbox.notes)
        self._keys = open_keys(self._path, settings)
        metrics = Metrics()
        folder = None if self._keys is None else self._keys.folder
        self._scheduler = Scheduler(self._configuration, queue, metrics, folder, self._give_up)
        self._scheduler.recover()
        self._notes = notes
        self._checks = checks = Checks(self._configuration, self._scheduler, self._state, notes)
        self._actions = Actions(self._configuration, self._scheduler, checks, metrics, self.reload)
        self._control = ControlServer(settings.sockets, self._actions, self._keys)
        opened.callback(self._control.close)
        self._control.bind(listen_fds().get("control"))
        self._metrics_server = MetricsServer(
            settings.metrics,
            lambda: metrics.render(queue.counts(), checks.health(), self._scheduler.fps()),
            checks.probed_health,
        )
        opened.callback(self._metrics_server.close)
        self._metrics_server.bind()

    def _open_folders(self, settings: ServiceSettings, opened: contextlib.ExitStack) -> None:
        """Make the daemon's folders and lock its state."""
        runtime = settings.sockets.runtime_dir
        try:
            runtime.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}.") from error
        self._state = StateFolder(settings.jobs.state_dir)
        opened.callback(lambda: self._state.close())
        check_private(runtime)
        os.environ[REGISTRY_VARIABLE] = str(self._state.models)

    def _start(self) -> None:
        """Start what runs until the daemon ends."""
        self._scheduler.subscribe(self._control.publish)
        self._scheduler.subscribe(self._tell_inbox)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload_by_signal)
        self._spawn(self._control.serve())
        self._spawn(self._metrics_server.serve())
        for worker in self._scheduler.workers:
            self._spawn(worker.live())
        self._spawn(self._inbox.run())
        self._checks.start()
        self._readiness.tick(self._checks.health(), 0.0, is_advancing=True)

    # --- main loop ---------------------------------------------------------------------------

    async def _main_loop(self) -> None:
        """Start what can start, whenever something has changed and once a second."""
        scheduler = self._scheduler
        while not self._stopping.is_set():
            stopping = asyncio.ensure_future(self._stopping.wait())
            changing = asyncio.ensure_future(scheduler.changed.wait())
            await asyncio.wait(
                (stopping, changing), timeout=_TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            stopping.cancel()
            changing.cancel()
            scheduler.changed.clear()
            if (jump := self._clock.jump()) is not None:
                scheduler.queue.note(f"{jump}.", logging.WARNING)
            is_advancing = scheduler.check_workers()
            self._check_tasks()
            if self._has_state():
                if self._notes.take_news():
                    # Jobs that wait for a folder need not wait out their pause.
                    waiting = scheduler.queue.jobs(("queued",), limit=_ALL)
                    scheduler.queue.hurry(job.id for job in waiting)
                scheduler.schedule()
                self._sweep()
            self._readiness.tick(self._checks.health(), scheduler.fps(), is_advancing=is_advancing)

    def _has_state(self) -> bool:
        """Return whether jobs can be kept, after taking what has replaced the state folder.

        Jobs under way end first, since their unfinished work was in the former folder.
        """
        sight, state = self._checks.state_sight, self._state
        if sight.kind == "same":
            self._checks.state_fault = ""
            return True
        fault = f"{state.path}: the state folder {sight.reason}; no job is taken or started."
        running = [job for worker in self._scheduler.workers for job in worker.running]
        for job in running:
            self._scheduler.stop_job(job, now=True)
        if sight.kind != "gone" and not running:
            try:
                self._renew_state(sight.reason)
                return True
            except SrstreamError as error:
                fault = f"{fault} What is there now cannot be used: {error}"
        self._checks.state_fault = fault
        if not running:
            self._notes.add(state.path, fault)
        return False

    def _renew_state(self, reason: str) -> None:
        """Go on in the folder that has the state folder's name now."""
        state = self._state
        state.renew()
        self._scheduler.queue.reopen(is_same_folder=state.has_journals)
        self._inbox.reopen(is_same_folder=state.has_journals)
        self._scheduler.recover()
        state.note_journals()
        self._checks.state_sight, self._checks.state_fault = Sight("same"), ""
        text = "every job was taken along, and those that are unfinished begin anew."
        self._notes.add(state.path, f"{state.path}: the state folder {reason}; {text}")

    def _sweep(self) -> None:
        """Once an hour, forget what ended long ago.

        The first time is an hour after the start: a machine may begin with a wrong clock.
        """
        if time.monotonic() - self._swept_at > _SWEEP_SECONDS:
            self._swept_at = time.monotonic()
            keep_seconds = self._configuration.settings.jobs.keep_days * 86_400
            before = self._clock.earliest() - keep_seconds
            self._scheduler.forget_old(before)
            self._inbox.forget_old(before)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.ensure_future(work))

    def _check_tasks(self) -> None:
        """End the daemon if one of its parts has failed; systemd starts it again."""
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("a part of the daemon failed: %r", error, exc_info=error)
                self._give_up()

    # --- stop --------------------------------------------------------------------------------

    def _stop(self) -> None:
        self._stopping.set()
        self._scheduler.is_stopping = True

    def _give_up(self) -> None:
        self._exit_code = EXIT_FAILED
        self._stop()

    async def _drain(self) -> None:
        """Let segments end within the configured time, then end all tasks; no job loses work."""
        self._stop()
        self._readiness.stopping()
        seconds = self._configuration.settings.drain_seconds
        await self._scheduler.drain(seconds, self._readiness.draining)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        sight = self._state.look()
        if sight.kind in ("other", "missing"):
            self._renew_state(sight.reason)

    # --- reload ------------------------------------------------------------------------------

    def reload(self) -> list[str]:
        """Put a changed configuration in force; returns the settings that need a restart.

        Raises:
            SrstreamError: it is wrong, or a socket cannot be opened; the old one stays in force.
        """
        self._readiness.reloading()
        running = self._configuration.settings
        try:
            wanted = load_settings(self._path)
            names = needing_restart(running, wanted)
            self._switch_to(until_restart(running, wanted))
        finally:
            self._readiness.reloaded()
        logger.info("configuration reloaded")
        self._scheduler.changed.set()
        return names

    def _switch_to(self, new: ServiceSettings) -> None:
        """Do all that can fail first: a configuration is applied as a whole or not at all."""
        with contextlib.ExitStack() as undo:
            check_apart(new.watch)
            check_roots(new, self._path)
            roots = self._configuration.opened(new)
            undo.callback(roots.close)
            sockets = self._metrics_server.opened(new.metrics)
            undo.callback(self._metrics_server.give_up, sockets)
            if self._keys is not None:
                self._keys.reload()
            undo.pop_all()
        self._configuration.use(new, roots)
        self._notes.clear()
        logs.configure(new.logs)
        self._metrics_server.use(sockets)
        self._inbox.reconfigure(new.watch)
        self._scheduler.configure_workers()

    def _narrow(self) -> None:
        """Close the folders that are no longer watched, when the last of their jobs has ended."""
        settings = self._configuration.settings
        try:
            self._configuration.use(settings, self._configuration.opened(settings))
            self._scheduler.configure_workers()
        except ConfigError as error:
            logger.warning("folders that are no longer watched stay open: %s", error)

    def _reload_by_signal(self) -> None:
        try:
            self.reload()
        except SrstreamError as error:
            logger.error("configuration refused, the old one stays: %s", error)

    # --- between the inbox and the queue -----------------------------------------------------

    async def _submit_file(self, request: Submit) -> JobInfo:
        return JobInfo.model_validate(self._actions.submit(request, INBOX))

    def _info_of(self, job_id: str) -> JobInfo | None:
        try:
            return self._scheduler.info(self._scheduler.queue.get(job_id))
        except UsageError:
            return None

    def _tell_inbox(self, event: Event) -> None:
        if event.kind == "state" and event.data["state"] in FINAL_STATES and event.job:
            self._spawn(self._inbox.job_ended(self._scheduler.queue.get(event.job).info()))


def open_keys(path: Path | None, settings: ServiceSettings) -> KeyRing | None:
    """The keys of clients that may connect over TCP; None if TCP is off.

    Raises:
        ConfigError: other users may read or change them.
    """
    if settings.sockets.control_tcp is None and settings.sockets.frames_tcp is None:
        return None
    return KeyRing(keys_dir(settings, path))


def serve(path: Path | None) -> int:
    """Run the daemon with a configuration file until it is told to stop; returns its exit code.

    Raises:
        SrstreamError: it cannot start.
    """
    settings = load_settings(path)
    logs.configure(settings.logs)
    check_roots(settings, path)
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(Supervisor(path, settings).run())
    return 0
