"""A queue that was damaged while the daemon did not run: found, told, and restored."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from srstream.daemon.inbox.journal import InboxJournal
from srstream.daemon.queue import JobQueue
from srstream.errors import DamagedError, QueueDamagedError
from srstream.jobs.store import JobStore
from tests.daemon.test_retries import add
from tests.support import clips
from tests.support.service.daemon import Daemon, wait_for

NUM_JOBS = 30


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def flip_wal(path: Path) -> None:
    wal = path.with_name("jobs.sqlite-wal")
    at = 32 + 24 + 100  # within the first frame's page; see sqlite.org/walformat.html
    before = wal.read_bytes()[at : at + 8]
    overwrite(wal, at, bytes(byte ^ 0xFF for byte in before))


def lose_wal(path: Path) -> None:
    path.with_name("jobs.sqlite-wal").unlink()


def empty(path: Path) -> None:
    for name in (path.name, "jobs.sqlite-wal"):
        path.with_name(name).write_bytes(b"")


def put_another_programs(path: Path) -> None:
    lose_wal(path)
    path.unlink()
    with sqlite3.connect(path) as database:
        database.executescript("CREATE TABLE photo (name TEXT); PRAGMA user_version = 99")
    database.close()


def put_text(path: Path) -> None:
    lose_wal(path)
    path.write_text("not a database, but quite long\n" * 1000)


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 4096 // 2 * 4096)


def delete(path: Path) -> None:
    path.unlink()


def flip_page(path: Path) -> None:
    """Damage the page of the table's root."""
    with sqlite3.connect(path) as database:
        (page,) = database.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'job'"
        ).fetchone()
    database.close()
    overwrite(path, (page - 1) * 4096, b"\xff" * 64)


def change_a_path(path: Path) -> None:
    """Change a byte of a row's text, which SQLite cannot notice."""
    content = path.read_bytes()
    overwrite(path, content.index(b"/in/3.mp4"), b"/in/4.mp4")


AFTER_A_CRASH = (flip_wal, lose_wal, empty, put_another_programs, put_text)
AFTER_A_STOP = (cut, delete, flip_page, change_a_path)


def content(queue: JobQueue) -> tuple[object, ...]:
    return queue.jobs(limit=1000), queue.events_after(0, None, 10_000), queue.last_seq


def made(path: Path, *, crashed_into: Path | None = None) -> tuple[object, ...]:
    """Make a queue with jobs of several states; its content. A copy is as a power cut leaves it."""
    with JobQueue(path) as queue:
        for number in range(NUM_JOBS):
            job = add(queue, str(number), key=f"key {number}")
            if number % 3 == 1:
                queue.change(job.id, "running", started=1.0)
            if number % 3 == 2:
                queue.change(job.id, "done", result={"number": number})
        queue.remember("default_model", "fast")
        if crashed_into is not None:
            shutil.copytree(path.parent, crashed_into)
        return content(queue)


