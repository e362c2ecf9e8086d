"""Pictures are jobs like others: a real daemon makes them larger, as `srstream enhance` does."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from srstream.naming import PICTURE_SUFFIXES
from srstream.pictures.files import SUFFIXES
from tests.daemon.test_daemon import long_clip
from tests.support import clips
from tests.support.paths import REPOSITORY
from tests.support.service.daemon import Daemon, wait_for

EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
"""One entry: orientation 6."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("daemon")) as made:
        yield made


def pixels(shape: tuple[int, ...], kind: Any = np.uint8) -> Any:
    noise = np.random.default_rng(1).random(shape).astype(np.float32)
    return np.rint(cv2.GaussianBlur(noise, (0, 0), 2) * np.iinfo(kind).max).astype(kind)


def write(path: Path, picture: Any) -> Path:
    assert cv2.imwrite(str(path), picture)
    return path


def read(path: Path) -> Any:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def ended(daemon: Daemon, source: Path, **fields: Any) -> dict[str, Any]:
    return daemon.wait(daemon.result("submit", input=str(source), **fields)["id"])


def enhanced(source: Path, output: Path) -> Any:
    """What the command makes."""
    command = [sys.executable, "-m", "srstream", "enhance", str(source), "-o", str(output)]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    return read(output)


def test_both_tables_of_suffixes_agree() -> None:
    assert SUFFIXES.keys() == PICTURE_SUFFIXES


def test_16_bits_and_transparency_are_kept(daemon: Daemon, tmp_path: Path) -> None:
    before = pixels((30, 44, 4), np.uint16)
    source = write(daemon.inputs / "deep.png", before)
    job = ended(daemon, source)
    assert job["state"] == "done", job
    assert job["output"] == str(daemon.outputs / "deep_4x.png")
    after = read(Path(job["output"]))
    assert after.dtype == np.uint16 and after.shape == (120, 176, 4)
    small = cv2.resize(after, (44, 30), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(float) - before).mean() < 0.02 * 65535
    assert np.array_equal(after, enhanced(source, tmp_path / "deep.png"))
    result = job["result"]
    assert (result["num_frames"], result["exit_code"], result["receipt"]) == (1, 0, None)
    assert (job["num_segments"], job["num_segments_done"], job["attempts"]) == (1, 1, 1)
    assert len(job["weights_sha256"]) == 64 and not (daemon.work / job["id"]).exists()


def test_metadata_of_a_jpeg_are_kept(daemon: Daemon) -> None:
    source = write(daemon.inputs / "photo.jpg", pixels((24, 40, 3)))
    content = source.read_bytes()
    segment = b"\xff\xe1" + struct.pack(">H", len(EXIF) + 2) + EXIF
    comment = b"\xff\xfe" + struct.pack(">H", 12) + b"a comment!"
    source.write_bytes(content[:2] + segment + comment + content[2:])
    job = ended(daemon, source)
    assert job["state"] == "done", job
    made = Path(job["output"]).read_bytes()
    assert made.count(segment) == 1 and made.count(comment) == 1
    # The orientation is still a tag: the pixels are not turned.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    assert cv2.imread(job["output"], flags).shape == (96, 160, 3)


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".tif", ".PNG"])
@pytest.mark.parametrize(
    ("scaling", "mark", "size"),
    [({"height": 48}, "48p", (64, 48)), ({"scale": 2}, "2x", (64, 48))],
)
def test_every_kind_and_size(
    daemon: Daemon, suffix: str, scaling: dict[str, Any], mark: str, size: tuple[int, int]
) -> None:
    source = write(daemon.inputs / f"kind{suffix}", pixels((24, 32, 3)))
    job = ended(daemon, source, config={"scaling": scaling}, overwrite=True)
    assert job["state"] == "done", job
    assert Path(job["output"]).name == f"kind_{mark}{suffix}"
    assert read(Path(job["output"])).shape == (size[1], size[0], 3)


