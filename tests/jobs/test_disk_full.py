"""A full disk pauses the job; with space again, the same command finishes it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import clips
from tests.support.jobs import run, video_times


def mount(*arguments: str) -> bool:
    try:
        return (
            subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
        )
    except FileNotFoundError:
        return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)):
        pytest.skip("this machine lets no test mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_pauses_and_the_job_finishes_later(small_disk: Path, tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mp4", frames=120, noise=70, gop=25, width=128, height=96)
    output = small_disk / "out.mp4"
    full = run("enhance", source, "-o", output, "--crf", "10", "--deterministic")
    assert full.returncode == 1, full.stderr
    assert "space" in full.stderr and "resumes" in full.stderr, full.stderr
    assert "Traceback" not in full.stderr
    assert not output.exists()
    assert mount("-o", "remount,size=64m", str(small_disk))
    done = run("enhance", source, "-o", output, "--crf", "10", "--deterministic")
    assert done.returncode == 0, done.stderr
    assert video_times(output) == video_times(source)
    assert [path.name for path in small_disk.iterdir()] == ["out.mp4"]


def test_a_disk_that_is_too_small_is_refused_before_the_start(
    small_disk: Path, tmp_path: Path
) -> None:
    source = clips.cfr(tmp_path / "in.mp4", frames=50, width=640, height=360)
    refused = run("enhance", source, "-o", small_disk / "out.mp4")
    assert refused.returncode == 2, refused.stderr
    assert "MB are free" in refused.stderr
    assert list(small_disk.iterdir()) == []
