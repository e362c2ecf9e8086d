"""The inbox's journal: an SQLite file with a row for every file that was taken.

    new ──► submitted ──► done, cancelled
     └─────────┴──► failing ──► failed

A row is written before the step that it announces, so that after a crash the step is repeated with
the same key, output and place in the quarantine. A row holds the settings with which its file was
taken, so a reload does not affect that file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from srstream.daemon.folders.journals import adopt_rescued, carried_over
from srstream.daemon.inbox.files import Found, Signature
from srstream.daemon.settings import InboxFolder
from srstream.daemon.storage.database import set_aside
from srstream.errors import JobError
from srstream.sqlite import Schema, is_damage, open_journal

logger = logging.getLogger(__name__)

TakenState = Literal["new", "submitted", "failing", "done", "failed", "cancelled"]

# Names are bytes, as they need not be UTF-8.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS taken (
    key TEXT PRIMARY KEY,
    folder BLOB NOT NULL,
    path BLOB NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    output BLOB NOT NULL,
    state TEXT NOT NULL,
    job TEXT,
    reason TEXT,
    quarantined_as BLOB,
    entry TEXT,
    ended REAL
) STRICT;
CREATE INDEX IF NOT EXISTS taken_by_path ON taken (path);
CREATE INDEX IF NOT EXISTS taken_by_output ON taken (output);
CREATE INDEX IF NOT EXISTS taken_by_job ON taken (job);
CREATE INDEX IF NOT EXISTS taken_open ON taken (folder)
    WHERE state IN ('new', 'submitted', 'failing');
"""
_ADDED = {"entry": "TEXT", "ended": "REAL"}
"""Columns that the journals of older versions lack."""
_OPEN = "state IN ('new', 'submitted', 'failing')"
_ENDED = "state IN ('done', 'failed', 'cancelled')"


def _add_columns(database: sqlite3.Connection) -> None:
    """Add columns that a file lacks which was made before the numbers."""
    there = {row["name"] for row in database.execute("PRAGMA table_info(taken)")}
    for name, kind in _ADDED.items():
        if name not in there:
            database.execute(f"ALTER TABLE taken ADD COLUMN {name} {kind}")


_INBOX = Schema(0x73727377, "taken", (_SCHEMA, _add_columns))


@dataclass(frozen=True, slots=True)
class Taken:
    """A file that was taken: one row."""

    key: str
    """The key with which its job is submitted."""
    folder: Path
    path: Path
    signature: Signature
    attempt: int
    output: Path
    state: TakenState
    job: str | None
    reason: str | None
    quarantined_as: Path | None
    entry: InboxFolder | None
    """The settings with which it was taken; None: an older version took it."""
    row: int
    """The row's number, which grows with every file."""


