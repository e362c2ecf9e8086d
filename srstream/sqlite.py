"""Opens journals: SQLite files that one process writes and that survive a power cut.

This module imports nothing heavy, since the daemon's supervisor uses it too.
"""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

_FULL_CODES = frozenset(
    (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMOPEN)
)
"""SQLite reports the last two when its `-shm` file does not fit on the disk."""

_CACHE_KIB = 256
"""Size of the page cache; the kernel caches too. SQLite's default of 2 MB fills up in a day, like a
leak."""


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error of the system, of SQLite or of ZeroMQ means that a disk is full."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    return getattr(error, "sqlite_errorcode", None) in _FULL_CODES


def open_journal(path: Path, schema: str, *, any_thread: bool = False) -> sqlite3.Connection:
    """Open a journal, and create it if it is missing; a transaction that has ended is on the disk.

    Without `BEGIN` every statement is a transaction. Callers turn the errors into their own
    sentences, since the meaning of a failure differs.

    Args:
        schema: the statements that create missing tables.
        any_thread: whether several threads share the connection, one at a time.

    Raises:
        OSError, sqlite3.Error: the journal cannot be opened or is damaged.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=not any_thread)
    try:
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        database.executescript(schema)
    except BaseException:
        database.close()
        raise
    return database
