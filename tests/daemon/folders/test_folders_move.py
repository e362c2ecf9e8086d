"""Folders are mounted over, unmounted, deleted and made again while the daemon holds them."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from srstream.daemon.folders.journals import carried_over, rescue_of
from srstream.daemon.folders.roots import Roots
from srstream.errors import FolderGoneError
from srstream.sqlite import Schema, open_journal
from tests.support import clips
from tests.support.jobs import video_times
from tests.support.service.daemon import Daemon, wait_for

NOTICED_SECONDS = 10.0


def mounted(folder: Path, *options: str) -> None:
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("this machine has no mount")
    if done.returncode != 0:
        pytest.skip("this machine lets no test mount a tmpfs")


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder for mounts, all of which are undone."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    for _ in range(4):
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def opened(roots: Roots, folder: Path) -> tuple[int, int]:
    """Device and inode of the folder that the roots give for a path."""
    descriptor = roots.open_folder(folder)
    found = os.fstat(descriptor)
    os.close(descriptor)
    return found.st_dev, found.st_ino


def identity(folder: Path) -> tuple[int, int]:
    return folder.stat().st_dev, folder.stat().st_ino


def test_a_root_follows_what_is_mounted_over_it_and_made_anew(place: Path) -> None:
    told: list[str] = []
    roots = Roots([], [place], lambda path, text: told.append(text))
    mounted(place)
    assert opened(roots, place) == identity(place)
    assert len(told) == 1 and f"{place}: this folder is another one" in told[0]
    inner = place / "inner"
    inner.mkdir()
    roots = Roots([], [inner], lambda path, text: told.append(text))
    inner.rmdir()
    inner.mkdir()
    assert opened(roots, inner) == identity(inner)
    assert len(told) == 2


def test_nothing_is_opened_beneath_a_mount_that_is_gone(place: Path) -> None:
    """What would be written there vanishes beneath the next mount."""
    mounted(place)
    told: list[str] = []
    roots = Roots([], [place], lambda path, text: told.append(text))
    late = Roots([], [place], mount_points=roots.mount_points)
    unmount(place)
    for holder in (roots, late, Roots([], [place], mount_points=roots.mount_points)):
        with pytest.raises(FolderGoneError, match=f"not mounted at {place} now"):
            holder.open_folder(place)
    assert roots.look() == told[:1]
    mounted(place)
    assert opened(roots, place) == opened(late, place) == identity(place)
    assert roots.look() == []


def test_a_root_that_is_deleted_refuses_until_it_is_back(tmp_path: Path) -> None:
    folder, away = tmp_path / "in", tmp_path / "away"
    folder.mkdir()
    told: list[str] = []
    roots = Roots([], [folder], lambda path, text: told.append(text))
    folder.rename(away)
    for _ in range(3):
        with pytest.raises(FolderGoneError, match="cannot be reached any more"):
            roots.open_folder(folder)
    away.rename(folder)
    assert opened(roots, folder) == identity(folder)
    assert len(told) == 2 and told[1].endswith("this folder is back.")


SCHEMA = Schema(
    1,
    "job",
    (
        """
CREATE TABLE IF NOT EXISTS job (id TEXT PRIMARY KEY, key TEXT UNIQUE) STRICT;
CREATE TABLE IF NOT EXISTS event (seq INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT) STRICT;
""",
    ),
)


def rows(path: Path, table: str) -> list[tuple[object, ...]]:
    database = sqlite3.connect(path)
    found = database.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
    database.close()
    return found


def test_a_journal_goes_along_and_harms_no_other_of_its_name(tmp_path: Path) -> None:
    """The other one's last rows are in its `-wal` file, as after a power cut."""
    state, other = tmp_path / "state", tmp_path / "other"
    crash = (
        "import os, sys\nfrom pathlib import Path\n"
        "from srstream.sqlite import Schema, open_journal\n"
        f"database = open_journal(Path({str(other / 'jobs.sqlite')!r}), {SCHEMA!r})\n"
        "database.execute(\"INSERT INTO job VALUES ('theirs', 'k')\")\n"
        "database.execute(\"INSERT INTO event (job) VALUES ('theirs')\")\nos._exit(0)"
    )
    path = state / "jobs.sqlite"
    held = open_journal(path, SCHEMA)
    held.execute("INSERT INTO job VALUES ('ours', 'k'), ('old', NULL)")
    held.execute("INSERT INTO event (job) VALUES ('ours'), ('old')")
    subprocess.run([sys.executable, "-c", crash], check=True)
    assert (other / "jobs.sqlite-wal").stat().st_size > 0
    state.rename(tmp_path / "away")
    other.rename(state)
    now = carried_over(held, path, lambda: open_journal(path, SCHEMA), is_same_folder=False)
    now.close()
    assert rows(path, "job") == [("old", None), ("ours", None), ("theirs", "k")]
    assert rows(path, "event") == [(1, "theirs")]  # numbered through: not mixed with others
    assert not rescue_of(path).exists()


def test_a_journal_goes_along_with_its_events_into_an_empty_folder(tmp_path: Path) -> None:
    path = tmp_path / "state" / "jobs.sqlite"
    held = open_journal(path, SCHEMA)
    held.execute("INSERT INTO job VALUES ('a', 'k')")
    held.execute("INSERT INTO event (seq, job) VALUES (7, 'a')")
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    now = carried_over(held, path, lambda: open_journal(path, SCHEMA), is_same_folder=False)
    now.execute("INSERT INTO event (job) VALUES ('a')")
    now.close()
    assert (rows(path, "job"), rows(path, "event")) == ([("a", "k")], [(7, "a"), (8, "a")])