@pytest.mark.parametrize("damage", [*AFTER_A_CRASH, *AFTER_A_STOP])
def test_a_damaged_queue_is_restored_whole(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    if damage in AFTER_A_CRASH:
        state = tmp_path / "crashed"
        before = made(tmp_path / "state" / "jobs.sqlite", crashed_into=state)
    else:
        before = made(state / "jobs.sqlite")
    path = state / "jobs.sqlite"
    damage(path)
    damaged = path.read_bytes() if path.exists() else None
    with JobQueue(path) as queue:
        assert content(queue) == before
        assert queue.setting("default_model") == "fast"
        (note,) = queue.notes
        assert str(path) in note and "restored from its replica" in note
        assert note.partition(" ")[2] in caplog.text
        add(queue, "another")
    aside = [file for file in state.glob("*.damaged-*") if not file.name.endswith(("-wal", "-shm"))]
    if damaged is None:
        assert aside == []
    elif damage not in (flip_wal, lose_wal):  # there SQLite writes what is left of the WAL
        assert aside[0].read_bytes() == damaged
    caplog.clear()
    with JobQueue(path) as queue:  # it is healed, and so is the replica
        assert not queue.notes and queue.counts()["queued"] == NUM_JOBS // 3 + 1
        assert not caplog.records


@pytest.mark.parametrize("damage", [empty, put_text, flip_page, change_a_path])
def test_a_damaged_replica_is_made_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "jobs.sqlite"
    before = made(path)
    replica = tmp_path / "backup" / "jobs.sqlite"
    for file in (replica, replica.with_name("jobs.sqlite-wal")):
        file.touch()
    damage(replica)
    with JobQueue(path) as queue:
        assert content(queue) == before
        assert "made again" in queue.notes[0]
    path.unlink()
    with JobQueue(path) as queue:
        assert content(queue) == before


def test_nothing_is_touched_where_nothing_can_be_restored(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    made(path)
    replica = tmp_path / "backup" / "jobs.sqlite"
    cut(path)
    cut(replica)
    before = path.read_bytes(), replica.read_bytes()
    with pytest.raises(QueueDamagedError, match="so is its replica"):
        JobQueue(path)
    assert (path.read_bytes(), replica.read_bytes()) == before


def test_a_newer_version_of_the_tables_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    made(path)
    for file in (path, tmp_path / "backup" / "jobs.sqlite"):
        with sqlite3.connect(file) as database:
            database.execute("PRAGMA user_version = 1000")
        database.close()
    with pytest.raises(QueueDamagedError, match="newer srstream"):
        JobQueue(path)


def test_a_stop_leaves_a_backup_that_is_whole_by_itself(tmp_path: Path) -> None:
    before = made(tmp_path / "jobs.sqlite")
    (tmp_path / "elsewhere").mkdir()
    assert [file.name for file in (tmp_path / "backup").iterdir()] == ["jobs.sqlite"]
    shutil.copy(tmp_path / "backup" / "jobs.sqlite", tmp_path / "elsewhere")
    with JobQueue(tmp_path / "elsewhere" / "jobs.sqlite") as queue:
        assert content(queue) == before


def test_a_queue_from_before_the_numbers_is_taken_over(tmp_path: Path) -> None:
    """The tables as the first version made them, without mark, number, checksums and replica."""
    path = tmp_path / "jobs.sqlite"
    before = made(path)
    shutil.rmtree(tmp_path / "backup")
    with sqlite3.connect(path) as database:
        database.executescript(
            "DROP INDEX job_by_state; ALTER TABLE job DROP COLUMN checksum; DROP TABLE reserve;"
            "CREATE INDEX job_by_state ON job (state, priority DESC, created);"
            "DELETE FROM setting WHERE name = 'revision';"
            "PRAGMA application_id = 0; PRAGMA user_version = 0"
        )
    database.close()
    with JobQueue(path) as queue:
        assert content(queue) == before and not queue.notes
    path.unlink()
    with JobQueue(path) as queue:
        assert content(queue) == before


@pytest.mark.parametrize("damage", [put_text, put_another_programs, cut])
def test_a_damaged_inbox_journal_begins_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "watch.sqlite"
    InboxJournal(path).close()
    path.with_name("jobs.sqlite-wal").touch()
    damage(path)
    journal = InboxJournal(path)
    assert journal.open_ones() == [] and "looked at again" in journal.notes[0]
    journal.close()
    assert len(list(tmp_path.glob("watch.sqlite.damaged-*"))) == 1


@pytest.mark.parametrize("damage", [put_text, put_another_programs, cut])
def test_a_damaged_journal_of_a_job_is_named_so(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """The daemon begins such a job again, and the command line says how."""
    path = tmp_path / "work" / "journal.sqlite"
    JobStore(tmp_path / "a.mp4", directory=path.parent).close()
    path.with_name("jobs.sqlite-wal").touch()
    damage(path)
    with pytest.raises(DamagedError, match="--restart"):
        JobStore(tmp_path / "a.mp4", directory=path.parent)
    with JobStore(tmp_path / "a.mp4", directory=path.parent, fresh=True) as store:
        assert store.segments() == []


@pytest.mark.long
def test_a_daemon_says_that_it_restored_its_queue(tmp_path: Path) -> None:
    with Daemon(tmp_path, "max_running = 1") as daemon:
        source = clips.cfr(daemon.inputs / "a.mp4")
        daemon.wait(daemon.submit(source, "a.mp4"))
        jobs = [daemon.submit(source, f"{n}.mp4") for n in range(2)]
        daemon.kill()
        lose_wal(daemon.state / "jobs.sqlite")
        daemon.start()
        (note,) = daemon.result("health")["notes"]
        assert "restored from its replica" in note
        assert "restored from its replica" in daemon.log()
        address = f"ipc://{daemon.runtime}/control.sock"
        shown = subprocess.run(
            [sys.executable, "-m", "srstream", "health", "--address", address],
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"note: {note}" in shown.stdout + shown.stderr
        wait_for(lambda: all(daemon.job(job)["state"] == "done" for job in jobs), 60)
        assert daemon.stop() == 0
        for path in (daemon.state / "jobs.sqlite", daemon.state / "backup" / "jobs.sqlite"):
            cut(path)
        assert daemon.launch().wait(60) == QueueDamagedError.exit_code == 2
        assert "so is its replica" in daemon.log()
