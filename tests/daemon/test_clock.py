"""A wall clock that is set, forward and back, while the daemon runs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from srstream.daemon.clock import Clock
from srstream.daemon.queue import JobQueue
from tests.daemon.test_retries import add
from tests.support import clips
from tests.support.service.clock_shim import ShiftedClock
from tests.support.service.daemon import Daemon, wait_for

DAY = 86_400
NOTICED_SECONDS = 10.0


class Wall:
    """The wall clock of this process as a test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset = 0.0
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + self.offset)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    return Wall(monkeypatch)


def test_the_shim_sets_the_clock_of_a_process_that_runs(tmp_path: Path) -> None:
    clock = ShiftedClock(tmp_path)
    program = "import time\nfor _ in range(2): print(int(time.time()), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=clock.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        before = int(process.stdout.readline())
        clock.set(-3 * DAY)
        process.stdin.write("\n")
        process.stdin.flush()
        after = int(process.stdout.readline())
        process.communicate("\n")
    assert after - before == pytest.approx(-3 * DAY, abs=10)


def test_jumps_are_noticed_and_said_once(wall: Wall) -> None:
    clock = Clock()
    assert clock.jump() is None
    wall.offset = -172_771
    assert "set back by 172771 s" in (clock.jump() or "")
    assert clock.jump() is None
    wall.offset = 0
    assert "set forward by 172771 s" in (clock.jump() or "")


@pytest.mark.parametrize("offset", [-90 * DAY, 90 * DAY])
def test_a_pause_is_as_long_whatever_the_clock_says(
    tmp_path: Path, wall: Wall, offset: float
) -> None:
    with JobQueue(tmp_path / "jobs.sqlite") as queue:
        job = add(queue)
        queue.change(job.id, "queued", pause_seconds=0.3)
        wall.offset = offset
        assert queue.next_jobs(1) == []
        time.sleep(0.4)
        assert [found.id for found in queue.next_jobs(1)] == [job.id]
        queue.change(job.id, "queued", pause_seconds=1000)
        wall.offset = -offset
    with JobQueue(tmp_path / "jobs.sqlite") as queue:
        assert (queue.pause_left(job.id) or 0) <= 300


@pytest.mark.parametrize("offset", [-90 * DAY, 90 * DAY])
def test_a_clock_that_is_set_makes_nothing_old(tmp_path: Path, wall: Wall, offset: float) -> None:
    clock = Clock()
    with JobQueue(tmp_path / "jobs.sqlite") as queue:
        for name in ("before", "after"):
            job = add(queue, name)
            queue.change(job.id, "running", started=time.time())
            queue.change(job.id, "done")
            wall.offset = offset
        assert queue.forget_old(clock.earliest() - 30 * DAY) == 0
        assert len(queue.jobs()) == 2


def test_order_and_durations_survive_a_clock_that_is_set_back(tmp_path: Path, wall: Wall) -> None:
    with JobQueue(tmp_path / "jobs.sqlite") as queue:
        first = add(queue, "a")
        queue.change(first.id, "running", started=time.time())
        wall.offset = -2 * DAY
        ended = queue.change(first.id, "done")
        info = queue.get(first.id).info()
        assert ended.time < first.created and info.ended is not None and info.started is not None
        assert info.ended >= info.started
        later = [add(queue, name) for name in "bcd"]
        assert [job.id for job in queue.next_jobs(9)] == [job.id for job in later]
        assert [job.id for job in queue.jobs()] == [job.id for job in [*later[::-1], first]]


@pytest.mark.long
@pytest.mark.alone
def test_a_daemon_works_on_while_its_clock_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ShiftedClock(tmp_path)
    for name, value in clock.environment.items():
        monkeypatch.setenv(name, value)
    with Daemon(tmp_path / "home") as daemon:
        source = clips.cfr(daemon.inputs / "a.mp4", frames=25)
        ids = []
        for offset, how in ((-172_771, "back by 1727"), (5 * DAY, "forward by 604")):
            ids.append(daemon.submit(source, f"{len(ids)}.mp4"))
            wait_for(lambda: daemon.children("sandbox.decoder"))
            clock.set(offset)
            wait_for(
                lambda how=how: how in " ".join(daemon.result("health")["notes"]),  # type: ignore[misc]
                NOTICED_SECONDS,
            )
            health = daemon.result("health")
            assert health["ok"] and 0 < health["uptime_seconds"] < 600, health
            ended = daemon.wait(ids[-1])
            assert ended["state"] == "done" and ended["attempts"] == 1, ended
            assert ended["created"] <= ended["started"] <= ended["ended"], ended
            assert how in daemon.log()
        assert ids == sorted(ids)
        assert [job["id"] for job in daemon.result("list")["jobs"]] == ids[::-1]
