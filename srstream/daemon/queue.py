"""The queue: an SQLite file with every job that was accepted and is not forgotten yet.

Only the supervisor writes it. A change of a job and its event are one transaction (WAL, synchronous
FULL), so whatever a client has been told survives a power cut.

    queued ──► running ──► done
      ▲  ▲        │ ├────► failed, quarantined ──(resume)──► queued
      │  └────────┘ └────► cancelled
      └── paused ◄─┘
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from srstream.config import JobConfig
from srstream.daemon.storage.database import QueueDatabase, checksum
from srstream.daemon.storage.rows import EventKind, QueuedJob, event_of, job_of, new_job_id
from srstream.errors import BusyError, DiskFullError, JobError, UsageError
from srstream.protocol.control import FINAL_STATES, Event, JobState
from srstream.sqlite import is_disk_full

_MAX_PAUSE_SECONDS = 300.0
"""Longest rest of a pause that is kept when the daemon starts again."""

MAX_EVENTS = 200_000
"""Number of events that are kept; older ones are deleted."""


class JobQueue:
    """Reads and writes the queue's file, which it holds open.

    Raises:
        JobError: it cannot be opened or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._files = QueueDatabase(path)
            self._database = self._files.main
            self._due = self._pauses_left()
        except (OSError, sqlite3.Error) as error:
            if is_disk_full(error):
                raise DiskFullError(
                    f"{path.parent}: the disk is full, so the queue cannot be opened; free some "
                    "space."
                ) from error
            raise JobError(f"{path}: the queue cannot be opened ({error}).") from error
        self.notes = self._files.notes
        """What happened and is over, such as a damaged file restored, for `health`."""
        self.note = self._files.note

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._files.close()

    def reopen(self, *, is_same_folder: bool) -> None:
        """Go on in the file that the path leads to now, with all jobs; see `carried_over`.

        Raises:
            JobError: that cannot be.
        """
        try:
            self._files.reopen(is_same_folder=is_same_folder)
            self._database = self._files.main
        except (OSError, sqlite3.Error) as error:
            raise JobError(f"{self.path}: the queue cannot go on there ({error}).") from error

    # --- jobs --------------------------------------------------------------------------------

    def add(
        self,
        source: Path,
        output: Path,
        config: JobConfig,
        *,
        names_model: bool,
        overwrite: bool,
        priority: int,
        submitter: str,
        key: str | None,
        max_queued: int,
        max_queued_of_client: int | None = None,
    ) -> tuple[QueuedJob, Event | None]:
        """Add a job; for a key that is known, return the first job with it and no event.

        Raises:
            BusyError: the queue is full, or an unfinished job has the same output.
        """
        if key is not None and (row := self._row("key = ?", key)) is not None:
            return job_of(row), None
        if not self.has_room():
            raise DiskFullError(
                f"{self.path.parent}: the disk is nearly full, so no job is accepted; free some "
                "space, or cancel jobs."
            )
        with self._transaction():
            waiting = "state IN ('queued', 'running', 'paused')"
            if self._count(waiting) >= max_queued:
                raise BusyError(f"the queue is full: {max_queued} jobs wait. Try again later.")
            most = max_queued_of_client
            if most is not None and self._count(f"{waiting} AND submitter = ?", submitter) >= most:
                raise BusyError(f"{submitter} has {most} jobs here, the most allowed; try later.")
            if (row := self._row(f"output = ? AND {waiting}", str(output))) is not None:
                raise BusyError(
                    f"{output}: job {row['id']} is about to write this file; choose another "
                    "output, or cancel that job."
                )
            now = time.time()
            job_id = new_job_id(now, self._newest_id())
            self._files.write(
                "INSERT INTO job (id, key, state, input, output, overwrite, config, names_model,"
                " priority, submitter, created) VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job_id,
                    key,
                    str(source),
                    str(output),
                    int(overwrite),
                    config.model_dump_json(),
                    int(names_model),
                    priority,
                    submitter,
                    now,
                ),
            )
            self._seal(job_id)
            event = self._tell(job_id, "state", {"state": "queued"})
        return self.get(job_id), event

    def get(self, job_id: str) -> QueuedJob:
        """The job with an id.

        Raises:
            UsageError: no job has this id.
        """
        row = self._row("id = ?", job_id)
        if row is None:
            raise UsageError(f"{job_id}: no such job; `srstream jobs` lists those there are.")
        return job_of(row)

    def with_key(self, key: str) -> QueuedJob | None:
        """The job that was submitted with a key; None if there is none."""
        row = self._row("key = ?", key)
        return None if row is None else job_of(row)

    def jobs(
        self, states: Sequence[JobState] = (), *, limit: int = 1000, before: str | None = None
    ) -> list[QueuedJob]:
        """Jobs of these states (none: of all), the newest first; `before` continues a list."""
        where, values = ["1"], list[Any]()
        if states:
            where.append(f"state IN ({','.join('?' * len(states))})")
            values += states
        if before is not None:
            where.append("id < ?")
            values.append(before)
        rows = self._database.execute(
            f"SELECT * FROM job WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?",
            (*values, limit),
        )
        return [job_of(row) for row in rows]

    def unfinished_with_model(self, name: str) -> str | None:
        """The id of a job that has not ended and uses a model; None if there is none.

        One that has not begun and names no model will use what is the default then.
        """
        row = self._row(
            "state IN ('queued', 'running', 'paused') AND (names_model OR started IS NOT NULL)"
            " AND json_extract(config, '$.model.name') = ?",
            name,
        )
        return None if row is None else str(row["id"])

    def next_jobs(
        self, limit: int, *, begun_first: bool = False, most_of_client: int | None = None
    ) -> list[QueuedJob]:
        """Jobs that may start now, in the order in which they should start.

        Args:
            begun_first: whether those that have segments go first, since they end sooner.
            most_of_client: how many jobs of one client may run; None: any number.
        """
        now = time.monotonic()
        rows = self._database.execute(
            "SELECT id, submitter FROM job WHERE state = 'queued' ORDER BY"
            f"{' num_segments_done > 0 DESC,' if begun_first else ''} priority DESC, rowid"
        )
        found, num_running = list[QueuedJob](), Counter(self._num_running())
        for job_id, submitter in rows:
            if len(found) == limit:
                break
            is_full = most_of_client is not None and num_running[submitter] >= most_of_client
            if not is_full and self._due.get(job_id, 0.0) <= now:
                num_running[submitter] += 1
                found.append(self.get(job_id))
        return found

    def _num_running(self) -> dict[str, int]:
        """Number of running jobs by submitter."""
        question = "SELECT submitter, count(*) FROM job WHERE state = 'running' GROUP BY submitter"
        return dict(self._database.execute(question).fetchall())

    def hurry(self, job_ids: Iterable[str]) -> None:
        """Let jobs start although their pause is not over."""
        for job_id in job_ids:
            self._due.pop(job_id, None)

    def counts(self) -> dict[str, int]:
        """Number of jobs by state."""
        return dict(self._database.execute("SELECT state, count(*) FROM job GROUP BY state"))

    def change(
        self,
        job_id: str,
        state: JobState,
        data: dict[str, Any] | None = None,
        *,
        pause_seconds: float | None = None,
        **columns: Any,
    ) -> Event:
        """Change a job's state and further columns, and record the event.

        Args:
            pause_seconds: how long it must not start. It is a span, so the wall clock, which may
                jump, has no part in it; `retry_at` is for display.
        """
        if state in FINAL_STATES:
            # Where the wall clock was set back, no duration becomes negative.
            started = self.get(job_id).started or 0.0
            columns.setdefault("ended", max(time.time(), started))
        if pause_seconds is not None:
            columns["retry_at"] = time.time() + pause_seconds
        with self._transaction():
            self._update(job_id, state=state, **columns)
            shown = {name: columns[name] for name in ("error", "retry_at") if columns.get(name)}
            event = self._tell(job_id, "state", {"state": state, **shown, **(data or {})})
        self._due.pop(job_id, None)
        if pause_seconds is not None:
            self._due[job_id] = time.monotonic() + pause_seconds
        return event

    def update(self, job_id: str, **columns: Any) -> None:
        """Set columns without an event."""
        with self._transaction():
            self._update(job_id, **columns)

    def tell(self, job_id: str | None, kind: EventKind, data: dict[str, Any]) -> Event:
        """Record an event."""
        with self._transaction():
            return self._tell(job_id, kind, data)

    def segment_done(self, job_id: str, num_done: int, num_segments: int) -> Event:
        """Record that a segment is on disk, which clears the counts of failures before it."""
        with self._transaction():
            self._update(
                job_id,
                num_segments_done=num_done,
                num_segments=num_segments,
                failures=0,
                crashes=0,
            )
            return self._tell(
                job_id, "segment", {"num_done": num_done, "num_segments": num_segments}
            )

    def forget_old(self, before: float) -> int:
        """Delete jobs that ended before a time, and events beyond `MAX_EVENTS`.

        Returns the number of jobs deleted.
        """
        with self._transaction():
            marks = ",".join("?" * len(FINAL_STATES))
            gone = self._files.write(
                f"DELETE FROM job WHERE state IN ({marks}) AND ended < ?", (*FINAL_STATES, before)
            ).rowcount
            self._files.write("DELETE FROM event WHERE seq <= ?", (self.last_seq - MAX_EVENTS,))
        return gone

    def pause_left(self, job_id: str) -> float | None:
        """How many seconds a job must still wait; None if it may start."""
        left = self._due.get(job_id, 0.0) - time.monotonic()
        return left if left > 0 else None

    def has_room(self) -> bool:
        """Return whether the queue has its reserve of disk space, filled again if possible."""
        return self._files.has_room()

    @property
    def problem(self) -> str | None:
        """What is wrong with the queue's files; None if nothing is."""
        return self._files.problem

    def _pauses_left(self) -> dict[str, float]:
        """When, by the monotonic clock, each job may start whose pause began in an earlier run."""
        now, there = time.time(), time.monotonic()
        rows = self._database.execute(
            "SELECT id, retry_at FROM job WHERE state = 'queued' AND retry_at > ?", (now,)
        )
        # After a jump of the wall clock the rest may be days.
        return {row["id"]: there + min(row["retry_at"] - now, _MAX_PAUSE_SECONDS) for row in rows}

    # --- events ------------------------------------------------------------------------------

    @property
    def last_seq(self) -> int:
        """Sequence number of the newest event; 0 before the first."""
        row = self._database.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = 'event'"
        ).fetchone()
        return 0 if row is None else int(row[0])

    def events_after(self, after: int, job_id: str | None, limit: int) -> list[Event]:
        """Recorded events after the sequence number `after`, oldest first."""
        where = "" if job_id is None else "AND job = ?"
        values = (after, limit) if job_id is None else (after, job_id, limit)
        rows = self._database.execute(
            f"SELECT * FROM event WHERE seq > ? {where} ORDER BY seq LIMIT ?", values
        )
        return [event_of(row) for row in rows]

    # --- settings ----------------------------------------------------------------------------

    def setting(self, name: str) -> str | None:
        """A value that the daemon has stored under a name, such as the default model."""
        row = self._database.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def remember(self, name: str, value: str) -> None:
        """Store a value under a name."""
        with self._transaction():
            self._files.write("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run the block as one transaction; a full disk raises `DiskFullError`."""
        try:
            try:
                self._files.begin()
                yield
                self._files.commit()
            except BaseException:
                self._files.roll_back()
                raise
        except sqlite3.Error as error:
            if is_disk_full(error):
                raise DiskFullError(
                    f"{self.path}: the disk is full; nothing was lost, and nothing new can be "
                    "kept until there is space."
                ) from error
            raise JobError(f"{self.path}: the queue cannot be written ({error}).") from error

    # --- rows --------------------------------------------------------------------------------

    def _row(self, where: str, *values: Any) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._database.execute(
            f"SELECT * FROM job WHERE {where} LIMIT 1", values
        ).fetchone()
        return row

    def _count(self, where: str, *values: Any) -> int:
        question = f"SELECT count(*) FROM job WHERE {where}"
        return int(self._database.execute(question, values).fetchone()[0])

    def _newest_id(self) -> str:
        return str(self._database.execute("SELECT max(id) FROM job").fetchone()[0] or "")

    def _update(self, job_id: str, **columns: Any) -> None:
        names = ", ".join(f"{name} = ?" for name in columns)
        values = (json.dumps(v) if isinstance(v, dict) else v for v in columns.values())
        self._files.write(f"UPDATE job SET {names} WHERE id = ?", (*values, job_id))
        self._seal(job_id)

    def _seal(self, job_id: str) -> None:
        """Give a job's row the checksum of its new content."""
        if (row := self._row("id = ?", job_id)) is not None:
            self._files.write("UPDATE job SET checksum = ? WHERE id = ?", (checksum(row), job_id))

    def _tell(self, job_id: str | None, kind: EventKind, data: dict[str, Any]) -> Event:
        now = time.time()
        cursor = self._files.write(
            "INSERT INTO event (time, job, kind, data) VALUES (?, ?, ?, ?)",
            (now, job_id, kind, json.dumps(data)),
        )
        assert cursor.lastrowid is not None
        return Event(seq=cursor.lastrowid, time=now, job=job_id, kind=kind, data=data)
