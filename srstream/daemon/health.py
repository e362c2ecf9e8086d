"""Looks after what the daemon needs: its folders, free space, and a queue that can be written.

A thread looks at the folders every two seconds, since a network mount that does not answer would
hold up the event loop. It starts when `start` is called, and ends with the process.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from srstream.daemon.folders.held import Sight
from srstream.daemon.folders.state import StateFolder
from srstream.daemon.reload import Configuration
from srstream.daemon.scheduler import Scheduler
from srstream.errors import FolderGoneError, JobError
from srstream.jobs.events import printable
from srstream.protocol.control import HealthInfo

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
_SILENT_SECONDS = 8.0
_PROBE_SECONDS = 5.0
_LOW_SHARE = 0.05
_MAX_NOTES = 20


class FolderNotes:
    """What happened to the folders, each once in the log, and kept for `health`."""

    def __init__(self) -> None:
        self._notes: deque[str] = deque(maxlen=_MAX_NOTES)
        self._last: dict[Path, str] = {}
        self._is_news = threading.Event()

    def add(self, path: Path, text: str) -> None:
        """Note what became of a folder; any thread may call this."""
        if self._last.get(path) == text:
            return
        self._last[path] = text
        self._is_news.set()
        logger.warning("%s", text)
        self._notes.append(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}")

    def take_news(self) -> bool:
        """Return whether anything was added since the last call."""
        is_news = self._is_news.is_set()
        self._is_news.clear()
        return is_news

    def clear(self) -> None:
        """Forget what was noted; what is wrong still is found again."""
        self._notes.clear()
        self._last.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._notes))


class Checks:
    """Says how the daemon is: as the scheduler finds it, and what was found out here."""

    def __init__(
        self,
        configuration: Configuration,
        scheduler: Scheduler,
        state: StateFolder,
        notes: FolderNotes,
    ) -> None:
        self._configuration, self._scheduler = configuration, scheduler
        self._state, self._notes = state, notes
        self.state_sight = Sight("same")
        """What the state folder's path led to at the last look."""
        self.state_fault = ""
        """Why the state folder cannot be used; set by the supervisor."""
        self._faults: list[str] = []
        self._looked_at = time.monotonic()
        self._probed_at, self._probe_fault = 0.0, ""

    def start(self) -> None:
        """Look at the folders from now on."""
        self._look()
        threading.Thread(target=self._keep_looking, name="folder-checks", daemon=True).start()

    def health(self) -> HealthInfo:
        """The daemon's condition."""
        health = self._scheduler.health()
        problems = dict.fromkeys((*health.problems, *self._problems()))
        return health.model_copy(
            update={
                "ok": health.ok and not problems,
                "problems": tuple(problems),
                "notes": (*health.notes, *self._notes),
            }
        )

    def probed_health(self) -> HealthInfo:
        """The daemon's condition, after the queue was written to; not more often than needed."""
        now = time.monotonic()
        if now - self._probed_at >= _PROBE_SECONDS:
            self._probed_at = now
            try:
                self._scheduler.queue.remember("probed", str(time.time()))
                self._probe_fault = ""
            except JobError as error:
                self._probe_fault = str(error)
        return self.health()

    def require_state(self) -> None:
        """Check that what is accepted now can be kept.

        Raises:
            FolderGoneError: the state folder is not there.
        """
        if self.state_fault:
            raise FolderGoneError(self.state_fault)

    def _problems(self) -> Iterator[str]:
        if self.state_fault:
            yield self.state_fault
        if self._probe_fault:
            yield self._probe_fault
        yield from self._faults
        silent = time.monotonic() - self._looked_at
        if silent > _SILENT_SECONDS:
            yield (
                f"the configured folders have not answered for {silent:.0f} s; one of them may be "
                "on a network mount whose server is gone."
            )

    def _keep_looking(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            try:
                self._look()
            except Exception:
                logger.exception("the folders cannot be looked at")

    def _look(self) -> None:
        roots = self._configuration.roots
        self.state_sight = self._state.look()
        faults = roots.look()
        self._faults = [*faults, *self._full([self._state.path, *roots.write_paths])]
        self._looked_at = time.monotonic()

    def _full(self, folders: list[Path]) -> Iterator[str]:
        """Yield what is wrong with the file systems of folders that take files."""
        seen = set()
        for folder in folders:
            try:
                device, space = os.stat(folder).st_dev, os.statvfs(folder)
            except OSError:
                continue  # said elsewhere
            if device in seen:
                continue
            seen.add(device)
            free, size = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
            shown = printable(folder)
            if space.f_flag & os.ST_RDONLY:
                yield f"{shown}: its file system is mounted read-only; mount it for writing."
            elif free < min(self._configuration.settings.jobs.low_space_bytes, _LOW_SHARE * size):
                yield f"{shown}: only {free / 1e6:.0f} MB are free; jobs wait until there is space."
            elif space.f_files and not space.f_favail:
                yield f"{shown}: its file system takes no more files; delete some."
