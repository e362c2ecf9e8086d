"""Keeps encoders from giving this process real-time priority.

When run by root, SVT-AV1 gives the thread that opens it the highest real-time priority, which its
own threads and everything started afterwards inherit. Whatever then computes, child processes
included, leaves no time on its core for any other program.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TASKS = Path("/proc/self/task")

Scheduling = tuple[int, int]
"""A thread's scheduling policy and priority."""


@contextmanager
def same_scheduling() -> Iterator[None]:
    """Restore the scheduling of all threads when the block ends.

    New threads get the scheduling that the caller had. Where the system has no scheduling policies,
    this does nothing.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    mine = _scheduling_of(0)
    before = {thread: _scheduling_of(thread) for thread in _threads()}
    try:
        yield
    finally:
        for thread in [0, *_threads()]:
            wanted = before.get(thread, mine)
            with suppress(OSError):  # The thread has ended.
                if _scheduling_of(thread) != wanted:
                    policy, priority = wanted
                    os.sched_setscheduler(thread, policy, os.sched_param(priority))


def _scheduling_of(thread: int) -> Scheduling:
    try:
        return os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority
    except ProcessLookupError:
        return os.SCHED_OTHER, 0


def _threads() -> list[int]:
    """Return the ids of this process's threads; none where a confined process may not list them."""
    try:
        return [int(entry.name) for entry in _TASKS.iterdir()]
    except OSError:
        return []
