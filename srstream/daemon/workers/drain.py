"""Ends the engine workers without losing what their jobs have done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from srstream.daemon.workers.link import Stop
from srstream.daemon.workers.process import EngineProcess

_STOP_SECONDS, _LEAVE_SECONDS = 5.0, 6.0
_POLL_SECONDS = 0.1


async def drain(
    workers: Sequence[EngineProcess], seconds: float, tell: Callable[[int], None]
) -> None:
    """Let segments end within `seconds`, then stop all jobs and end the workers.

    Args:
        tell: is called ten times a second with the number of jobs that still run.
    """
    deadline = time.monotonic() + seconds
    _stop_jobs(workers, now=False)
    while num_running(workers) and time.monotonic() < deadline:
        tell(num_running(workers))
        await asyncio.sleep(_POLL_SECONDS)
    _stop_jobs(workers, now=True)
    await _until(lambda: not num_running(workers), _STOP_SECONDS)
    for worker in workers:
        worker.leave()
    # The workers tell clients of the data socket that the daemon ends.
    await _until(lambda: all(worker.pid is None for worker in workers), _LEAVE_SECONDS)
    for worker in workers:
        worker.kill()


def num_running(workers: Sequence[EngineProcess]) -> int:
    """The number of jobs that run on the workers."""
    return sum(len(worker.running) for worker in workers)


def _stop_jobs(workers: Sequence[EngineProcess], *, now: bool) -> None:
    for worker in workers:
        for job in worker.running:
            worker.send(Stop(job=job, now=now))


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds, for `seconds` at most."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
