"""The engine worker: the process that holds an engine and does jobs for the supervisor.

The supervisor runs it as `python -m srstream.daemon.workers.main`; its order is a `Setup`, and the
messages after it are commands (`link.py`). It dies with the supervisor. Each job has a thread; the
main thread takes commands and sends signs of life.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from srstream.daemon import logs
from srstream.daemon.folders.roots import Roots
from srstream.daemon.frames.engine import stage_opener
from srstream.daemon.frames.keys import FrameKeys
from srstream.daemon.frames.server import FrameLimits, FramesServer
from srstream.daemon.logs import log_context
from srstream.daemon.workers.job import RunningJob
from srstream.daemon.workers.link import (
    COMMAND,
    Beat,
    Command,
    Configure,
    Counts,
    Ended,
    Exit,
    Happened,
    JobOrder,
    Pinned,
    Ready,
    Setup,
    Start,
    Stop,
    Weigh,
)
from srstream.engines.contract import TileFormat
from srstream.engines.faults import device_fault
from srstream.engines.pool import EnginePool
from srstream.enhancer.fair_queue import Round
from srstream.errors import DeviceFaultError, SrstreamError, error_to_wire
from srstream.jobs.events import Event
from srstream.media.output_checks import output_tables
from srstream.models.registry import resolved
from srstream.models.table import model_spec
from srstream.sandbox.child import Channel, take_order

logger = logging.getLogger(__name__)

_Number = TypeVar("_Number", int, float)

BEAT_SECONDS = 0.5
_WARM_TILE = (180, 320)


class EngineWorker:
    """Does jobs on one device, each in its own thread."""

    def __init__(self, setup: Setup, channel: Channel) -> None:
        self._setup, self._channel = setup, channel
        self._roots = _open_roots(setup)
        self._pool = EnginePool(setup.device)
        self._round = Round()
        self._jobs: dict[str, RunningJob] = {}
        self._lock = threading.Lock()
        self._ended = Counts()
        self._is_leaving = False
        self._frames: FramesServer | None = None
        self._frame_keys: FrameKeys | None = None

    def warm_up(self) -> Ready:
        """Open the default model's engine and run it once, so that the first job need not wait.

        From then on clients can push frames, if this worker takes any.

        Raises:
            SrstreamError: there is no engine to be had, or no socket for the frames.
        """
        defaults = self._setup.defaults
        model = resolved(defaults.model).model_copy(update={"restore": 0.0})
        spec = model_spec(model.name)
        engine, reason = self._pool.open(defaults.engine, model, spec)
        can = engine.capabilities
        matrix = 1 if can.color_form == "rgb" else None
        session = engine.open_session(TileFormat(_WARM_TILE, 8, matrix))
        tile = [np.full(_WARM_TILE, 128, np.uint8)] * can.form.num_input_planes
        session.result(session.submit(tile))
        session.close()
        if self._setup.max_frame_sessions:
            self._frames = self._start_frames()
        return Ready(engine=can.name, reason=reason, tables=output_tables())

    def _start_frames(self) -> FramesServer:
        setup, most = self._setup, FrameLimits()
        limits = replace(
            most,
            max_sessions=setup.max_frame_sessions,
            max_pixels=min(most.max_pixels, setup.security.max_pixels),
        )
        open_stage = stage_opener(self._pool, self._round, setup.defaults)
        keys = None
        if setup.keys_dir is not None and setup.sockets.frames_tcp is not None:
            self._frame_keys = keys = FrameKeys(setup.keys_dir)
        server = FramesServer(
            setup.sockets,
            open_stage=open_stage,
            limits=limits,
            curve=None if keys is None else keys.curve,
            is_allowed=None if keys is None else keys.is_allowed,
            context=None if keys is None else keys.context,
        )
        server.start()
        return server

    def close(self) -> None:
        """Tell clients that push frames that the daemon ends, and remove their socket."""
        if self._frames is not None:
            self._frames.close()
        if self._frame_keys is not None:
            self._frame_keys.close()

    def serve(self) -> None:
        """Take commands and send signs of life, until told to end or the supervisor ends.

        Raises:
            DeviceFaultError: the device is broken for this process. The supervisor starts the next
                one, in which the jobs continue.
        """
        next_beat = 0.0
        while not self._is_leaving:
            if (fault := device_fault()) is not None:
                raise DeviceFaultError(fault)
            message = self._channel.receive(BEAT_SECONDS / 2)
            if message is not None:
                self._obey(COMMAND.validate_json(message))
            if time.monotonic() >= next_beat:
                self._channel.send(self._beat())
                next_beat = time.monotonic() + BEAT_SECONDS

    def _obey(self, command: Command) -> None:
        if isinstance(command, Start):
            self._start(command.order)
        elif isinstance(command, Configure):
            self._configure(command)
        elif isinstance(command, Exit):
            self._is_leaving = True
        elif (job := self._jobs.get(command.job)) is not None:
            if isinstance(command, Stop):
                job.stop(now=command.now)
            elif isinstance(command, Weigh):
                job.weigh(command.priority)

    def _configure(self, command: Configure) -> None:
        changes = {
            "security": command.security,
            "mount_points": command.mount_points,
            "logs": command.logs,
        }
        self._setup = self._setup.model_copy(update=changes)
        _configure_logs(self._setup)
        self._roots = _open_roots(self._setup)
        logger.debug("configured anew")

    def _start(self, order: JobOrder) -> None:
        def tell(event: Event) -> None:
            self._channel.send(Happened(job=order.id, event=event.model_dump(mode="json")))

        def pinned(weights_sha256: str) -> None:
            self._channel.send(Pinned(job=order.id, weights_sha256=weights_sha256))

        security = self._setup.security
        job = RunningJob(order, self._roots, security, self._pool, self._round, tell, pinned)
        self._jobs[order.id] = job
        name = f"job-{order.id}"
        threading.Thread(target=self._run, args=(job,), name=name, daemon=True).start()

    def _run(self, job: RunningJob) -> None:
        with log_context(job=job.order.id, segment=lambda: job.segment):
            ended = job.run()
        if ended.outcome == "failed" and device_fault() is not None:
            return  # it may be another job's fault; all of them end with this process
        with self._lock:
            self._ended = _sum(self._ended, _counts_of(job))
            self._jobs.pop(job.order.id, None)
        self._channel.send(ended)

    def _beat(self) -> Beat:
        with self._lock:
            jobs, counts = dict(self._jobs), self._ended
        if self._frames is not None:
            counts = _sum(counts, Counts(frame_sessions=self._frames.status.num_sessions))
        for job in jobs.values():
            counts = _sum(counts, _counts_of(job))
        return Beat(
            advance={name: job.advance for name, job in jobs.items()},
            progress={name: job.progress for name, job in jobs.items() if job.progress is not None},
            counts=counts,
            problem="" if self._frames is None else self._frames.problem,
        )


def _configure_logs(setup: Setup) -> None:
    logs.configure(setup.logs, worker=setup.name, device=setup.device)


def _open_roots(setup: Setup) -> Roots:
    security = setup.security
    return Roots(security.read_roots, security.write_roots, mount_points=setup.mount_points)


def _counts_of(job: RunningJob) -> Counts:
    return Counts(
        frames={job.order.config.model.name: job.num_frames} if job.num_frames else {},
        pixels=job.num_pixels,
        pixels_computed=job.num_pixels_computed,
        stage_seconds=dict(job.stage_seconds),
    )


def _sum(a: Counts, b: Counts) -> Counts:
    return Counts(
        frames=_added(a.frames, b.frames),
        pixels=a.pixels + b.pixels,
        pixels_computed=a.pixels_computed + b.pixels_computed,
        stage_seconds=_added(a.stage_seconds, b.stage_seconds),
        frame_sessions=a.frame_sessions + b.frame_sessions,
    )


def _added(a: Mapping[str, _Number], b: Mapping[str, _Number]) -> dict[str, _Number]:
    total = dict(a)
    for name, value in b.items():
        total[name] = total[name] + value if name in total else value
    return total


def main() -> int:
    """Entry point of the worker."""
    channel, setup = take_order(Setup)
    _configure_logs(setup)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The supervisor decides when to stop; a service manager signals every process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = EngineWorker(setup, channel)
    try:
        channel.send(worker.warm_up())
        worker.serve()
    except SrstreamError as error:
        kind, text = error_to_wire(error)
        channel.send(Ended(job="", outcome="failed", kind=kind, text=text))
        if isinstance(error, DeviceFaultError):
            # Threads of jobs may wait for the device, and so does what CUDA does at the exit.
            os._exit(1)
        return 1
    except EOFError:
        pass
    worker.close()
    # Threads of jobs may hang in libraries, and there is nothing to wait for.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
