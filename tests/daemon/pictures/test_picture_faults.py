"""Damaged and hostile pictures end their own job only, and what dies is replaced."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from srstream.jobs.failpoints import VARIABLE
from srstream.pictures.steps import PixelFile
from srstream.sandbox.confine import landlock_abi
from srstream.sqlite import is_disk_full
from tests.daemon.pictures.test_picture_jobs import pixels, read, write
from tests.daemon.test_full_disk import disk
from tests.support.service.daemon import Daemon, wait_for

__all__ = ["disk"]

SIDE = 1600


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("daemon"), "max_attempts = 3") as made:
        yield made


def large_picture(path: Path) -> Path:
    """Noise of 16 bits, which takes long to decode."""
    noise = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE, 3), np.uint16)
    return write(path, noise)


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def huge_png() -> bytes:
    """A header of 30,000 x 30,000 pixels and nothing in it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    ends = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ends


FAULTS: list[tuple[str, Any, str]] = [
    ("cut.png", lambda good: good[: len(good) // 2], "cut off"),
    ("text.png", lambda good: b"no picture", "is no PNG, JPEG, WebP, BMP or TIFF"),
    ("head.png", lambda good: good[:20], "damaged or cut off"),
    ("size.png", lambda good: flip(good, 19), "is damaged"),
    ("middle.png", lambda good: flip(good, len(good) // 2), "is damaged"),
    ("huge.png", lambda good: huge_png(), "more than the"),
]


@pytest.mark.parametrize(("name", "damage", "words"), FAULTS, ids=[name for name, *_ in FAULTS])
def test_a_damaged_picture_fails_with_a_sentence(
    daemon: Daemon, name: str, damage: Any, words: str
) -> None:
    good = write(daemon.inputs / "good.png", pixels((16, 16, 3))).read_bytes()
    source = daemon.inputs / name
    source.write_bytes(damage(good))
    job = daemon.wait(daemon.submit(source, name))
    assert job["state"] == "failed" and job["attempts"] == 1, job
    assert words in job["error"] and name in job["error"] and "/proc/" not in job["error"]
    assert "\n" not in job["error"]
    assert not (daemon.outputs / name).exists() and not (daemon.work / job["id"]).exists()


def test_a_killed_child_is_replaced(daemon: Daemon) -> None:
    source = large_picture(daemon.inputs / "large.png")
    job = daemon.submit(source, "large.png", config={"scaling": {"scale": 1}})
    child = child_that_works(daemon, job)
    said = (daemon.work / job / "media.log").read_text()
    child.kill()
    assert f"landlock {landlock_abi()}, " in said  # for every thread, and for all files
    done = daemon.wait(job, 120)
    assert done["state"] == "done", done
    assert "the process that reads the source died (status -9)" in daemon.log()
    assert read(daemon.outputs / "large.png").shape == (SIDE, SIDE, 3)
    assert daemon.result("health")["workers"][0]["num_restarts"] == 0


def child_that_works(daemon: Daemon, job: str) -> psutil.Process:
    """The child, once it is confined and reads its source."""
    log = daemon.work / job / "media.log"
    wait_for(lambda: daemon.children("pictures.child"))
    (child,) = daemon.children("pictures.child")
    while "confined" not in log.read_text():
        pass
    return child


def test_a_child_that_always_dies_puts_the_job_aside(daemon: Daemon) -> None:
    source = large_picture(daemon.inputs / "hostile.png")
    job = daemon.submit(source, "hostile.png")
    for _ in range(3):
        killed = child_that_works_again(daemon)
        killed.kill()
        killed.wait(5)
    done = daemon.wait(job)
    assert done["state"] == "quarantined" and "may be hostile" in done["error"], done


def child_that_works_again(daemon: Daemon) -> psutil.Process:
    wait_for(lambda: daemon.children("pictures.child"))
    return daemon.children("pictures.child")[0]


def test_a_running_picture_is_cancelled(daemon: Daemon) -> None:
    source = large_picture(daemon.inputs / "long.png")
    job = daemon.submit(source, "long.png")
    wait_for(lambda: (daemon.job(job)["progress"] or {}).get("stage") == "enhancing")
    daemon.result("cancel", job=job)
    wait_for(lambda: daemon.job(job)["state"] == "cancelled")
    wait_for(lambda: not (daemon.work / job).exists())
    assert not (daemon.outputs / "long.png").exists()


@pytest.mark.parametrize("step", ["output.assembled", "output.publishing", "output.published"])
def test_a_worker_that_is_killed_makes_the_picture_once(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies at a step of publishing; the daemon that follows ends the job."""
    monkeypatch.setenv(VARIABLE, step)
    with Daemon(tmp_path) as daemon:
        source = write(daemon.inputs / "p.png", pixels((16, 16)))
        job = daemon.submit(source, "p.png")
        wait_for(lambda: daemon.result("health")["workers"][0]["num_restarts"] > 0)
        daemon.kill()
        monkeypatch.delenv(VARIABLE)
        daemon.start()
        done = daemon.wait(job)
        assert done["state"] == "done", done
        assert read(daemon.outputs / "p.png").shape == (64, 64)
        assert [path.name for path in daemon.outputs.iterdir()] == ["p.png"]


def test_a_full_disk_is_waited_for(disk: Path, tmp_path: Path) -> None:
    """A disk of 44 MB, of which 28 MB are taken away later; the picture's pixels are 12 MB."""
    with Daemon(tmp_path, state=disk / "state") as daemon:
        (disk / "ballast").write_bytes(bytes(28 << 20))
        source = write(daemon.inputs / "p.png", pixels((500, 500, 3)))
        job = daemon.submit(source, "p.png")
        wait_for(lambda: "disk became full" in (daemon.job(job)["error"] or ""))
        assert daemon.job(job)["state"] in ("queued", "running")
        (disk / "ballast").unlink()
        assert daemon.wait(job)["state"] == "done"
        assert read(daemon.outputs / "p.png").shape == (2000, 2000, 3)


def test_a_child_tells_a_full_disk_from_its_own_fault() -> None:
    with pytest.raises(OSError, match="No space") as full:
        PixelFile.write(Path("/dev/full"), np.zeros((300, 300), np.uint8))
    assert is_disk_full(full.value)


@pytest.mark.long
def test_an_output_may_need_more_memory_than_a_source(tmp_path: Path) -> None:
    """6400 x 6400 of 16 bits are 246 MB, and a child begins with 256 MiB."""
    limit = f"[security]\ndecoder_memory_bytes = {256 << 20}"
    with Daemon(tmp_path) as daemon:
        text = daemon.config.read_text()
        daemon.config.write_text(text.replace("[security]", limit))
        daemon.result("reload")
        source = large_picture(daemon.inputs / "p.png")
        job = daemon.wait(daemon.submit(source, "p.png"), 120)
        assert job["state"] == "done", job
        assert read(daemon.outputs / "p.png").shape == (4 * SIDE, 4 * SIDE, 3)
