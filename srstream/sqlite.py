"""What must survive a power cut is kept in a journal: a SQLite file that one process writes.

It imports nothing heavy; the daemon's supervisor keeps its journals with it too.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

_CACHE_KIB = 256
"""Of pages; the kernel keeps the rest. SQLite's own 2 MB look like a leak for a day."""


def open_journal(path: Path, schema: str, *, any_thread: bool = False) -> sqlite3.Connection:
    """The journal, made if there is none yet; a transaction that has ended is on the disk.

    Without `BEGIN` every statement is a transaction. What a failure means, and what is to be done,
    differs: callers put it into their own sentence.

    Args:
        schema: creates what is not there.
        any_thread: whether threads that do not run at the same time share the connection.

    Raises:
        OSError, sqlite3.Error: it cannot be opened or is damaged.
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