class InboxJournal:
    """Reads and writes the journal's file, which one process holds open.

    Raises:
        JobError: it cannot be opened or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.notes: list[str] = []
        """What was damaged and what became of it, for `health`."""
        try:
            self._database = self._opened()
            self._complete()
            adopt_rescued(self._database, path)
        except (OSError, sqlite3.Error) as error:
            raise JobError(
                f"{path}: the watch folders' journal cannot be opened ({error}). Move it away to "
                "begin anew; files that lie in a watched folder are then taken once more."
            ) from error

    def close(self) -> None:
        self._database.close()

    def reopen(self, *, is_same_folder: bool) -> None:
        """Go on in the file that the path leads to now, with all rows; see `carried_over`.

        Raises:
            JobError: that cannot be.
        """
        try:
            self._database = carried_over(
                self._database,
                self._path,
                self._opened,
                is_same_folder=is_same_folder,
            )
            self._complete()
        except (OSError, sqlite3.Error) as error:
            raise JobError(f"{self._path}: the journal cannot go on there ({error}).") from error

    def _opened(self) -> sqlite3.Connection:
        """Open the journal, and an empty one in place of one that is damaged.

        Nothing is lost with it: the files are found again, and their keys lead to the same jobs.
        """
        try:
            return open_journal(self._path, _INBOX)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            aside = set_aside(self._path)
            self.notes.append(
                f"{self._path}: {error}; it was kept as {aside.name}, and the files in the watched "
                "folders are looked at again."
            )
            logger.error("%s", self.notes[-1])
            return open_journal(self._path, _INBOX)

    def add(self, entry: InboxFolder, found: Found, attempt: int, output: Path) -> Taken:
        """Record that a file is taken, before it is submitted."""
        key = _key(found, attempt)
        size, mtime_ns, inode = _columns(found.signature)
        self._database.execute(
            "INSERT INTO taken (key, folder, path, size, mtime_ns, inode, attempt, output, entry,"
            " state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'new')",
            (
                key,
                os.fsencode(entry.folder),
                os.fsencode(found.path),
                size,
                mtime_ns,
                inode,
                attempt,
                os.fsencode(output),
                entry.model_dump_json(exclude_unset=True, exclude_computed_fields=True),
            ),
        )
        return self.get(key)

    def get(self, key: str) -> Taken:
        """The row of a key, which must exist."""
        (taken,) = self._select("key = ?", key)
        return taken

    def change(self, key: str, state: TakenState, **columns: str | Path) -> Taken:
        """Change a row's state and further columns."""
        values: dict[str, Any] = {
            name: os.fsencode(value) if isinstance(value, Path) else value
            for name, value in columns.items()
        }
        if state in ("done", "failed", "cancelled"):
            values["ended"] = time.time()
        names = "".join(f", {name} = ?" for name in values)
        self._database.execute(
            f"UPDATE taken SET state = ?{names} WHERE key = ?", (state, *values.values(), key)
        )
        return self.get(key)

    def forget(self, keys: Sequence[str]) -> None:
        """Delete rows by their keys, some hundreds at most."""
        marks = ",".join("?" * len(keys))
        self._database.execute(f"DELETE FROM taken WHERE key IN ({marks})", tuple(keys))

    def latest(self, found: Found) -> Taken | None:
        """The newest row of exactly this file; None if it was never taken."""
        rows = self._select(
            "path = ? AND size = ? AND mtime_ns = ? AND inode = ? ORDER BY attempt DESC LIMIT 1",
            os.fsencode(found.path),
            *_columns(found.signature),
        )
        return rows[0] if rows else None

    def open_ones(self, folder: Path | None = None) -> list[Taken]:
        """The unfinished files of one folder, or of all, oldest first."""
        if folder is None:
            return self._select(f"{_OPEN} ORDER BY rowid")
        return self._select(f"folder = ? AND {_OPEN} ORDER BY rowid", os.fsencode(folder))

    def open_entries(self) -> list[InboxFolder]:
        """The settings with which the unfinished files were taken."""
        rows = self._database.execute(f"SELECT DISTINCT entry FROM taken WHERE {_OPEN}")
        entries = [_entry(row["entry"]) for row in rows]
        return [entry for entry in entries if entry is not None]

    def ended_ones(self, folder: Path, before: float, after_row: int, limit: int) -> list[Taken]:
        """Files of a folder that ended before a time, after a row's number, oldest first."""
        where = f"folder = ? AND {_ENDED} AND ended < ? AND rowid > ? ORDER BY rowid LIMIT ?"
        return self._select(where, os.fsencode(folder), before, after_row, limit)

    def has_successor(self, taken: Taken) -> bool:
        """Return whether a later version of the file has replaced the output."""
        where = "output = ? AND path = ? AND state = 'done' AND rowid > ? LIMIT 1"
        values = os.fsencode(taken.output), os.fsencode(taken.path), taken.row
        return bool(self._select(where, *values))

    def of_job(self, job: str) -> Taken | None:
        """The file of a job; None if the job is not the inbox's."""
        rows = self._select("job = ?", job)
        return rows[0] if rows else None

    def inputs_of(self, output: Path) -> set[Path]:
        """The inputs of an output; none if the inbox does not make it."""
        return {taken.path for taken in self._select("output = ?", os.fsencode(output))}

    def has_made(self, output: Path) -> bool:
        """Return whether the inbox has finished this output before."""
        return bool(self._select("output = ? AND state = 'done' LIMIT 1", os.fsencode(output)))

    def is_promised(self, target: Path) -> bool:
        """Return whether a place in the quarantine is reserved for a file."""
        where = "state = 'failing' AND quarantined_as = ? LIMIT 1"
        return bool(self._select(where, os.fsencode(target)))

    def _select(self, where: str, *values: object) -> list[Taken]:
        rows = self._database.execute(f"SELECT rowid AS row, * FROM taken WHERE {where}", values)
        return [_taken(row) for row in rows]

    def _complete(self) -> None:
        """Count files that ended under an older version as ended now."""
        self._database.execute(
            f"UPDATE taken SET ended = ? WHERE ended IS NULL AND {_ENDED}", (time.time(),)
        )


def _key(found: Found, attempt: int) -> str:
    about = (*_columns(found.signature), attempt)
    digest = hashlib.sha256(os.fsencode(found.path) + repr(about).encode()).hexdigest()
    return f"watch-{digest}"


def _columns(signature: Signature) -> tuple[int, int, str]:
    """The columns of a signature. An inode is text: unsigned, it may exceed SQLite's integers."""
    return signature.size, signature.mtime_ns, str(signature.inode)


@lru_cache(maxsize=256)
def _entry(text: str | None) -> InboxFolder | None:
    """The settings in a row; None without any, or if this version cannot read them."""
    if text is None:
        return None
    try:
        return InboxFolder.model_validate_json(text)
    except ValidationError:
        return None


def _taken(row: sqlite3.Row) -> Taken:
    place = row["quarantined_as"]
    return Taken(
        key=row["key"],
        folder=Path(os.fsdecode(row["folder"])),
        path=Path(os.fsdecode(row["path"])),
        signature=Signature(row["size"], row["mtime_ns"], int(row["inode"])),
        attempt=row["attempt"],
        output=Path(os.fsdecode(row["output"])),
        state=row["state"],
        job=row["job"],
        reason=row["reason"],
        quarantined_as=None if place is None else Path(os.fsdecode(place)),
        entry=_entry(row["entry"]),
        row=row["row"],
    )