def notes(daemon: Daemon) -> str:
    return " ".join(daemon.result("health")["notes"])


@pytest.mark.long
def test_a_result_lands_in_the_folder_that_is_there_at_the_end(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        source = clips.cfr(daemon.inputs / "a.mp4", frames=25, gop=25, noise=40)
        job = daemon.submit(source, "a.mp4")
        wait_for(lambda: daemon.children("sandbox.decoder"))
        shutil.rmtree(daemon.outputs)
        daemon.outputs.mkdir()
        wait_for(lambda: str(daemon.outputs) in notes(daemon), NOTICED_SECONDS)
        assert daemon.result("health")["ok"]
        assert daemon.wait(job)["state"] == "done"
        assert video_times(daemon.outputs / "a.mp4") == video_times(source)
        # A folder that is gone is waited for; what is asked of it meanwhile is refused.
        job = daemon.submit(source, "b.mp4")
        wait_for(lambda: daemon.children("sandbox.decoder"))
        daemon.outputs.rename(tmp_path / "away")
        wait_for(lambda: not daemon.result("health")["ok"], NOTICED_SECONDS)
        refused = daemon.ask("submit", input=str(source), output=str(daemon.outputs / "c.mp4"))
        assert refused["error"]["kind"] == "FolderGoneError", refused
        wait_for(lambda: daemon.job(job)["retry_at"])
        assert daemon.job(job)["state"] == "queued", daemon.job(job)
        (tmp_path / "away").rename(daemon.outputs)
        assert daemon.wait(job)["state"] == "done"
        assert video_times(daemon.outputs / "b.mp4") == video_times(source)
        wait_for(lambda: daemon.result("health")["ok"], NOTICED_SECONDS)
        daemon.result("reload")
        assert daemon.result("health")["notes"] == []
        assert daemon.log().count("is another one than before") == 1


@pytest.mark.long
@pytest.mark.parametrize("how", ["renamed", "deleted", "mounted over", "queue deleted"])
def test_no_job_is_forgotten_with_the_state_folder(tmp_path: Path, how: str) -> None:
    with Daemon(tmp_path) as daemon:
        source = clips.cfr(daemon.inputs / "a.mp4", frames=50, gop=25, noise=40)
        first = daemon.submit(source, "0.mp4")
        assert daemon.wait(first)["state"] == "done"
        jobs = [daemon.submit(source, f"{n}.mp4") for n in range(1, 3)]
        wait_for(lambda: daemon.children("sandbox.decoder"))
        if how == "mounted over":
            mounted(daemon.state, "-o", "mode=700")
        elif how == "queue deleted":
            (daemon.state / "jobs.sqlite").unlink()
        else:
            daemon.state.rename(tmp_path / "away")
            if how == "deleted":
                shutil.rmtree(tmp_path / "away")
            else:
                daemon.state.mkdir()
        jobs.append(daemon.submit(source, "3.mp4", key="meanwhile"))
        wait_for(lambda: "state folder" in notes(daemon), NOTICED_SECONDS)
        try:
            daemon.kill()
            daemon.start()
            assert {job["id"] for job in daemon.result("list")["jobs"]} == {first, *jobs}
            assert daemon.job(first)["result"]["num_frames"] == 50
            assert {daemon.wait(job)["state"] for job in jobs} == {"done"}
            assert "state folder" in daemon.log() and "Traceback" not in daemon.log()
        finally:
            daemon.kill()
            if how == "mounted over":
                unmount(daemon.state)


@pytest.mark.long
def test_health_says_that_space_is_short_and_that_the_queue_cannot_be_written(
    tmp_path: Path, place: Path
) -> None:
    mounted(place, "-o", "size=40m")
    settings = f'[security]\nread_roots = ["{place}"]\nwrite_roots = ["{place}"]'
    with Daemon(tmp_path) as daemon:
        text = daemon.config.read_text()
        start, end = text.index("[security]"), text.index("[jobs]")
        daemon.config.write_text(f"{text[:start]}{settings}\n{text[end:]}")
        daemon.result("reload")
        assert daemon.result("health")["ok"]
        (place / "large").write_bytes(bytes(39 << 20))
        wait_for(lambda: not daemon.result("health")["ok"], NOTICED_SECONDS)
        (problem,) = daemon.result("health")["problems"]
        assert problem.startswith(f"{place}: only 1 MB are free")
        (place / "large").unlink()
        wait_for(lambda: daemon.result("health")["ok"], NOTICED_SECONDS)
        assert daemon.process is not None
        limits = psutil.Process(daemon.process.pid)
        no_limit = limits.rlimit(resource.RLIMIT_FSIZE)
        limits.rlimit(resource.RLIMIT_FSIZE, (1, no_limit[1]))
        wait_for(lambda: not daemon.result("health")["ok"], NOTICED_SECONDS)
        (problem,) = daemon.result("health")["problems"]
        assert problem.startswith(f"{daemon.state}/jobs.sqlite: ")
        limits.rlimit(resource.RLIMIT_FSIZE, no_limit)
        wait_for(lambda: daemon.result("health")["ok"], NOTICED_SECONDS)
