"""What an API may ask of the daemon, whatever protocol it speaks.

Nothing here knows a socket, so another API can stand beside the one over ZeroMQ.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srstream.daemon.api.job_pages import JobPages
from srstream.daemon.api.model_uses import check_removable
from srstream.daemon.api.submission import (
    check_job,
    check_model,
    check_picture_settings,
    job_config,
    output_of,
    section_of,
)
from srstream.daemon.health import Checks
from srstream.daemon.metrics import Metrics
from srstream.daemon.reload import Configuration
from srstream.daemon.scheduler import Scheduler
from srstream.daemon.settings import with_model
from srstream.daemon.workers.registration import Registered, Registration
from srstream.errors import JobError, RefusedError, UsageError
from srstream.jobs.events import printable
from srstream.models.registry import registered_models, remove_model
from srstream.models.table import MODELS, available_models
from srstream.pictures.stills import is_still
from srstream.protocol import control as protocol
from srstream.sandbox.child import start_child

logger = logging.getLogger(__name__)

_ADD_SECONDS = 120.0
_FEW = 50  # jobs that can be listed in the event loop without holding up others


@dataclass(frozen=True)
class Peer:
    """The client that asks.

    Its name is that of its key over TCP. Over ipc it is `local` for the daemon's own user, `uid:N`
    for others. `address` is for logs.
    """

    name: str
    address: str = ""
    uid: int | None = None
    """The user id, over ipc."""
    is_admin: bool = False
    """Whether its key has the role `admin`."""


INBOX = Peer("watch", is_admin=True)
"""The watch folders, whose jobs no limit for a single client bounds."""


class Actions:
    """Answers requests. All calls belong to the event loop.

    Args:
        reload: reads the configuration again and returns the names of what needs a restart.
    """

    def __init__(
        self,
        configuration: Configuration,
        scheduler: Scheduler,
        checks: Checks,
        metrics: Metrics,
        reload: Callable[[], list[str]],
    ) -> None:
        self._configuration, self._scheduler = configuration, scheduler
        self._queue = scheduler.queue
        self._checks, self._metrics, self._reload = checks, metrics, reload
        self._pages = JobPages(self._queue.path)

    async def handle(self, request: protocol.Request, peer: Peer) -> dict[str, Any] | bytes:
        """Answer a request, count it in the metrics, and return its result, or that as JSON.

        Raises:
            SrstreamError: the request is refused or failed.
        """
        with self._metrics.request(request.op):
            return await self._answer(request, peer)

    def events_after(self, after: int, job: str | None, limit: int) -> list[protocol.Event]:
        """Recorded events after sequence number `after`, oldest first; with `job`, only its own."""
        return self._queue.events_after(after, job, limit)

    def last_seq(self) -> int:
        """Sequence number of the newest event; 0 before the first."""
        return self._queue.last_seq

    async def _answer(self, request: protocol.Request, peer: Peer) -> dict[str, Any] | bytes:
        match request:
            case protocol.Submit():
                return self.submit(request, peer)
            case protocol.Status():
                return self._shown(request.job)
            case protocol.List():
                return await self._list(request)
            case protocol.Cancel():
                self._check_may_change(request.job, peer)
                return self._cancel(request.job)
            case protocol.Pause():
                self._check_may_change(request.job, peer)
                return self._pause(request.job)
            case protocol.Resume():
                self._check_may_change(request.job, peer)
                return self._resume(request.job)
            case protocol.SetPriority():
                self._check_may_change(request.job, peer)
                self._queue.update(request.job, priority=request.priority)
                self._scheduler.weigh_job(request.job, request.priority)
                return self._shown(request.job)
            case protocol.ModelsList():
                return self._models()
            case protocol.ModelsAdd():
                if request.replace:
                    self._check_admin(peer, "replace a model")
                return await self._add_model(request)
            case protocol.ModelsUse():
                self._check_admin(peer, "change the default model")
                return self._use_model(request)
            case protocol.ModelsRemove():
                self._check_admin(peer, "remove a model")
                return self._remove_model(request)
            case protocol.Reload():
                self._check_admin(peer, "reload the configuration")
                return {"needs_restart": self._reload()}
            case protocol.Health():
                return self._checks.probed_health().model_dump()
            case protocol.Watch():
                raise UsageError("watches are the control socket's own business.")

    def submit(self, request: protocol.Submit, peer: Peer) -> dict[str, Any]:
        """Add a job to the queue, after all checks that need not decode the file."""
        source = Path(request.input)
        # This comes first: by now its output may exist, and its input be gone.
        if request.key is not None and (first := self._queue.with_key(request.key)) is not None:
            if first.input != source:
                raise UsageError(
                    f"key {request.key!r}: job {first.id} has it, for {printable(first.input)}; "
                    "choose another key for another input."
                )
            return self._scheduler.info(first).model_dump()
        self._checks.require_state()
        settings = self._configuration.settings
        config = job_config(settings, request.config)
        descriptor = self._configuration.roots.open_source(source)
        try:
            still = is_still(source, descriptor)
        finally:
            os.close(descriptor)
        if still and peer != INBOX:  # a folder's settings are for videos and pictures
            check_picture_settings(source, request.config)
        output = Path(request.output or output_of(source, config, settings, is_still=still))
        names_model = "name" in section_of(request.config, "model")
        if not names_model:
            config = with_model(config, self._scheduler.default_model)
        tables = (worker.tables for worker in self._scheduler.workers)
        check_job(source, output, config, next(filter(None, tables), None), is_still=still)
        folder = self._configuration.roots.open_folder(output.parent)
        try:
            if not request.overwrite and _is_taken(output.name, folder):
                raise RefusedError(
                    f"{output}: exists already and was not touched. Submit with overwrite to "
                    "replace it, or choose another output."
                )
        finally:
            os.close(folder)
        limit = None if peer == INBOX else settings.jobs.max_queued_per_client
        job, event = self._queue.add(
            source,
            output,
            config,
            names_model=names_model,
            overwrite=request.overwrite,
            priority=request.priority,
            submitter=peer.name,
            key=request.key,
            max_queued=settings.jobs.max_queued,
            max_queued_of_client=limit,
        )
        self._scheduler.publish(event)
        return self._scheduler.info(job).model_dump()

    def _check_may_change(self, job_id: str, peer: Peer) -> None:
        """Check that a job is the client's own, or the client an admin.

        Raises:
            RefusedError: it is another client's.
        """
        owner = self._queue.get(job_id).submitter
        if owner != peer.name and not self._is_admin(peer):
            raise RefusedError(
                f"{job_id}: this job belongs to {owner}; only {owner} and admins may change it, "
                f"and you are {peer.name}."
            )

    def _check_admin(self, peer: Peer, action: str) -> None:
        if not self._is_admin(peer):
            raise RefusedError(
                f"{peer.name} is no admin and may not {action}. Admins are root, the daemon's own "
                "user, security.admin_users, and keys made with --admin."
            )

    def _is_admin(self, peer: Peer) -> bool:
        if peer.uid is None:
            return peer.is_admin
        named = self._configuration.settings.security.admin_users
        return peer.uid in (0, os.geteuid()) or any(_is_user(peer.uid, name) for name in named)

    def _cancel(self, job_id: str) -> dict[str, Any]:
        """End a job for good."""
        job = self._queue.get(job_id)
        if job.is_final and job.state == "done":
            raise UsageError(f"{job_id}: this job is done; there is nothing to cancel.")
        if self._scheduler.stop_job(job_id, now=True):
            self._queue.update(job_id, wanted="cancel")
        elif job.state != "cancelled":
            # On a full disk this makes room for the record.
            self._scheduler.forget_work(job_id)
            self._scheduler.publish(self._queue.change(job_id, "cancelled"))
        return self._shown(job_id)

    def _pause(self, job_id: str) -> dict[str, Any]:
        """Stop a job at the end of its segment, so that nothing is lost."""
        job = self._queue.get(job_id)
        if job.is_final:
            raise UsageError(f"{job_id}: this job has ended ({job.state}).")
        if self._scheduler.stop_job(job_id, now=False):
            self._queue.update(job_id, wanted="pause")
        elif job.state == "queued":
            self._scheduler.publish(self._queue.change(job_id, "paused"))
        return self._shown(job_id)

    def _resume(self, job_id: str) -> dict[str, Any]:
        """Let a job continue, or try a failed one again."""
        job = self._queue.get(job_id)
        if job.state in ("done", "cancelled"):
            raise UsageError(f"{job_id}: this job is {job.state}; submit it again.")
        if job.state == "running":
            self._queue.update(job_id, wanted=None)
        elif job.state != "queued" or job.retry_at is not None:
            self._scheduler.publish(
                self._queue.change(
                    job_id,
                    "queued",
                    retry_at=None,
                    ended=None,
                    error=None,
                    attempts=0,
                    failures=0,
                    crashes=0,
                )
            )
        return self._shown(job_id)

    def _models(self) -> dict[str, Any]:
        """Every model that a job may name."""
        shipped = [{"name": name, "network": name, "ships": True} for name in available_models()]
        own = [
            {"name": model.name, "network": model.network, "ships": False, "sha256": model.sha256}
            for model in registered_models()
        ]
        return {"default": self._scheduler.default_model, "models": [*shipped, *own]}

    async def _add_model(self, request: protocol.ModelsAdd) -> dict[str, Any]:
        """Register weights, in a separate process, because the file comes from a client."""
        source = Path(request.weights)
        descriptor = self._configuration.roots.open_source(source)
        name = source.stem.lower() if request.name is None else request.name
        if name in MODELS:
            os.close(descriptor)
            raise UsageError(f"{name!r} is a model that ships with srstream; use another name.")
        order = Registration(
            descriptor=descriptor, source=source, name=name, replace=request.replace
        )
        try:
            child = start_child(
                "srstream.daemon.workers.registration", order, descriptors=[descriptor]
            )
        finally:
            os.close(descriptor)
        try:
            message = await asyncio.to_thread(child.channel.receive, _ADD_SECONDS)
        except EOFError:
            logger.warning("the process that registers weights died: %s", source)
            raise JobError(f"{source}: the process that read it died.") from None
        finally:
            await asyncio.to_thread(child.end)
        if message is None:
            raise JobError(f"{source}: reading it took longer than {_ADD_SECONDS:.0f} s.")
        if error := Registered.model_validate_json(message).error:
            raise UsageError(error[1])
        return {"name": name}

    def _use_model(self, request: protocol.ModelsUse) -> dict[str, Any]:
        """Make a model the default; with `running`, also for jobs under way."""
        check_model(request.name)
        self._scheduler.use_model(request.name)
        changed = []
        if request.running:
            for job in self._queue.jobs(("running",)):
                if not job.names_model and job.config.model.name != request.name:
                    config = with_model(job.config, request.name)
                    self._queue.update(job.id, config=config.model_dump_json(), changes_weights=1)
                    self._scheduler.stop_job(job.id, now=False)
                    changed.append(job.id)
        return {"default": request.name, "jobs": changed}

    def _remove_model(self, request: protocol.ModelsRemove) -> dict[str, Any]:
        """Delete a registered model, unless something would lack it."""
        default, settings = self._scheduler.default_model, self._configuration.settings
        check_removable(request.name, default, settings, self._queue)
        return {"name": remove_model(request.name).name}

    async def _list(self, request: protocol.List) -> dict[str, Any] | bytes:
        """Read a page from the queue's file, if its path still leads to it, else from here."""
        if self._checks.state_sight.kind == "same":
            return await self._pages.read(request, self._progress())
        limit = min(request.limit, _FEW)
        jobs = self._queue.jobs(request.states, limit=limit, before=request.before)
        following = jobs[-1].id if len(jobs) == limit else None
        shown = [self._scheduler.info(job).model_dump() for job in jobs]
        return {"jobs": shown, "next": following}

    def _progress(self) -> dict[str, protocol.JobProgress]:
        """The progress of the running jobs that have reported any, by id."""
        running = [job for each in self._scheduler.workers for job in each.running.values()]
        return {job.order.id: job.progress for job in running if job.progress is not None}

    def _shown(self, job_id: str) -> dict[str, Any]:
        return self._scheduler.info(self._queue.get(job_id)).model_dump()


def _is_user(uid: int, name: str) -> bool:
    """Return whether a user id is the one that `name`, a user's name or id, stands for."""
    if name.isdecimal():
        return uid == int(name)
    try:
        return pwd.getpwnam(name).pw_uid == uid
    except KeyError:
        return False


def _is_taken(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True
