"""Decides what the daemon does while disk space is short, and notices when there is space again.

Two jobs that fit on a disk one after the other may fill it together, and then neither can end. So
after a job has filled the disk, jobs run one at a time. A job that does not fit even then takes the
space of those that come after it: their unfinished work is deleted, and they begin again later.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from srstream.daemon.storage.rows import QueuedJob
from srstream.errors import JobError

logger = logging.getLogger(__name__)

_ALONE_SECONDS = 600.0
"""Time after a job has filled the disk in which jobs run one at a time."""

_WORTH_BYTES = 64 << 10
"""Size of unfinished work that is worth deleting."""

_SMALLEST_GAIN_BYTES, _LARGEST_GAIN_BYTES, _GAIN_SHARE = 1 << 20, 256 << 20, 0.005
"""By how much free space must grow to count as given back: a share of the disk, within bounds."""


class PendingWrites:
    """Writes to the queue that its disk has refused; they are repeated, in order, until done."""

    def __init__(self) -> None:
        self._writes: deque[Callable[[], None]] = deque()
        self.problem: str | None = None
        """Why the queue cannot be written, or soon will not be; None if all is well."""

    def do(self, write: Callable[[], None]) -> None:
        """Write now, or later if the disk refuses it or others wait."""
        if not self._writes:
            try:
                write()
                return
            except JobError as error:
                self.note(str(error))
        self._writes.append(write)

    def retry(self, *, has_room: bool) -> None:
        """Write what waits, as far as possible.

        Args:
            has_room: whether the queue has its reserve; only then is the problem over.
        """
        try:
            while self._writes:
                self._writes[0]()
                self._writes.popleft()
        except JobError as error:
            self.note(str(error))
            return
        if has_room and self.problem is not None:
            self.problem = None
            logger.info("the queue has room on its disk again")

    def note(self, problem: str) -> None:
        """Note why the queue cannot be written."""
        if self.problem is None:
            logger.error("%s", problem)
        self.problem = problem


class Shortage:
    """Knows which jobs wait for disk space, and how much there was when they began to wait."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._waiting: dict[str, Path] = {}
        """The folder of the output of each job that waits for space."""
        self._too_large: set[str] = set()
        """Jobs that did not fit although no other job held space."""
        self._free: dict[Path, int] = {}
        self._started_alone: set[str] = set()
        self._filled_at: float | None = None
        self._text = ""

    @property
    def runs_alone(self) -> bool:
        """Whether jobs must run one at a time, because they filled the disk together."""
        return self._filled_at is not None

    @property
    def problem(self) -> str | None:
        """What `health` says; None while no job waits for space."""
        if not self._waiting:
            return None
        return f"{len(self._waiting)} jobs wait for disk space: {self._text}"

    def note(self, job: QueuedJob, text: str, *, is_full: bool) -> None:
        """Note that a job failed for lack of space.

        Args:
            is_full: whether it filled the disk; otherwise it was refused before.
        """
        if not self._waiting:
            logger.warning("%s Jobs wait until there is space.", text, extra={"job": job.id})
        if is_full:
            self._filled_at = time.monotonic()
        self._waiting[job.id] = job.output.parent
        self._text = text
        self.look()

    def started(self, job_id: str) -> None:
        """Note that a job has started."""
        (self._started_alone.add if self.runs_alone else self._started_alone.discard)(job_id)

    def may_go_on(self, job_id: str) -> bool:
        """Return whether a job that filled the disk beside others may now try it alone."""
        return self.runs_alone and job_id not in self._started_alone

    def give_up_for(
        self, job: QueuedJob, others: Iterable[QueuedJob], work_dir: Path
    ) -> QueuedJob | None:
        """Return the waiting job whose unfinished work must make room for `job`; None if none must.

        It is the last in line of those behind `job`, or one that does not fit anyway.
        """
        holding = [
            other
            for other in others
            if other.id != job.id and _size(work_dir / other.id) >= _WORTH_BYTES
        ]
        if not holding:
            self._too_large.add(job.id)
        if job.id in self._too_large:
            return None
        weaker = [
            other for other in holding if other.id in self._too_large or _turn(other) > _turn(job)
        ]
        return max(weaker, key=_turn, default=None)

    def look(self) -> None:
        """Measure free space again, after the daemon itself has taken or freed some."""
        self._free = {folder: _free_bytes(folder) for folder in self._folders()}

    def ended(self, job_id: str) -> set[str]:
        """Note that a job has ended; returns the jobs that waited and may try again."""
        self._waiting.pop(job_id, None)
        self._too_large.discard(job_id)
        self._started_alone.discard(job_id)
        self.look()
        return set(self._waiting)

    def given_back(self) -> set[str]:
        """Return the jobs that may try again because somebody has given space back."""
        if not self._waiting:
            if time.monotonic() - (self._filled_at or 0.0) > _ALONE_SECONDS:
                self._filled_at = None
            return set()
        if not any(self._has_grown(folder) for folder in self._folders()):
            return set()
        logger.info("there is disk space again; %d jobs go on", len(self._waiting))
        waiting = set(self._waiting)
        self._waiting.clear()
        self._too_large.clear()
        self._filled_at = None
        return waiting

    def _folders(self) -> set[Path]:
        return {self._state_dir, *self._waiting.values()}

    def _has_grown(self, folder: Path) -> bool:
        try:
            size = shutil.disk_usage(folder).total
        except OSError:
            return False
        gain = min(max(size * _GAIN_SHARE, _SMALLEST_GAIN_BYTES), _LARGEST_GAIN_BYTES)
        return _free_bytes(folder) >= self._free.get(folder, 0) + gain


def _turn(job: QueuedJob) -> tuple[int, str]:
    """A job's place in line: a smaller one goes first."""
    return -job.priority, job.id


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _size(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except OSError:
        return 0
