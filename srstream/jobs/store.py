"""The job's folder: a lock, a SQLite journal and the finished segments.

The folder is next to the output (`.NAME.srstream`), on the same file system, so publishing is one
rename. A segment is encoded under a temporary name, fsynced, renamed and journaled, in this order.
Files that the journal does not name are deleted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sqlite3
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from srstream.errors import DamagedError, DiskFullError, JobError
from srstream.files import fsync_path, give_name, take_lock
from srstream.jobs.failpoints import failpoint
from srstream.jobs.publish import OpenFolder, identity, output_folder, part_name, publish
from srstream.media.types import SegmentFile
from srstream.sqlite import Schema, is_damage, is_disk_full, open_journal

_MAX_NAME_BYTES = 255
_DAMAGED = " Use --restart to start over."
_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS segment (
    number INTEGER PRIMARY KEY,
    file TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    pts BLOB NOT NULL,
    last_duration INTEGER NOT NULL,
    last_frame_hash TEXT NOT NULL,
    statistics TEXT NOT NULL
) STRICT;
"""


_JOB = Schema(0x7372736A, "segment", (_SCHEMA,))

_ALL_SEGMENTS = """
SELECT number, file, num_bytes, pts, last_duration, last_frame_hash FROM segment ORDER BY number
"""


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """A segment that is safely on disk; `last_frame_hash` is the hash of its last source frame."""

    number: int
    file: SegmentFile
    last_frame_hash: str


def job_directory(output: Path) -> Path:
    """Return the folder of the unfinished job of `output`; a long name is cut and hashed."""
    name = os.fsencode(f".{output.name}.srstream")
    if len(name) > _MAX_NAME_BYTES:
        digest = hashlib.sha256(name).hexdigest()[:16]
        name = name[: _MAX_NAME_BYTES - 40] + os.fsencode(f"-{digest}.srstream")
    return output.with_name(os.fsdecode(name))


