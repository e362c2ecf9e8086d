"""What the inbox remembers: the journal forgets only what has left nothing behind."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest

from srstream.daemon.inbox import forget as inbox_forget
from tests.support.service.inbox import Service


def prune(service: Service, *, jobs_too: bool = True) -> set[str]:
    """Make a whole round; returns the names of inputs that the journal still has."""
    if jobs_too:
        service.queue.forget_old(time.time())
    service.inbox.forget_old(time.time())
    service.settle()
    with sqlite3.connect(service.home / "w.sqlite") as journal:
        return {
            Path(os.fsdecode(path)).name for (path,) in journal.execute("SELECT path FROM taken")
        }


def test_the_journal_forgets_what_has_left_nothing_behind(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_forget, "_NUM_ROWS", 2)
    paths = [service.put(f"{n}.mp4") for n in range(3)]
    service.settle()
    service.end("done")
    assert prune(service) == {"0.mp4", "1.mp4", "2.mp4"}
    for number in (0, 1):
        paths[number].unlink()
    (service.output / "0_4x.mp4").unlink()
    (service.output / "2_4x.mp4").unlink()
    assert prune(service, jobs_too=False) == {"1.mp4", "2.mp4"}
    assert len(service.requests) == 3


def test_a_job_that_is_remembered_keeps_its_file_in_the_journal(service: Service) -> None:
    path = service.put("clip.mp4")
    service.put("other.mp4")
    service.settle()
    service.end("failed", error="damaged.")
    assert not path.exists()
    assert prune(service, jobs_too=False) == {"clip.mp4", "other.mp4"}
    service.put("third.mp4")
    service.settle()
    assert prune(service) == {"third.mp4"}
    (service.quarantine / "clip.mp4").rename(path)
    service.settle()
    assert len(service.queue.jobs(("queued",))) == 2


def test_a_result_that_lies_there_stays_one_that_may_be_replaced(service: Service) -> None:
    service.put("other.mp4")
    for content in (b"first", b"second one"):
        path = service.put("clip.mp4", content)
        service.settle()
        service.end("done")
    path.unlink()
    assert prune(service) == {"clip.mp4", "other.mp4"}
    with sqlite3.connect(service.home / "w.sqlite") as journal:
        # The second version's row makes the first one unnecessary.
        assert journal.execute("SELECT count(*) FROM taken").fetchone() == (2,)
    service.put("clip.mp4", b"the third one")
    service.settle()
    assert service.requests[-1].overwrite


@pytest.mark.parametrize("is_restarted", [False, True])
def test_an_unmounted_folder_makes_the_journal_forget_nothing(
    service: Service, is_restarted: bool
) -> None:
    service.put("clip.mp4")
    service.settle()
    service.end("done")
    away = service.home / "away"
    away.mkdir()
    for folder in (service.folder, service.output):
        folder.rename(away / folder.name)
        folder.mkdir()
    if is_restarted:
        service.inbox.close()
        service.restart()
    assert prune(service) == {"clip.mp4"}
    for folder in (service.folder, service.output):
        folder.rmdir()
        (away / folder.name).rename(folder)
    service.settle()
    assert len(service.requests) == 1


OLD_JOURNAL = """
CREATE TABLE taken (
    key TEXT PRIMARY KEY, folder BLOB NOT NULL, path BLOB NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, inode TEXT NOT NULL, attempt INTEGER NOT NULL,
    output BLOB NOT NULL, state TEXT NOT NULL, job TEXT, reason TEXT, quarantined_as BLOB
) STRICT;
INSERT INTO taken SELECT key, folder, path, size, mtime_ns, inode, attempt, output, state, job,
    reason, quarantined_as FROM now.taken;
"""


def test_a_journal_of_an_older_version_is_gone_on_with(service: Service) -> None:
    """Ended rows count as ended now; an open one ends by its folder's settings."""
    ended = service.put("ended.mp4")
    service.settle()
    service.end("done")
    service.put("open.mp4")
    service.settle()
    service.inbox.close()
    (service.home / "w.sqlite").rename(service.home / "new.sqlite")
    with sqlite3.connect(service.home / "w.sqlite") as old:
        old.execute("ATTACH ? AS now", (str(service.home / "new.sqlite"),))
        old.executescript(OLD_JOURNAL)
    (service.home / "new.sqlite").unlink()
    began = time.time()
    service.restart()
    service.settle()
    assert len(service.requests) == 2
    with sqlite3.connect(service.home / "w.sqlite") as journal:
        rows = journal.execute("SELECT state, ended FROM taken ORDER BY rowid").fetchall()
    assert [state for state, _ in rows] == ["done", "submitted"]
    assert rows[0][1] >= began and rows[1][1] is None
    service.end("done")
    assert (service.output / "open_4x.mp4.receipt.json").exists()
    ended.unlink()
    (service.output / "ended_4x.mp4").unlink()
    assert prune(service) == {"open.mp4"}
