"""TIFF pictures: what comes out has the pixels, the depth and the size, by another reader."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from srstream.pictures.tiff import read_tiff_header
from tests.support.ffmpeg import convert, needs_ffmpeg, probe
from tests.support.jobs import run


def ramp(dtype: type, channels: int) -> np.ndarray:
    peak = np.iinfo(dtype).max
    row = np.linspace(peak * 0.2, peak * 0.8, 32)
    plane = np.broadcast_to(row, (24, 32))
    return np.repeat(plane[..., None], channels, 2).astype(dtype).squeeze()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_depth_and_color_come_back(tmp_path: Path, dtype: type, channels: int) -> None:
    source = ramp(dtype, channels)
    cv2.imwrite(str(tmp_path / "in.tiff"), source)
    done = run("enhance", tmp_path / "in.tiff")
    assert done.returncode == 0, done.stderr
    made = cv2.imread(str(tmp_path / "in_4x.tiff"), cv2.IMREAD_UNCHANGED)
    assert (made.dtype, made.shape[:2], made.ndim) == (source.dtype, (96, 128), source.ndim)
    smaller = cv2.resize(made, (32, 24), interpolation=cv2.INTER_AREA)
    error = np.abs(smaller.astype(float) - source).mean() / np.iinfo(dtype).max
    assert error < 0.01


@needs_ffmpeg
def test_what_ffmpeg_writes_is_read_and_may_become_png(tmp_path: Path, sample_clip: Path) -> None:
    source = convert(sample_clip, tmp_path / "in.tif", "-frames:v", "1", "-pix_fmt", "rgb24")
    done = run("enhance", source, "-o", tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    before = probe(source, "-show_streams")["streams"][0]
    now = probe(tmp_path / "out.png", "-show_streams")["streams"][0]
    assert (now["width"], now["height"]) == (4 * before["width"], 4 * before["height"])


def test_folders_take_tiff_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.tif", "b.TIFF"):
        _, data = cv2.imencode(".tiff", ramp(np.uint8, 3))
        (tmp_path / "in" / name).write_bytes(bytes(data))
    done = run("enhance", tmp_path / "in")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "in_4x").iterdir()) == ["a.tif", "b.TIFF"]


def tiff(*entries: tuple[int, int, int], following: int = 0) -> bytes:
    """A little-endian file of one directory; each entry has a tag, a type and one value."""
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return head + body + struct.pack("<I", following) + bytes(64)


SIZE = ((256, 4, 7), (257, 4, 5))
STRIP = ((273, 4, 40), (279, 4, 20))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tiff(*SIZE, (262, 3, 2), *STRIP, following=8), "several pages"),
        (tiff(*SIZE, (262, 3, 5), *STRIP), "CMYK"),
        (tiff(*SIZE, (262, 3, 1), *STRIP, (339, 3, 3)), "floating-point"),
        (tiff(*SIZE, (258, 3, 12), *STRIP), "unusual depth"),
        (tiff(*SIZE, (273, 4, 40), (279, 4, 9999)), "cut off"),
        (b"II*\0\xff\xff\xff\x7f", "damaged or cut off"),
    ],
)
def test_what_cannot_be_enhanced_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "in.tiff"
    path.write_bytes(content)
    done = run("enhance", path)
    assert done.returncode in (1, 2)
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_header_that_turns_the_picture_turns_its_size() -> None:
    header = read_tiff_header(tiff(*SIZE, *STRIP, (274, 3, 6)))
    assert (header.width, header.height) == (5, 7)
