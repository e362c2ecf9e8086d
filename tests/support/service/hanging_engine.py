"""Imported by a process of its own: OpenVINO's tiles are never done, and the stall watch is quick.

Only in jobs, not where a daemon warms up; and once only if the variable HANG_ONCE names a file,
which is then made.
"""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import Any

from srstream.daemon.workers import job as worker_job
from srstream.engines.openvino import engine as openvino
from srstream.engines.openvino.session import OpenVinoSession
from srstream.jobs import job
from srstream.jobs.context import JobContext

STALL_SECONDS = 2.0


class NeverDone:
    """A request that is started and does nothing."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)

    def start_async(self) -> None:
        pass

    def wait_for(self, milliseconds: int) -> bool:
        return False

    def wait(self) -> None:
        threading.Event().wait()


class HangingSession(OpenVinoSession):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        once = os.environ.get("HANG_ONCE")
        is_job = arguments[-1] is not None
        if is_job and not (once and Path(once).exists()):
            self._idle: list[Any] = [NeverDone(request) for request in self._idle]
            if once:
                Path(once).touch()


openvino.OpenVinoSession = HangingSession  # type: ignore[attr-defined]
for module in (job, worker_job):
    module.JobContext = functools.partial(  # type: ignore[attr-defined]
        JobContext, stall_seconds=STALL_SECONDS
    )
