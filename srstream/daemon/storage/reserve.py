"""Keeps disk space inside a database, so that it can be written while the disk is full.

A file that is given back when the disk is full would be taken by the jobs that filled it. Pages
inside the database's files can be taken by nobody else.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

RESERVE_BYTES = 2 << 20
"""Space that is kept in each of the two files of a database."""

_PLENTY_BYTES = 4 * RESERVE_BYTES
"""Free space of the disk below which the reserve takes nothing more."""

_CHECKPOINT_PAGES = 256
"""Length of the WAL at which its pages go to the database's file."""


class Reserve:
    """Free pages of a database, and frames of its WAL, that are on the disk already.

    SQLite takes free pages before the file grows. After a checkpoint it writes the WAL from its
    start, over the frames that are there; so the WAL need not grow either.
    """

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database, self._path = database, path
        self._wal = path.with_name(f"{path.name}-wal")
        database.execute("CREATE TABLE IF NOT EXISTS reserve (filler BLOB NOT NULL) STRICT")
        database.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        (self._page_bytes,) = database.execute("PRAGMA page_size").fetchone()
        self.fill()

    def is_low(self) -> bool:
        """Return whether less than half of the reserve is left."""
        (num_free,) = self._database.execute("PRAGMA freelist_count").fetchone()
        try:
            wal_bytes = os.stat(self._wal).st_size
        except OSError:  # the folder was renamed or deleted; the open file is as it was
            wal_bytes = RESERVE_BYTES
        return min(num_free * self._page_bytes, wal_bytes) < RESERVE_BYTES // 2

    def fill(self) -> bool:
        """Fill the reserve if it is low; return whether it is not low any more.

        Nothing is taken from a disk that is nearly full.
        """
        if not self.is_low():
            return True
        try:
            if shutil.disk_usage(self._path.parent).free < _PLENTY_BYTES:
                return False
            self._database.execute("INSERT INTO reserve VALUES (zeroblob(?))", (RESERVE_BYTES,))
            self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self._database.execute("DELETE FROM reserve")
            self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except (OSError, sqlite3.Error):
            return False
        return not self.is_low()
