"""Reads the pages of `list`, away from the event loop: SQLite itself makes their JSON, in a thread.

A page of a thousand jobs takes Python a third of a second, in which nobody else would be served.
SQLite takes milliseconds, and Python's other threads run meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

from srstream.errors import JobError
from srstream.protocol.control import JobInfo, JobProgress, List

MAX_PAGE_BYTES = 1 << 20
"""Size of a page, unless its first job alone is larger; a receipt can have many kilobytes."""


class JobPages:
    """Reads pages of the queue's file, one page at a time, over connections of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = asyncio.Lock()

    async def read(self, request: List, progress: Mapping[str, JobProgress]) -> bytes:
        """The result of a `list` as JSON.

        Args:
            progress: the progress of running jobs, by id.

        Raises:
            JobError: the queue cannot be read.
        """
        shown = json.dumps({job: each.model_dump() for job, each in progress.items()})
        async with self._turn:
            return await asyncio.to_thread(self._read, request, shown)

    def _read(self, request: List, progress: str) -> bytes:
        try:
            address = f"file:{quote(str(self._path))}?mode=ro"
            with closing(sqlite3.connect(address, uri=True)) as database:
                return _page(database, request, progress)
        except sqlite3.Error as error:
            raise JobError(f"{self._path}: the queue cannot be read ({error}).") from error


def _page(database: sqlite3.Connection, request: List, progress: str) -> bytes:
    where, values = _condition(request.states, request.before)
    jobs, last = database.execute(
        f"""
        WITH page AS (
            SELECT id, {_job_object()} AS job FROM job WHERE {where} ORDER BY id DESC LIMIT :limit
        ), sized AS (
            SELECT id, job, row_number() OVER newest AS number,
                sum(length(CAST(job AS BLOB)) + 1) OVER newest AS num_bytes
            FROM page WINDOW newest AS (ORDER BY id DESC)
        )
        SELECT group_concat(job, ','), min(id) FROM (
            SELECT id, job FROM sized WHERE num_bytes <= :most OR number = 1 ORDER BY id DESC
        )
        """,
        {**values, "limit": request.limit, "most": MAX_PAGE_BYTES, "progress": progress},
    ).fetchone()
    where, values = _condition(request.states, last)
    has_more = last is not None and database.execute(
        f"SELECT EXISTS (SELECT 1 FROM job WHERE {where})", values
    ).fetchone() == (1,)
    following = json.dumps(last if has_more else None)
    return f'{{"jobs":[{jobs or ""}],"next":{following}}}'.encode()


def _condition(states: Sequence[str], before: str | None) -> tuple[str, dict[str, Any]]:
    """The SQL condition for jobs of these states (none: of all) that are older than `before`."""
    values: dict[str, Any] = {f"state{n}": state for n, state in enumerate(states)}
    terms = [f"state IN ({', '.join(f':{name}' for name in values)})"] if states else []
    if before is not None:
        values["before"] = before
        terms.append("id < :before")
    return " AND ".join(terms) or "1", values


def _job_object() -> str:
    """The SQL expression for a row as the JSON of a `JobInfo`."""
    special = {
        "model": "json_extract(config, '$.model.name')",
        "result": "json(result)",
        "progress": "iif(state = 'running', json_extract(:progress, '$.\"' || id || '\"'), NULL)",
    }
    pairs = []
    for name, each in JobInfo.model_fields.items():
        value = special.get(name, name)
        if float in (each.annotation, *get_args(each.annotation)):
            # SQLite's own JSON has 15 digits, too few for the microseconds of a time.
            value = f"CASE WHEN {name} IS NOT NULL THEN json(printf('%!.17g', {name})) END"
        pairs.append(f"'{name}', {value}")
    return f"json_object({', '.join(pairs)})"
