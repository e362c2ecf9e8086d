"""The inbox of a real daemon that is killed in between: every file becomes one job."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import clips
from tests.support.jobs import video_times
from tests.support.service.daemon import Daemon, wait_for


def watching(home: Path, watched: str = "watched", made: str = "made") -> str:
    """Make the default folders; returns the configuration that watches one."""
    for name in ("watched", "made", "bad"):
        (home / name).mkdir(exist_ok=True)
    return f"""
[[watch]]
folder = "{home}/{watched}"
output = "{home}/{made}"
quarantine = "{home}/bad"
settle_seconds = 0.5
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, watching(tmp_path)) as running:
        yield running


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_become_jobs_and_failures_are_explained(daemon: Daemon) -> None:
    watched, made, bad = (daemon.home / name for name in ("watched", "made", "bad"))
    (watched / "sub").mkdir()
    source = clips.cfr(watched / "sub" / "A.MP4", frames=20)
    (watched / "text.mkv").write_text("no video")
    wait_for(lambda: (made / "sub" / "A_4x.MP4").exists())
    wait_for(lambda: (bad / "text.mkv").exists())
    wait_for(lambda: any(name.endswith(".receipt.json") for name in names_in(made)))
    receipts = [name for name in names_in(made) if name.endswith(".receipt.json")]
    assert len(names_in(made)) == 2
    receipt = json.loads((made / receipts[0]).read_text())
    assert receipt["problems"] == []
    assert video_times(made / "sub" / "A_4x.MP4") == video_times(source)
    (reason,) = (name for name in names_in(bad) if name.endswith(".reason.txt"))
    text = (bad / reason).read_text()
    assert text.count("\n") == 1 and "text.mkv" in text and "/proc/" not in text
    assert names_in(watched) == ["sub/A.MP4"]
    jobs = daemon.result("list")["jobs"]
    assert {job["submitter"] for job in jobs} == {"watch"} and len(jobs) == 2


@pytest.mark.long
def test_a_killed_daemon_takes_each_file_once(daemon: Daemon) -> None:
    watched, made = daemon.home / "watched", daemon.home / "made"
    sources = [
        clips.cfr(watched / f"{n}.mp4", frames=100, gop=25, width=192, height=128) for n in range(3)
    ]
    for _ in range(2):
        wait_for(lambda: daemon.result("list")["jobs"])
        daemon.kill()
        daemon.start()
    wait_for(lambda: len(names_in(made)) == 6, 60)
    jobs = daemon.result("list")["jobs"]
    assert sorted(job["input"] for job in jobs) == sorted(str(path) for path in sources)
    assert {job["state"] for job in jobs} == {"done"}
    daemon.kill()
    daemon.start()
    clips.cfr(watched / "later.mp4", frames=10)
    wait_for(lambda: (made / "later_4x.mp4").exists())
    assert len(daemon.result("list")["jobs"]) == 4


def test_a_reload_adds_a_folder_and_takes_it_away(tmp_path: Path) -> None:
    """Files taken from the folder are finished, even by a worker that starts later."""
    with Daemon(tmp_path) as daemon:
        daemon.configure(watching(tmp_path))
        assert daemon.result("reload") == {"needs_restart": []}
        (worker,) = daemon.children("workers.main")
        worker.send_signal(signal.SIGSTOP)
        source = clips.cfr(tmp_path / "watched" / "a.mp4", frames=10)
        wait_for(lambda: daemon.result("health")["num_running"] == 1)
        daemon.configure()
        assert daemon.result("reload") == {"needs_restart": []}
        clips.cfr(tmp_path / "watched" / "b.mp4", frames=10)
        assert may_be_read(daemon, source)
        worker.kill()
        wait_for(lambda: (tmp_path / "made" / "a_4x.mp4.receipt.json").exists(), 60)
        wait_for(lambda: not may_be_read(daemon, source))
        assert len(daemon.result("list")["jobs"]) == 1
        assert video_times(tmp_path / "made" / "a_4x.mp4") == video_times(source)


def may_be_read(daemon: Daemon, source: Path) -> bool:
    """Whether the daemon accepts an input, which shows when it refuses only the output."""
    reply = daemon.ask("submit", input=str(source), output="/etc/a.mp4")
    return str(reply["error"]["text"]).startswith("/etc")


def test_a_wrong_reload_changes_nothing_and_a_right_one_the_workers_too(daemon: Daemon) -> None:
    """A reload is refused at any point; worker logs and metrics follow a valid one at once."""
    good, home = watching(daemon.home), daemon.home
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for settings, word in (
            (good + good, "named twice"),
            (watching(home, made="watched"), "keep them apart"),
            (watching(home, watched="nowhere"), "cannot be opened"),
            (f"[metrics]\nport = {taken.getsockname()[1]}", "in use"),
        ):
            daemon.configure(f"{settings}\n[logs]\nlevel = 'debug'")
            error = daemon.ask("reload")["error"]
            assert word in error["text"] and "\n" not in error["text"], error
    clips.cfr(home / "watched" / "a.mp4", frames=10)
    wait_for(lambda: (home / "made" / "a_4x.mp4").exists(), 60)
    assert '"level": "debug"' not in daemon.log()
    metrics = home / "metrics.sock"
    daemon.configure(f"{good}\n[logs]\nlevel = 'debug'\n[metrics]\npath = '{metrics}'")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    wait_for(lambda: any(is_debug_of_worker(line) for line in daemon.log().splitlines()))
    assert metrics.is_socket()
    daemon.configure(f"{good}\n[workers]\nstall_seconds = 60\n[logs]\nform = 'console'")
    for _ in range(2):
        assert daemon.result("reload") == {"needs_restart": ["workers"]}
    assert not metrics.exists()
    assert "configuration reloaded" in daemon.log().splitlines()[-1]
    assert not daemon.log().splitlines()[-1].startswith("{")


def is_debug_of_worker(line: str) -> bool:
    try:
        told = json.loads(line)
    except ValueError:
        return False
    return (told["level"], told.get("worker")) == ("debug", "engine-0")
