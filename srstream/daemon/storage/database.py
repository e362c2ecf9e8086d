"""The queue's database and its replica, of which one may be lost without losing a job.

Every transaction is written to both before a client is answered. A number that grows with each
transaction says at the start whether a file lacks what the other one has, as it does after its
`-wal` file was lost.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from srstream.daemon.folders.journals import adopt_rescued, carried_over
from srstream.daemon.storage.reserve import Reserve
from srstream.daemon.storage.schema import QUEUE
from srstream.errors import QueueDamagedError
from srstream.files import fsync_path, give_name
from srstream.sqlite import NewerFileError, is_damage, open_journal

logger = logging.getLogger(__name__)

_RENEW_SECONDS = 10.0
_MAX_NOTES = 20
_BUMP = (
    "INSERT INTO setting VALUES ('revision', '1') ON CONFLICT (name) DO UPDATE"
    " SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT)"
)

Statement = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class _Found:
    """What lies at a path where a database should be."""

    kind: Literal["missing", "damaged", "sound"]
    reason: str = ""
    database: sqlite3.Connection | None = None
    """The open database; None unless it is sound."""
    revision: int = -1


class QueueDatabase:
    """Both files, open. Reads go to `main`; writes go through `write` between `begin` and `end`.

    Args:
        path: the database; its replica is `backup/` beside it.

    Raises:
        QueueDamagedError: a file is damaged, and there is no sound one to restore it from.
        OSError, sqlite3.Error: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._replica_path = path, path.parent / "backup" / path.name
        self.notes: deque[str] = deque(maxlen=_MAX_NOTES)
        """What happened and is over, for people."""
        self._statements: list[Statement] = []
        self._replica: sqlite3.Connection | None = None
        self._renewed_at = 0.0
        self._is_behind = False
        is_current = self._restore()
        self.main = open_journal(path, QUEUE)
        has_more = adopt_rescued(self.main, path)
        self._reserve = Reserve(self.main, path)
        self._open_replica(is_current=is_current and not has_more)

    def close(self) -> None:
        """Close both files. The replica is then a whole backup, unless its disk is full."""
        if self._is_behind:
            self._renew()
        self.main.close()
        if self._replica is not None:
            self._replica.close()

    def reopen(self, *, is_same_folder: bool) -> None:
        """Go on in the file that the path leads to now, with all rows; see `carried_over`.

        Raises:
            OSError, sqlite3.Error: that cannot be.
        """
        self.main = carried_over(
            self.main, self._path, self._opened_here, is_same_folder=is_same_folder
        )
        self._reserve = Reserve(self.main, self._path)
        self._renew()

    def _opened_here(self) -> sqlite3.Connection:
        """Open the file at the path, and an empty one in place of one that is damaged."""
        found = _examined(self._path)
        if found.kind == "damaged":
            self._set_aside(self._path, found, "the jobs are kept in a new file")
        return found.database or open_journal(self._path, QUEUE)

    # --- writing -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a transaction."""
        self._statements.clear()
        self.main.execute("BEGIN IMMEDIATE")
        self.write(_BUMP)

    def write(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Execute a statement that changes something, in the transaction that has begun."""
        self._statements.append((statement, tuple(values)))
        return self.main.execute(statement, values)

    def commit(self) -> None:
        """End the transaction in both files."""
        self.main.execute("COMMIT")
        if self._replica is None or self._is_behind:
            return
        try:
            self._replica.execute("BEGIN IMMEDIATE")
            for statement, values in self._statements:
                self._replica.execute(statement, values)
            self._replica.execute("COMMIT")
        except sqlite3.Error as error:
            self._is_behind = True
            logger.error("%s: the replica cannot be written (%s)", self._replica_path, error)

    def roll_back(self) -> None:
        """Undo the transaction."""
        if self.main.in_transaction:
            self.main.execute("ROLLBACK")

    def has_room(self) -> bool:
        """Return whether the database has its reserve of disk space, filled again if possible.

        A replica that is behind is made again here, at most every ten seconds.
        """
        has_room = self._reserve.fill()
        if self._is_behind and has_room and time.monotonic() - self._renewed_at > _RENEW_SECONDS:
            self._renew()
        return has_room

    @property
    def problem(self) -> str | None:
        """What is wrong now; None if nothing is."""
        if not self._is_behind:
            return None
        return f"{self._replica_path}: the replica of the queue cannot be written."

    # --- the replica -------------------------------------------------------------------------

    def _open_replica(self, *, is_current: bool) -> None:
        if not is_current:
            self._renew()
            return
        self._replica = open_journal(self._replica_path, QUEUE)
        Reserve(self._replica, self._replica_path)

    def _renew(self) -> None:
        """Make the replica again as a copy of the database."""
        self._renewed_at = time.monotonic()
        if self._replica is not None:
            self._replica.close()
            self._replica = None
        try:
            _copy(self.main, self._replica_path)
            self._open_replica(is_current=True)
            self._is_behind = False
        except (OSError, sqlite3.Error) as error:
            self._is_behind = True
            logger.error("%s: the replica cannot be made (%s)", self._replica_path, error)

    # --- the start ---------------------------------------------------------------------------

    def _restore(self) -> bool:
        """Make sure that the newest sound file is at the path; return whether both are the same.

        A file that is damaged is kept under another name.
        """
        main, replica = _examined(self._path), _examined(self._replica_path)
        try:
            if main.kind == replica.kind == "missing":
                return False
            if main.kind != "sound" and replica.kind != "sound":
                raise QueueDamagedError(_hopeless(self._path, main, self._replica_path, replica))
            if replica.kind == "damaged":
                self._set_aside(self._replica_path, replica, "it is made again")
            if main.kind == "sound" and main.revision >= replica.revision:
                return main.revision == replica.revision and _counts(main) == _counts(replica)
            if main.kind != "missing":
                self._set_aside(self._path, main, "the queue was restored from its replica")
            else:
                self.note(f"{self._path} is gone; the queue was restored from its replica.")
            assert replica.database is not None
            _copy(replica.database, self._path)
            return True
        finally:
            for found in (main, replica):
                if found.database is not None:
                    found.database.close()

    def _set_aside(self, path: Path, found: _Found, consequence: str) -> None:
        reason = found.reason or "its last changes are missing, as if its -wal file was lost"
        aside = set_aside(path)
        self.note(f"{path}: {reason}; it was kept as {aside.name}, and {consequence}.")

    def note(self, text: str, level: int = logging.ERROR) -> None:
        """Log what happened, and keep it for `health`."""
        logger.log(level, "%s", text)
        self.notes.append(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}")


def set_aside(path: Path) -> Path:
    """Rename a database with the files that belong to it; returns its new name.

    A connection may be open: what it still writes goes to the renamed files.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    number, aside = 0, path.with_name(f"{path.name}.damaged-{stamp}")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            source, target = (Path(f"{name}{suffix}") for name in (path, aside))
            give_name(source, target, overwrite=False)
    fsync_path(path.parent)
    return aside


def checksum(row: sqlite3.Row) -> str:
    """The checksum of a job's row, which finds a change that SQLite cannot see."""
    values = [row[name] for name in row.keys() if name != "checksum"]  # noqa: SIM118
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()


def _examined(path: Path) -> _Found:
    """Look at a file without changing what is in it."""
    if not path.exists():
        return _Found("missing")
    if path.stat().st_size == 0:
        return _Found("damaged", "the file is empty")
    try:
        database = open_journal(path, QUEUE)
    except NewerFileError as error:
        raise QueueDamagedError(
            f"{path}: {error}. Install that version, or move the file away to begin with an empty "
            "queue; finished outputs are not affected."
        ) from error
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return _Found("damaged", str(error))
    try:
        reason = _damage_in(database)
        revision = _revision(database)
    except sqlite3.DatabaseError as error:
        reason, revision = str(error), -1
    if reason:
        database.close()
        return _Found("damaged", reason)
    return _Found("sound", "", database, revision)


def _damage_in(database: sqlite3.Connection) -> str:
    """What is wrong with the content of a database whose structure is sound; empty if nothing."""
    for row in database.execute("SELECT * FROM job"):
        if row["checksum"] is not None and row["checksum"] != checksum(row):
            return f"the record of job {row['id']} is damaged"
    broken = database.execute("SELECT seq FROM event WHERE NOT json_valid(data) LIMIT 1").fetchone()
    return "" if broken is None else f"the record of event {broken[0]} is damaged"


def _revision(database: sqlite3.Connection) -> int:
    row = database.execute("SELECT value FROM setting WHERE name = 'revision'").fetchone()
    return 0 if row is None else int(row[0])


def _counts(found: _Found) -> tuple[Any, ...]:
    assert found.database is not None
    counts = "SELECT (SELECT count(*) FROM job), (SELECT max(seq) FROM event)"
    return tuple(found.database.execute(counts).fetchone())


def _copy(database: sqlite3.Connection, path: Path) -> None:
    """Write a copy of a database, which appears whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    partial.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(partial, isolation_level=None)) as copy:
            database.backup(copy)
        fsync_path(partial)
        for suffix in ("-wal", "-shm"):
            path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
        give_name(partial, path, overwrite=True)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def _hopeless(path: Path, main: _Found, replica_path: Path, replica: _Found) -> str:
    faults = [
        f"{place}: {found.reason or 'there is none'}"
        for place, found in ((path, main), (replica_path, replica))
    ]
    return (
        f"the queue is damaged, and so is its replica ({'; '.join(faults)}). Nothing was changed. "
        "Move both files away to begin with an empty queue; finished outputs are not affected."
    )
