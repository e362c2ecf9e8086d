"""Named moments at which a test kills the process, to prove that a job survives it."""

from __future__ import annotations

import os
import signal
from typing import Final

STEPS: Final = (
    "segment.encoded",
    "segment.fsynced",
    "segment.renamed",
    "segment.journaled",
    "output.assembled",
    "output.fsynced",
    "output.publishing",
    "output.published",
    "job.done",
)
"""Every step of the journal, in the order in which a job reaches them."""

VARIABLE: Final = "SRSTREAM_FAILPOINT"

_hits: dict[str, int] = {}


def failpoint(step: str) -> None:
    """Kill this process with SIGKILL if `SRSTREAM_FAILPOINT` is `step` or `step:n` (n-th pass)."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    name, _, count = wanted.partition(":")
    if name != step:
        return
    _hits[step] = _hits.get(step, 0) + 1
    if _hits[step] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
