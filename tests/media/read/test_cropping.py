"""A container may hide the edges of its pictures: what is enhanced is what is shown.

The fields are written into the files by the tests, after RFC 9559 and ISO/IEC 14496-12; the
pictures are those of Debian's ffmpeg 5, which decodes all of them, cut in numpy.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from srstream.config import SourceConfig
from srstream.media.read.decode import Decoder
from srstream.media.read.probe import probe
from srstream.media.types import Crop
from tests.support import clips

SOURCE = SourceConfig()
WIDTH, HEIGHT, NUM_FRAMES = 64, 48, 6
SOME = Crop(left=6, top=4, right=2, bottom=8)


def _with_pixel_crop(path: Path, crop: Crop) -> Path:
    """Matroska: four fields in front of the Video element's, and as much less of a Void before."""
    clips.write_clip(path, NUM_FRAMES, container_options={"write_crc32": "0"})
    data = bytearray(path.read_bytes())
    sides = {0xAA: crop.bottom, 0xBB: crop.top, 0xCC: crop.left, 0xDD: crop.right}
    fields = b"".join(bytes([0x54, kind, 0x81, side]) for kind, side in sides.items())
    tracks = data.rindex(b"\x16\x54\xae\x6b") + 4  # SeekHead names it too
    entry = data.index(b"\xae\x01\0\0\0\0\0\0", tracks) + 1
    video = data.index(b"\xe0", data.index(b"\x23\xe3\x83", entry)) + 1
    void = data.index(b"\xec\x01\0\0\0\0\0\0") + 1
    for place, change in ((tracks, 1), (entry, 1), (video, 1), (void, -1)):
        length = 9 - data[place].bit_length()
        size = int.from_bytes(data[place : place + length], "big") + change * len(fields)
        data[place : place + length] = size.to_bytes(length, "big")
    data[video + 1 : video + 1] = fields
    del data[void + 8 : void + 8 + len(fields)]
    path.write_bytes(data)
    return path


def _with_clean_aperture(path: Path, crop: Crop) -> Path:
    """MP4 and MOV: a `clap` box at the end of the sample entry; `moov` is the file's last box."""
    clips.write_clip(path, NUM_FRAMES)
    data = bytearray(path.read_bytes())
    numbers = [WIDTH - crop.left - crop.right, 1, HEIGHT - crop.top - crop.bottom, 1]
    numbers += [crop.left - crop.right, 2, crop.top - crop.bottom, 2]
    box = (40).to_bytes(4, "big") + b"clap"
    box += b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)
    end = 0
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        at = data.rindex(name) - 4
        size = int.from_bytes(data[at : at + 4], "big")
        end = at + size
        data[at : at + 4] = (size + len(box)).to_bytes(4, "big")
    data[end:end] = box
    path.write_bytes(data)
    return path


def _written(path: Path, crop: Crop) -> Path:
    return (_with_pixel_crop if path.suffix == ".mkv" else _with_clean_aperture)(path, crop)


def _whole_planes(path: Path) -> list[list[npt.NDArray[np.uint8]]]:
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "rawvideo", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    luma, chroma = WIDTH * HEIGHT, WIDTH * HEIGHT // 4
    assert len(raw) == NUM_FRAMES * (luma + 2 * chroma)
    pictures = []
    for frame in np.frombuffer(raw, np.uint8).reshape(NUM_FRAMES, -1):
        halves = frame[luma:].reshape(2, HEIGHT // 2, WIDTH // 2)
        pictures.append([frame[:luma].reshape(HEIGHT, WIDTH), *halves])
    return pictures


@pytest.mark.parametrize("name", ["in.mkv", "in.mp4", "in.mov"])
@pytest.mark.parametrize("crop", [SOME, Crop(bottom=16), Crop(left=3, top=1)])
def test_frames_are_what_the_container_shows(tmp_path: Path, name: str, crop: Crop) -> None:
    path = _written(tmp_path / name, crop)
    info = probe(path, SOURCE)
    columns = slice(crop.left, WIDTH - crop.right)
    rows = slice(crop.top, HEIGHT - crop.bottom)
    assert (info.video.width, info.video.height) == (
        columns.stop - columns.start,
        rows.stop - rows.start,
    )
    assert any(f"shows {info.video.width}x{info.video.height}" in text for text in info.warnings)
    decoder = Decoder(path, info.video, SOURCE)
    frames = list(decoder.frames())
    decoder.close()
    for frame, planes in zip(frames, _whole_planes(path), strict=True):
        assert np.array_equal(frame.planes[0], planes[0][rows, columns])
        for index in (1, 2):
            part = planes[index][rows.start // 2 : -(-rows.stop // 2)]
            part = part[:, columns.start // 2 : -(-columns.stop // 2)]
            shape = frame.layout.plane_shape(index, frame.width, frame.height)
            assert frame.planes[index].shape == shape
            assert np.array_equal(frame.planes[index], part[: shape[0], : shape[1]])


def test_a_crop_that_leaves_nothing_is_none(tmp_path: Path) -> None:
    """In MP4; libav opens no Matroska file of that kind."""
    video = probe(_written(tmp_path / "in.mp4", Crop(left=60, right=60)), SOURCE).video
    assert (video.width, video.height, bool(video.crop)) == (WIDTH, HEIGHT, False)


def test_a_tag_is_no_crop(tmp_path: Path) -> None:
    lie = "a\n      Frame Cropping: 1/2/3/4\r\n  Stream #0:0\r      Frame Cropping: 1/2/3/4"
    path = clips.write_clip(
        tmp_path / "in.mkv", 2, metadata={"title": lie}, stream_metadata={"title": lie}
    )
    assert not probe(path, SOURCE).video.crop


def test_pixels_keep_their_shape(tmp_path: Path) -> None:
    """In Matroska the display size is that of the part that is shown."""
    path = _with_pixel_crop(tmp_path / "in.mkv", SOME)
    video = probe(path, SOURCE).video
    assert video.sample_aspect_ratio == 1