@contextlib.contextmanager
def disk_errors(doing: str, place: Path, advice: str = "") -> Iterator[None]:
    """Turn a full disk into `DiskFullError`, whose message says that the job can be resumed."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"{place}: the disk became full while {doing}; nothing was published. "
                "Free some space and run the same command again: it resumes."
            ) from error
        kind = DamagedError if is_damage(error) else JobError
        raise kind(f"{place}: {doing} failed ({error}).{advice}") from error


class JobStore:
    """The folder of one job, held by an exclusive lock while open.

    Args:
        directory: where the folder is; None: next to the output.
        open_folder: opens the folder in which the output gets its name, for callers who must be
            sure which folder that is; None: it is opened by its path.
        fresh: begin with an empty journal.

    Raises:
        JobError: another process holds the job, or its journal is damaged.
    """

    def __init__(
        self,
        output: Path,
        *,
        directory: Path | None = None,
        open_folder: OpenFolder | None = None,
        fresh: bool = False,
    ) -> None:
        # Absolute: libav takes a relative name with a colon for a protocol.
        self.output = output.absolute()
        self.directory = job_directory(self.output) if directory is None else directory
        self._open_folder = open_folder
        with disk_errors("creating the job's folder", self.directory):
            with contextlib.suppress(FileExistsError):
                self.directory.mkdir(mode=0o700)
            self._lock = _open_lock(self.directory)
            is_ours = take_lock(self._lock)
        if not is_ours:
            self._lock.close()
            raise JobError(
                f"{output}: another srstream is working on this output. "
                "Wait for it or stop it first."
            )
        try:
            if fresh:
                for path in self.directory.glob("journal.sqlite*"):
                    path.unlink()
            with disk_errors("opening the journal", self.directory, _DAMAGED):
                self._database = open_journal(
                    self.directory / "journal.sqlite", _JOB, any_thread=True
                )
        except JobError:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the journal and the lock; the folder stays."""
        self._database.close()
        self._lock.close()

    def get(self, key: str) -> Any:
        """Return the value stored under `key`; None if there is none."""
        with disk_errors("reading the journal", self.directory, _DAMAGED):
            row = self._database.execute("SELECT value FROM job WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        """Store `value` (JSON) under `key`, durably."""
        with disk_errors("writing the journal", self.directory):
            self._database.execute(
                "INSERT OR REPLACE INTO job VALUES (?, ?)", (key, json.dumps(value))
            )

    def segments(self) -> list[SegmentRecord]:
        """Return the finished segments in order; a gap or a missing file ends the list."""
        records: list[SegmentRecord] = []
        with disk_errors("reading the journal", self.directory, _DAMAGED):
            rows = self._database.execute(_ALL_SEGMENTS).fetchall()
        for row in rows:
            number, name, num_bytes, pts_blob, last_duration, last_hash = row
            path = self.directory / name
            pts = array("q", pts_blob)
            intact = not pts or (path.is_file() and path.stat().st_size == num_bytes)
            if number != len(records) or not intact:
                break
            file = SegmentFile(path=path, pts=tuple(pts), last_duration=last_duration)
            records.append(SegmentRecord(number, file, last_hash))
        return records

    def forget(self) -> None:
        """Delete all segments and entries from the journal."""
        with disk_errors("clearing the journal", self.directory):
            self._database.execute("DELETE FROM job")
            self._database.execute("DELETE FROM segment")
        self.assembled_path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete rows and files beyond the last intact segment."""
        good = self.segments()
        names = {record.file.path.name for record in good}
        self._database.execute("DELETE FROM segment WHERE number >= ?", (len(good),))
        for path in self.directory.glob("segment-*"):
            if path.name not in names:
                path.unlink()

    def temporary_segment(self, number: int) -> Path:
        """Return the path at which segment `number` is encoded before it is committed."""
        return self.directory / f"segment-{number:06d}.part"

    def commit_segment(
        self,
        number: int,
        encoded: SegmentFile | None,
        suffix: str,
        last_frame_hash: str,
    ) -> SegmentRecord:
        """Make an encoded segment durable, then journal it; None is a segment without frames."""
        name = f"segment-{number:06d}{suffix}"
        path = self.directory / name
        num_bytes = 0
        with disk_errors(f"storing segment {number}", self.directory):
            failpoint("segment.encoded")
            if encoded is not None:
                fsync_path(encoded.path)
                failpoint("segment.fsynced")
                num_bytes = encoded.path.stat().st_size
                give_name(encoded.path, path, overwrite=True)
                fsync_path(self.directory)
                failpoint("segment.renamed")
            pts = () if encoded is None else encoded.pts
            last_duration = 0 if encoded is None else encoded.last_duration
            self._database.execute(
                "INSERT OR REPLACE INTO segment VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    number,
                    name,
                    num_bytes,
                    array("q", pts).tobytes(),
                    last_duration,
                    last_frame_hash,
                    "{}",  # the column of statistics that earlier versions wrote
                ),
            )
        failpoint("segment.journaled")
        return SegmentRecord(number, SegmentFile(path, pts, last_duration), last_frame_hash)

    @property
    def assembled_path(self) -> Path:
        """The path at which the output is assembled before it is published."""
        return self.directory / f"output{self.output.suffix}"

    def publish(self, *, overwrite: bool) -> None:
        """Name the assembled output atomically; replace an existing file only if `overwrite`.

        Raises:
            JobError: the output's name was taken in the meantime; the job is kept.
        """
        with disk_errors("publishing the output", self.output):
            fsync_path(self.assembled_path)
            failpoint("output.fsynced")
            with output_folder(self.output, self._open_folder) as folder:
                publish(
                    self.assembled_path,
                    self.output,
                    folder,
                    part_name=part_name(self.directory),
                    before_naming=self._note_publishing,
                    overwrite=overwrite,
                )
        failpoint("output.published")

    def _note_publishing(self, file: list[int]) -> None:
        """Journal which file gets the name, so a run after a kill recognizes its own output."""
        self.put("publishing", file)
        self.put("state", "publishing")
        failpoint("output.publishing")

    def was_published(self) -> bool:
        """Return whether a run killed while publishing had already given the output its name."""
        if self.get("state") != "publishing":
            return False
        with output_folder(self.output, self._open_folder) as folder:
            return identity(self.output.name, folder) == self.get("publishing")

    def remove(self) -> None:
        """Delete the job's folder; the lock goes with it."""
        self.close()
        with (
            contextlib.suppress(OSError),
            output_folder(self.output, self._open_folder) as folder,
        ):
            os.unlink(part_name(self.directory), dir_fd=folder)
        shutil.rmtree(self.directory, ignore_errors=True)
        failpoint("job.done")


def _open_lock(directory: Path) -> BinaryIO:
    """Open the job's lock file for locking.

    Raises:
        JobError: the folder or the file is a link, which would redirect the job's work.
    """
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise JobError(
            f"{directory}: this is a link or a file, not a job's folder; nothing was touched. "
            "Remove it and run the same command again."
        ) from error
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        return os.fdopen(os.open("lock", flags, 0o600, dir_fd=folder), "ab")
    finally:
        os.close(folder)
