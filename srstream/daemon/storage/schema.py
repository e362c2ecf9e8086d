"""The tables of the queue, and how files of older versions get them."""

from __future__ import annotations

from srstream.sqlite import Schema

_FIRST_TABLES = """
CREATE TABLE IF NOT EXISTS job (
    id TEXT PRIMARY KEY,
    key TEXT UNIQUE,
    state TEXT NOT NULL,
    input TEXT NOT NULL,
    output TEXT NOT NULL,
    overwrite INTEGER NOT NULL,
    config TEXT NOT NULL,
    names_model INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    submitter TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    retry_at REAL,
    error TEXT,
    num_segments INTEGER,
    num_segments_done INTEGER NOT NULL DEFAULT 0,
    weights_sha256 TEXT,
    changes_weights INTEGER NOT NULL DEFAULT 0,
    wanted TEXT,
    result TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS job_by_state ON job (state, priority DESC, created);
CREATE TABLE IF NOT EXISTS event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    job TEXT,
    kind TEXT NOT NULL,
    data TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS event_by_job ON event (job, seq);
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""

_CHECKSUMS = """
ALTER TABLE job ADD COLUMN checksum TEXT;
"""

_ORDER_OF_SUBMISSION = """
DROP INDEX job_by_state;
CREATE INDEX job_by_state ON job (state, priority DESC);
"""
"""Jobs of one priority start in the order of their row numbers: the wall clock may jump."""

QUEUE = Schema(0x73727371, "job", (_FIRST_TABLES, _CHECKSUMS, _ORDER_OF_SUBMISSION))
