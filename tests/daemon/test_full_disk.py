"""A disk that is full: of the jobs' own work, or of something else that is taken away later."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from srstream.daemon.queue import JobQueue
from srstream.errors import DiskFullError
from tests.daemon.test_retries import add
from tests.jobs.test_disk_full import mount
from tests.support import clips
from tests.support.jobs import video_times
from tests.support.service.daemon import Daemon, wait_for

LARGE = {"encode": {"crf": 8}}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 44 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=44m", "tmpfs", str(place)):
        pytest.skip("this machine lets no test mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(path: Path) -> None:
    """Write a file until the disk has no free block."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break


def large_clip(path: Path) -> Path:
    """A clip whose result takes 10.7 MB, and as much again while it is assembled."""
    return clips.cfr(path, frames=75, gop=25, width=192, height=128, noise=60)


def states(daemon: Daemon, jobs: list[str]) -> Counter[str]:
    return Counter(daemon.job(job)["state"] for job in jobs)


def test_the_reserve_serves_whatever_frees_space(disk: Path) -> None:
    """New jobs are refused when half of it is used; then every job can still be changed."""
    with JobQueue(disk / "jobs.sqlite") as queue:
        fill(disk / "ballast")
        jobs = []
        with pytest.raises(DiskFullError, match="no job is accepted"):
            while len(jobs) < 10_000:
                jobs.append(add(queue, f"{len(jobs)}").id)
        assert len(jobs) > 100
        for job in jobs:
            queue.change(job, "running", started=1.0)
            queue.change(job, "cancelled")
        assert not queue.has_room()
        (disk / "ballast").unlink()
        assert queue.has_room()
        add(queue, "another")
    with JobQueue(disk / "jobs.sqlite") as queue:
        assert queue.counts() == {"cancelled": len(jobs), "queued": 1}


def test_a_disk_without_room_for_the_reserve_takes_no_job(disk: Path) -> None:
    fill(disk / "ballast")
    with (disk / "ballast").open("r+b") as file:
        file.truncate((disk / "ballast").stat().st_size - (1 << 20))
    with (
        JobQueue(disk / "jobs.sqlite") as queue,
        pytest.raises(DiskFullError, match="no job is accepted"),
    ):
        add(queue)


def test_requests_are_answered_while_the_disk_is_full(tmp_path: Path, disk: Path) -> None:
    with Daemon(tmp_path / "home", "max_running = 1", state=disk / "state") as daemon:
        source = clips.cfr(daemon.inputs / "a.mp4", frames=12)
        jobs = [daemon.submit(source, f"{n}.mp4") for n in range(4)]
        fill(disk / "ballast")
        wait_for(lambda: not daemon.result("health")["ok"])
        waits = []
        for job in jobs[2:]:
            asked_at = time.monotonic()
            assert daemon.result("cancel", job=job)["state"] == "cancelled"
            waits.append(time.monotonic() - asked_at)
        assert max(waits) < 1, waits
        assert daemon.result("pause", job=jobs[1])["state"] == "paused"
        assert daemon.result("resume", job=jobs[1])["state"] == "queued"
        (disk / "ballast").unlink()
        wait_for(lambda: states(daemon, jobs) == {"done": 2, "cancelled": 2}, 60)
        assert daemon.result("health")["problems"] == []
        daemon.kill()
        daemon.start()
        assert states(daemon, jobs) == {"done": 2, "cancelled": 2}


@pytest.mark.long
@pytest.mark.alone
def test_jobs_that_fit_alone_end_although_they_fill_the_disk_together(
    tmp_path: Path, disk: Path
) -> None:
    with Daemon(tmp_path / "home", state=disk / "state") as daemon:
        source = large_clip(daemon.inputs / "a.mp4")
        jobs = [daemon.submit(source, f"{n}.mp4", config=LARGE) for n in range(4)]
        wait_for(lambda: states(daemon, jobs) == {"done": 4}, 300)
        assert "Jobs wait until there is space" in daemon.log()  # or the disk was too large
        for n in range(4):
            assert video_times(daemon.outputs / f"{n}.mp4") == video_times(source)


@pytest.mark.long
@pytest.mark.alone
def test_a_queue_of_twenty_goes_on_when_space_is_given_back(tmp_path: Path, disk: Path) -> None:
    with Daemon(tmp_path / "home", state=disk / "state") as daemon:
        source = large_clip(daemon.inputs / "a.mp4")
        jobs = [daemon.submit(source, f"{n}.mp4", config=LARGE) for n in range(20)]
        wait_for(lambda: any(daemon.work.glob("*/segment-*.part")))
        fill(disk / "ballast")
        wait_for(lambda: "Jobs wait until there is space" in daemon.log())
        num_lines = daemon.log().count("\n")
        for _ in range(60):
            time.sleep(1)
            asked_at = time.monotonic()
            daemon.result("health")
            assert time.monotonic() - asked_at < 1
        assert daemon.log().count("\n") - num_lines <= 20, daemon.log()
        assert set(states(daemon, jobs)) <= {"queued", "running"}
        asked_at = time.monotonic()
        assert daemon.result("cancel", job=jobs[-1])["state"] in ("cancelled", "running")
        assert time.monotonic() - asked_at < 1
        (disk / "ballast").unlink()
        wait_for(lambda: states(daemon, jobs) == {"done": 19, "cancelled": 1}, 1200)
        assert daemon.result("health")["ok"]
