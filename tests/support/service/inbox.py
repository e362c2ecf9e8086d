"""A real inbox over real folders and the real queue, whose jobs the tests end themselves."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from srstream.config import JobConfig, ScaleConfig
from srstream.daemon.inbox.folders import Inbox
from srstream.daemon.queue import JobQueue
from srstream.daemon.settings import InboxFolder
from srstream.errors import UsageError
from srstream.protocol.control import JobInfo, Submit

SETTLE_SECONDS = 0.02
RECEIPT = {"ok": True, "num_frames_in": 3}


class Service:
    """The queue of a daemon with an inbox folder; `restart` is what a new daemon begins with."""

    def __init__(self, home: Path, settle: float = SETTLE_SECONDS, **settings: Any) -> None:
        self.home, self._settle = home, settle
        self.folder, self.output = home / "in", home / "out"
        self.quarantine = home / "quarantine"
        self.folder.mkdir()
        self.entry = InboxFolder(
            folder=self.folder,
            output=self.output,
            quarantine=self.quarantine,
            settle_seconds=settle,
            **settings,
        )
        self.queue = JobQueue(home / "jobs.sqlite")
        self.refusal: Exception | None = None
        self.requests: list[Submit] = []
        self.num_released = 0
        self.restart()

    def restart(self, *entries: InboxFolder) -> None:
        self.inbox = Inbox(
            entries or [self.entry],
            self.submit,
            self.status,
            self.home / "w.sqlite",
            self.released,
            lambda changes: ScaleConfig(**changes.get("scaling", {})),
        )

    def released(self) -> None:
        self.num_released += 1

    async def submit(self, request: Submit) -> JobInfo:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        assert request.output is not None
        job, _ = self.queue.add(
            Path(request.input),
            Path(request.output),
            JobConfig(),
            names_model=False,
            overwrite=request.overwrite,
            priority=request.priority,
            submitter="watch",
            key=request.key,
            max_queued=100,
        )
        return job.info()

    def status(self, job: str) -> JobInfo | None:
        try:
            return self.queue.get(job).info()
        except UsageError:
            return None

    def another(self, name: str, **settings: Any) -> InboxFolder:
        """Make another inbox folder beside the first."""
        (self.home / name).mkdir()
        changes = {"folder": self.home / name, "output": self.home / f"{name}-out", **settings}
        return self.entry.model_copy(update=changes)

    def put(self, name: str, content: bytes = b"a video") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def settle(self) -> None:
        """Look at the folder again and again, for as long as a file takes to settle."""
        for _ in range(2):
            asyncio.run(self.inbox.look(self.folder))
            time.sleep(self._settle)
        asyncio.run(self.inbox.look(self.folder))

    def end(self, state: Any, **columns: Any) -> None:
        """End every queued job, and tell the inbox."""
        for job in self.queue.jobs(("queued",)):
            if state == "done":
                job.output.write_bytes(b"a larger video")
                columns["result"] = {"receipt": RECEIPT}
            self.queue.change(job.id, state, **columns)
            asyncio.run(self.inbox.job_ended(self.queue.get(job.id).info()))

    def jobs(self) -> list[tuple[str, str]]:
        """Input and output of each job, relative, the oldest first."""
        found = self.queue.jobs()[::-1]
        return [
            (str(job.input.relative_to(self.folder)), str(job.output.relative_to(self.output)))
            for job in found
        ]

    def files(self) -> set[str]:
        return {str(p.relative_to(self.home)) for p in self.home.rglob("*") if p.is_file()} - {
            f"{name}.sqlite{suffix}"
            for name in ("w", "jobs", "backup/jobs")
            for suffix in ("", "-wal", "-shm")
        }
