"""Watch folders of a real daemon, killed in between: every file becomes one job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import clips
from tests.daemon import Daemon, wait_for
from tests.jobs import video_times


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    for name in ("watched", "made", "bad"):
        (tmp_path / name).mkdir()
    settings = f"""
[[watch]]
folder = "{tmp_path}/watched"
output = "{tmp_path}/made"
quarantine = "{tmp_path}/bad"
settle_seconds = 0.5
"""
    with Daemon(tmp_path, settings) as running:
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
    wait_for(lambda: len(names_in(made)) == 2)
    receipts = [name for name in names_in(made) if name.endswith(".receipt.json")]
    receipt = json.loads((made / receipts[0]).read_text())
    assert receipt["problems"] == []
    assert video_times(made / "sub" / "A_4x.MP4") == video_times(source)
    (reason,) = (name for name in names_in(bad) if name.endswith(".reason.txt"))
    text = (bad / reason).read_text()
    assert text.count("\n") == 1 and "text.mkv" in text and "/proc/" not in text
    assert names_in(watched) == ["sub/A.MP4"]
    jobs = daemon.result("list")["jobs"]
    assert {job["submitter"] for job in jobs} == {"watch"} and len(jobs) == 2


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


def test_a_reload_keeps_what_is_watched(daemon: Daemon) -> None:
    daemon.configure()
    assert daemon.result("reload") == {"needs_restart": ["watch"]}
    clips.cfr(daemon.home / "watched" / "a.mp4", frames=10)
    wait_for(lambda: (daemon.home / "made" / "a_4x.mp4").exists())