def test_the_command_waits_for_a_picture(daemon: Daemon) -> None:
    write(daemon.inputs / "shell.png", pixels((20, 20)))
    address = f"ipc://{daemon.runtime}/control.sock"
    command = [sys.executable, "-m", "srstream", "submit", "shell.png", "--wait"]
    done = subprocess.run(
        [*command, "--address", address],
        cwd=daemon.inputs,
        env={"PYTHONPATH": str(REPOSITORY), "HOME": str(daemon.home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read(daemon.outputs / "shell_4x.png").shape == (80, 80)


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("a.mp4", {}, "is a picture and becomes one; choose a name that ends in"),
    ("a", {}, "is a picture and becomes one"),
    ("a.png", {"encode": {"codec": "hevc"}}, "config.encode.codec: "),
    ("a.png", {"encode": {"crf": 20}}, "config.encode.crf: "),
    ("a.png", {"source": {"start_seconds": 2}}, "is a picture, for which this setting"),
    ("a.png", {"streams": {"other_video": "drop"}}, "config.streams.other_video: "),
    ("a.png", {"scaling": {"scale": 2, "height": 720}}, "scale and height exclude each other"),
    ("a.png", {"model": {"name": "nonsense"}}, "there are no such weights"),
    ("taken.png", {}, "exists already and was not touched"),
]


@pytest.mark.parametrize(("name", "config", "words"), REFUSALS, ids=lambda value: str(value)[:40])
def test_what_makes_no_sense_is_refused_at_once(
    daemon: Daemon, name: str, config: dict[str, Any], words: str
) -> None:
    source = write(daemon.inputs / "a.png", pixels((8, 8)))
    (daemon.outputs / "taken.png").write_bytes(b"mine")
    output = str(daemon.outputs / name)
    reply = daemon.ask("submit", input=str(source), output=output, config=config)
    assert not reply["ok"] and words in reply["error"]["text"], reply
    assert (daemon.outputs / "taken.png").read_bytes() == b"mine"


def test_a_setting_that_changes_nothing_is_taken(daemon: Daemon) -> None:
    source = write(daemon.inputs / "plain.png", pixels((8, 8)))
    job = ended(daemon, source, config={"encode": {"codec": "auto"}})
    assert job["state"] == "done", job


def animated_png(path: Path, *first: tuple[bytes, bytes]) -> Path:
    """Two frames of 16x16, made by FFmpeg; `first` are further chunks, after the header."""
    made = ["-f", "lavfi", "-i", "testsrc=s=16x16:r=2:d=1", "-f", "apng", "-y", str(path)]
    subprocess.run(["ffmpeg", "-v", "error", *made], check=True)
    content = path.read_bytes()
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in first
    )
    path.write_bytes(content[:33] + chunks + content[33:])
    return path


def animated_webp(path: Path) -> Path:
    """Two frames of 16x16, made by libwebp."""
    made = ["-f", "lavfi", "-i", "testsrc=s=16x16:r=2:d=1", "-c:v", "libwebp_anim", "-y", str(path)]
    subprocess.run(["ffmpeg", "-v", "error", *made], check=True)
    return path


@pytest.mark.parametrize("make", [animated_png, animated_webp])
def test_an_animation_is_a_video(daemon: Daemon, make: Callable[[Path], Path]) -> None:
    source = make(daemon.inputs / f"moving.{make.__name__.removeprefix('animated_')}")
    job = ended(daemon, source, overwrite=True)
    assert job["state"] == "done", job
    assert Path(job["output"]).name == "moving_4x.mkv"
    assert job["result"]["num_frames"] == 2


def test_an_animation_with_a_pictures_name_stays_one(daemon: Daemon) -> None:
    source = animated_png(daemon.inputs / "stays.png")
    job = ended(daemon, source, output=str(daemon.outputs / "stays.png"))
    assert job["state"] == "done" and job["result"]["num_frames"] == 2, job
    assert b"acTL" in Path(job["output"]).read_bytes()


def test_an_animation_that_is_hidden_is_said(daemon: Daemon) -> None:
    source = animated_png(daemon.inputs / "hidden.png", *[(b"tEXt", b"a\0b")] * 300)
    job = ended(daemon, source)
    assert job["state"] == "failed" and "is an animated PNG" in job["error"], job


def test_a_picture_goes_beside_a_video(tmp_path: Path) -> None:
    """It does not wait for the video's end, and its network is the one that the video uses."""
    with Daemon(tmp_path, "max_running = 2") as daemon:
        clip = long_clip(daemon.inputs / "in.mp4", seconds=12)
        video = daemon.submit(clip, "out.mp4")
        wait_for(lambda: daemon.job(video)["num_segments_done"] > 0, 60)
        source = write(daemon.inputs / "p.png", pixels((90, 160, 3)))
        picture = daemon.wait(daemon.submit(source, "p.png"))
        assert picture["state"] == "done", picture
        assert daemon.job(video)["state"] == "running"
        daemon.result("cancel", job=video)


def test_a_picture_that_waits_can_be_cancelled_paused_and_moved_forward(tmp_path: Path) -> None:
    with Daemon(tmp_path, "max_running = 1") as daemon:
        clip = long_clip(daemon.inputs / "in.mp4", seconds=12)
        video = daemon.submit(clip, "out.mp4")
        wait_for(lambda: daemon.job(video)["state"] == "running")
        source = write(daemon.inputs / "p.png", pixels((16, 16)))
        gone, held, first = (daemon.submit(source, f"{n}.png") for n in range(3))
        assert daemon.result("cancel", job=gone)["state"] == "cancelled"
        assert daemon.result("pause", job=held)["state"] == "paused"
        assert daemon.result("priority", job=first, priority=5)["priority"] == 5
        daemon.result("cancel", job=video)
        assert daemon.wait(first)["state"] == "done"
        assert daemon.job(held)["state"] == "paused"
        daemon.result("resume", job=held)
        assert daemon.wait(held)["state"] == "done"
        assert sorted(path.name for path in daemon.outputs.iterdir()) == ["1.png", "2.png"]


def test_the_inbox_takes_pictures(tmp_path: Path) -> None:
    """With settings of the folder that mean something for its videos only."""
    for name in ("watched", "made", "bad"):
        (tmp_path / name).mkdir()
    watch = f"""
[[watch]]
folder = "{tmp_path}/watched"
output = "{tmp_path}/made"
quarantine = "{tmp_path}/bad"
settle_seconds = 0.3
[watch.config.encode]
crf = 30
"""
    with Daemon(tmp_path, watch):
        made, bad = tmp_path / "made", tmp_path / "bad"
        write(tmp_path / "watched" / "a.jpg", pixels((16, 24, 3)))
        animated_png(tmp_path / "watched" / "moving.png")
        clips.cfr(tmp_path / "watched" / "clip.mp4", frames=10)
        (tmp_path / "watched" / "b.png").write_bytes(b"no picture")
        wait_for(lambda: (made / "a_4x.jpg").exists())
        wait_for(lambda: (made / "moving_4x.mkv").exists() and (made / "clip_4x.mp4").exists())
        assert read(made / "a_4x.jpg").shape == (64, 96, 3)
        wait_for(lambda: (bad / "b.png.reason.txt").exists())
        assert "is no PNG, JPEG" in (bad / "b.png.reason.txt").read_text()
