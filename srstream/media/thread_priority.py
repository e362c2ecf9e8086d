"""Keeps encoders from making this process a real-time one.

Run by root, SVT-AV1 gives the thread that opens it the highest real-time priority, which its own
threads and all that is started afterwards inherit. Whatever computes then, a child process among
it, leaves nothing of its core to anybody else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TASKS = Path("/proc/self/task")

Scheduling = tuple[int, int]
"""A thread's policy and priority."""


@contextmanager
def same_scheduling() -> Iterator[None]:
    """Within it threads may change their scheduling; afterwards each has its own back.

    Threads that are new have the one that the caller had. Where the system knows no scheduling
    policies, nothing is done.
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
            with suppress(OSError):  # It has ended.
                if _scheduling_of(thread) != wanted:
                    policy, priority = wanted
                    os.sched_setscheduler(thread, policy, os.sched_param(priority))


def _scheduling_of(thread: int) -> Scheduling:
    try:
        return os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority
    except ProcessLookupError:
        return os.SCHED_OTHER, 0


def _threads() -> list[int]:
    """Numbers of this process's threads; none where a confined process may not see them."""
    try:
        return [int(entry.name) for entry in _TASKS.iterdir()]
    except OSError:
        return []
