"""Carries a journal over into the file that its path leads to now.

SQLite finds a journal's `-wal` file by its name. A connection whose file was moved away would, when
it is closed, delete the `-wal` file of the journal that has the name now, and with it what is
recorded there.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from srstream.files import fsync_path, give_name

_HISTORY = "event"
"""The table whose rows are numbered through: those of two files cannot be mixed."""
_FILLER = "reserve"


def carried_over(
    database: sqlite3.Connection,
    path: Path,
    open_: Callable[[], sqlite3.Connection],
    *,
    is_same_folder: bool,
) -> sqlite3.Connection:
    """Close a connection, and return one to the file of that name now, with every row of both.

    The rows are first written to a file beside it, which `adopt_rescued` reads if this is
    interrupted.

    Raises:
        OSError, sqlite3.Error: it cannot be written. If `database` is closed by then, that file
            has the rows.
    """
    rescue = rescue_of(path)
    partial = rescue.with_suffix(".part")
    partial.unlink(missing_ok=True)
    database.execute("VACUUM INTO ?", (str(partial),))
    fsync_path(partial)
    give_name(partial, rescue, overwrite=True)
    fsync_path(path.parent)
    with contextlib.nullcontext() if is_same_folder else _wal_aside(path):
        database.close()
    opened = open_()
    try:
        adopt_rescued(opened, path)
    except BaseException:
        opened.close()
        raise
    return opened


def rescue_of(path: Path) -> Path:
    """The file that holds a journal's rows while they are carried over."""
    return path.with_name(f"{path.stem}.rescued.sqlite")


def adopt_rescued(database: sqlite3.Connection, path: Path) -> bool:
    """Add the rows that were being carried over to a journal; returns whether there were any."""
    rescue = rescue_of(path)
    if not rescue.exists():
        return False
    database.execute("ATTACH ? AS rescued", (str(rescue),))
    try:
        database.execute("BEGIN IMMEDIATE")
        try:
            for table in _columns_of_tables(database, "rescued"):
                _adopt_table(database, table)
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")
    finally:
        database.execute("DETACH rescued")
    rescue.unlink()
    return True


def _adopt_table(database: sqlite3.Connection, table: str) -> None:
    """Add a table's rows, without those whose primary key is there."""
    if table == _FILLER or table not in _columns_of_tables(database, "main"):
        return
    if table == _HISTORY and database.execute(f"SELECT 1 FROM main.{table} LIMIT 1").fetchone():
        return
    ours, theirs = (_columns_of_tables(database, schema)[table] for schema in ("main", "rescued"))
    names = [name for name in theirs if name in ours]
    # A client's key that the other file knows too stays with the job there.
    changed = {
        ("job", "key"): f"CASE WHEN key IN (SELECT key FROM main.{table}) THEN NULL ELSE key END",
        ("job", "checksum"): "NULL",  # it counts for the row as it was; the next change makes one
    }
    values = [changed.get((table, name), name) for name in names]
    database.execute(
        f"INSERT OR IGNORE INTO main.{table} ({', '.join(names)})"
        f" SELECT {', '.join(values)} FROM rescued.{table}"
    )


def _columns_of_tables(database: sqlite3.Connection, schema: str) -> dict[str, list[str]]:
    tables = database.execute(
        f"SELECT name FROM {schema}.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    ).fetchall()
    return {
        table: [row[1] for row in database.execute(f"PRAGMA {schema}.table_info({table})")]
        for (table,) in tables
    }


@contextlib.contextmanager
def _wal_aside(path: Path) -> Iterator[None]:
    """Keep a `-wal` file from being deleted by the connection that is closed in the block."""
    wal = path.with_name(f"{path.name}-wal")
    aside = wal.with_name(f"{wal.name}.aside")
    if not wal.exists():
        yield
        return
    give_name(wal, aside, overwrite=True)
    try:
        yield
    finally:
        give_name(aside, wal, overwrite=True)
