"""Opens journals: SQLite files that one process writes and that survive a power cut.

This module imports nothing heavy, since the daemon's supervisor uses it too.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Migration = str | Callable[[sqlite3.Connection], None]
"""Statements, or a function, that make of a journal of one version one of the next."""

_FULL_CODES = frozenset(
    (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMOPEN)
)
"""SQLite reports the last two when its `-shm` file does not fit on the disk."""

_CACHE_KIB = 256
"""Size of the page cache; the kernel caches too. SQLite's default of 2 MB fills up in a day, like a
leak."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a journal holds: the migrations, by number, that lead from an empty file to now.

    The number of those that a file has gone through is its `user_version`. A released migration
    never changes; a change of the tables is a further one.
    """

    application_id: int
    """Four letters that mark a file as a journal of this kind (`PRAGMA application_id`)."""
    first_table: str
    """A table that files of the versions before the numbers have, which lack the mark."""
    migrations: tuple[Migration, ...]


class DamagedFileError(sqlite3.DatabaseError):
    """The file is damaged, or is no journal of this kind."""


class NewerFileError(sqlite3.DatabaseError):
    """A newer version of srstream has written the file."""


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error of the system, of SQLite or of ZeroMQ means that a disk is full."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    return getattr(error, "sqlite_errorcode", None) in _FULL_CODES


def is_damage(error: BaseException) -> bool:
    """Return whether an error means that a file is damaged, rather than that it cannot be used."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, sqlite3.OperationalError | NewerFileError
    )


def open_journal(path: Path, schema: Schema, *, any_thread: bool = False) -> sqlite3.Connection:
    """Open a journal, and create it if it is missing; a transaction that has ended is on the disk.

    Nothing is written to a file that is damaged or of another kind. Without `BEGIN` every statement
    is a transaction. Callers turn the errors into their own sentences, since the meaning of a
    failure differs.

    Args:
        any_thread: whether several threads share the connection, one at a time.

    Raises:
        OSError, sqlite3.Error: the journal cannot be opened; `is_damage` says whether it is
            damaged.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=not any_thread)
    try:
        database.row_factory = sqlite3.Row
        version = _checked_version(database, schema)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        for number, migration in enumerate(schema.migrations[version:], version + 1):
            _migrate(database, schema, migration, number)
    except BaseException:
        database.close()
        raise
    return database


def _checked_version(database: sqlite3.Connection, schema: Schema) -> int:
    """The version of a file that is sound, 0 of an empty one."""
    (application_id,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master")]
    is_old = application_id == 0 and version == 0 and schema.first_table in tables
    if tables and application_id != schema.application_id and not is_old:
        raise DamagedFileError("it is another program's database")
    if version > len(schema.migrations):
        raise NewerFileError(
            f"a newer srstream has written it: version {version}, and this one knows up to "
            f"{len(schema.migrations)}"
        )
    (fault,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if fault != "ok":
        raise DamagedFileError(" ".join(str(fault).split()))
    return int(version)


def _migrate(
    database: sqlite3.Connection, schema: Schema, migration: Migration, number: int
) -> None:
    """Go through one migration, whole or not at all."""
    mark = f"PRAGMA application_id={schema.application_id}; PRAGMA user_version={number};"
    try:
        if isinstance(migration, str):
            database.executescript(f"BEGIN IMMEDIATE; {migration}; {mark} COMMIT;")
            return
        database.execute("BEGIN IMMEDIATE")
        migration(database)
        for statement in mark.split(";")[:-1]:
            database.execute(statement)
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
