"""Starts an engine worker, listens to it, and replaces it when it dies."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from srstream.daemon.workers.devices import device_variables
from srstream.daemon.workers.link import (
    MAX_MESSAGE_BYTES,
    MESSAGE,
    Beat,
    Command,
    Exit,
    JobOrder,
    Ready,
    Setup,
    Start,
    WorkerMessage,
)
from srstream.media.output_checks import OutputTables
from srstream.protocol.control import JobProgress, WorkerInfo
from srstream.sandbox.child import Child, ended, packed, read_message, start_child

logger = logging.getLogger(__name__)

START_SECONDS = 300.0
"""Time that a worker has to warm up; to build an engine for a GPU takes minutes."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 15.0


@dataclass(slots=True)
class RunningOrder:
    """A job that a worker does, and how far it is."""

    order: JobOrder
    advance: int = 0
    advanced_at: float = field(default_factory=time.monotonic)
    progress: JobProgress | None = None


class EngineProcess:
    """One engine worker and its successors: one that dies is started again after a pause.

    Args:
        on_message: is called with each message of the worker, one after the other.
        on_death: is called with the jobs that the worker had when it died.
    """

    def __init__(
        self,
        name: str,
        device: str,
        make_setup: Callable[[str, str], Setup],
        on_message: Callable[[EngineProcess, WorkerMessage], None],
        on_death: Callable[[EngineProcess, list[JobOrder]], None],
    ) -> None:
        self.name, self.device = name, device
        self._make_setup = make_setup
        self._on_message, self._on_death = on_message, on_death
        self._child: Child | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.running: dict[str, RunningOrder] = {}
        self.is_ready = self.is_leaving = False
        self.engine = ""
        self.tables: OutputTables | None = None
        """What the first worker, or a successor, has said can be written."""
        self.fault = ""
        """The error with which the last worker ended."""
        self._problem = ""
        self.num_restarts = 0
        self.num_deaths_in_a_row = 0
        """Deaths between which no job advanced."""
        self._heard_at = self._started_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    def info(self) -> WorkerInfo:
        """The worker as clients see it."""
        alive = self._child is not None
        ready = "ready" if self.is_ready else "starting"
        return WorkerInfo(
            name=self.name,
            device=self.device,
            pid=self.pid,
            state="draining" if self.is_leaving and alive else ready if alive else "dead",
            num_jobs=len(self.running),
            num_restarts=self.num_restarts,
        )

    def problems(self) -> list[str]:
        """What is wrong with the worker; nothing if clients can rely on it."""
        if not self.is_ready:
            return [f"engine worker {self.name} is not ready{self.fault and f': {self.fault}'}"]
        return [self._problem] if self._problem else []

    async def live(self) -> None:
        """Start the worker, listen until it dies, start the next; until `leave` or cancelled."""
        try:
            while not self.is_leaving:
                reader = await self._start()
                await self._listen(reader)
                await self._bury()
                await self._pause()
        finally:
            self.kill()

    async def _pause(self) -> None:
        """Wait before the next start; longer after each death before which no job advanced."""
        if self.is_leaving:
            return
        self.num_restarts += 1
        self.num_deaths_in_a_row += 1
        seconds = _FIRST_PAUSE_SECONDS * 2 ** min(self.num_deaths_in_a_row - 1, 10)
        await asyncio.sleep(min(seconds, _LONGEST_PAUSE_SECONDS))

    def start_job(self, order: JobOrder) -> None:
        """Give the worker a job."""
        self.running[order.id] = RunningOrder(order)
        self.send(Start(order=order))

    def send(self, command: Command) -> None:
        """Send a command; if the worker has just died, nothing happens."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(packed(command))

    def leave(self) -> None:
        """Have the worker end without a successor."""
        self.is_leaving = True
        self.send(Exit())

    def kill(self) -> None:
        """Kill the worker."""
        if self._child is not None:
            self._child.kill()

    def stall(self, stall_seconds: float, silence_seconds: float) -> str | None:
        """Why the worker must be replaced; None if it need not be."""
        now = time.monotonic()
        if self._child is None:
            return None
        if not self.is_ready:
            late = now - self._started_at > START_SECONDS
            return f"was not ready after {START_SECONDS:.0f} s" if late else None
        if now - self._heard_at > silence_seconds:
            return f"said nothing for {now - self._heard_at:.0f} s"
        for job, running in self.running.items():
            if now - running.advanced_at > stall_seconds:
                return f"did not advance job {job} for {now - running.advanced_at:.0f} s"
        return None

    async def _start(self) -> asyncio.StreamReader:
        self._started_at = self._heard_at = time.monotonic()
        variables = device_variables(self.device, os.environ)
        setup = self._make_setup(self.name, self.device)
        self._child = start_child("srstream.daemon.workers.main", setup, variables=variables)
        connection = self._child.channel.connection
        reader, self._writer = await asyncio.open_connection(sock=connection)
        logger.info("engine worker started", extra={"worker": self.name, "pid": self.pid})
        return reader

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                message = MESSAGE.validate_json(await read_message(reader, MAX_MESSAGE_BYTES))
            except asyncio.IncompleteReadError:
                return
            except (EOFError, ConnectionError, ValueError) as error:
                logger.error("engine worker %s: cannot be understood (%s)", self.name, error)
                return
            self._heard_at = time.monotonic()
            if isinstance(message, Ready):
                self.is_ready, self.engine, self.tables = True, message.engine, message.tables
            elif isinstance(message, Beat):
                self._take_beat(message)
            self._on_message(self, message)

    def _take_beat(self, beat: Beat) -> None:
        self._problem = beat.problem
        for job, advance in beat.advance.items():
            running = self.running.get(job)
            if running is not None and advance != running.advance:
                running.advance, running.advanced_at = advance, time.monotonic()
                self.num_deaths_in_a_row = 0
        for job, progress in beat.progress.items():
            if job in self.running:
                self.running[job].progress = progress

    async def _bury(self) -> None:
        """Kill the worker if it still lives, and hand its jobs back."""
        child, self._child = self._child, None
        assert child is not None
        child.kill()
        status = await ended(child)
        if self._writer is not None:
            self._writer.transport.abort()
        self._writer, self.is_ready = None, False
        orders = [running.order for running in self.running.values()]
        self.running.clear()
        if not self.is_leaving:
            logger.warning(
                "engine worker %s ended (status %s)", self.name, status, extra={"worker": self.name}
            )
        self._on_death(self, orders)
