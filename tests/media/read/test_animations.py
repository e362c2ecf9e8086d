"""Animated pictures are videos, and have alpha only where a pixel is not opaque."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import av
import numpy as np
import pytest

import srstream
from srstream.batch.inputs import find_inputs
from srstream.config import SourceConfig
from srstream.errors import RefusedError, UsageError
from srstream.media.animations.header import PNG_SIGNATURE
from srstream.media.read import opacity
from srstream.media.read.decode import Decoder
from srstream.media.read.probe import probe
from srstream.media.types import SourceInfo
from srstream.pictures.inputs import is_picture_input
from srstream.pictures.job import enhance_pictures, plan_picture
from tests.support import clips, ffmpeg
from tests.support.jobs import run


def rgba(index: int, alpha: int = 255, size: tuple[int, int] = (32, 24)) -> clips.Rgb:
    """A picture whose upper left quarter has this alpha."""
    image = np.dstack([clips.picture(index, *size), np.full(size[::-1], 255, np.uint8)])
    image[: size[1] // 2, : size[0] // 2, 3] = alpha
    return image


def apng(path: Path, alphas: list[int], pix_fmt: str = "rgba") -> Path:
    frames = [rgba(n, alpha) for n, alpha in enumerate(alphas)]
    size = {"width": 32, "height": 24}
    return clips.write_clip(path, frames, codec="apng", pix_fmt=pix_fmt, format="apng", **size)


def gif(path: Path, alphas: list[int], disposal: int = 2) -> Path:
    """A GIF whose palette has a transparent entry, used in the upper left quarter where alpha is 0.

    `disposal` 2 clears a frame before the next, 1 leaves it (GIF89a, 23). The LZW codes have 8 bits
    throughout, as the table is cleared before it grows.
    """
    width, height, transparent = 32, 24, 127
    palette = bytes(min(2 * n, 255) for n in range(128) for _ in range(3))
    data = b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF6, 0, 0) + palette
    for number, alpha in enumerate(alphas):
        pixels = np.full((height, width), number, np.uint8)
        if alpha == 0:
            pixels[: height // 2, : width // 2] = transparent
        codes = bytes(pixels)
        parts = [b"\x80" + codes[at : at + 120] for at in range(0, len(codes), 120)] + [b"\x81"]
        data += bytes([0x21, 0xF9, 4, disposal << 2 | 1, 10, 0, transparent, 0])
        data += b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x07"
        data += b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
    path.write_bytes(data + b";")
    return path


def least_alpha(path: Path) -> int:
    """As ffmpeg shows it."""
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", path, "-pix_fmt", "rgba", "-f", "rawvideo", "-"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    return min(raw[3::4])


def info(path: Path) -> SourceInfo:
    return probe(path, SourceConfig())


@ffmpeg.needs_ffmpeg
def test_a_gif_without_a_transparent_pixel_has_no_alpha(tmp_path: Path) -> None:
    path = gif(tmp_path / "a.gif", [255] * 9)
    assert least_alpha(path) == 255 and not info(path).video.layout.has_alpha
    done = run("enhance", path)
    assert done.returncode == 0, done.stderr
    (stream,) = ffmpeg.probe(tmp_path / "a_4x.mp4", "-show_streams")["streams"]
    assert (stream["codec_name"], stream["width"], stream["nb_frames"]) == ("h264", 128, "9")


@ffmpeg.needs_ffmpeg
@pytest.mark.parametrize(
    ("alphas", "disposal", "least"),
    [
        ([255] * 30, 1, 255),
        ([0] * 9, 2, 0),
        ([255, 255, 0], 2, 0),
        ([255] * 30 + [0], 2, 0),
        ([255] * 30 + [0], 1, 255),  # what was there before shows through
    ],
)
def test_alpha_is_what_a_gif_shows(
    tmp_path: Path, alphas: list[int], disposal: int, least: int
) -> None:
    path = gif(tmp_path / "a.gif", alphas, disposal)
    assert least_alpha(path) == least
    assert info(path).video.layout.has_alpha == (least == 0)


@pytest.mark.parametrize("alphas", [[254] * 3, [255] * 12 + [128], [255] * 12 + [254]])
def test_one_pixel_that_is_not_opaque_is_enough(tmp_path: Path, alphas: list[int]) -> None:
    assert info(apng(tmp_path / "a.png", alphas)).video.layout.has_alpha


def test_an_opaque_png_animation_has_no_alpha(tmp_path: Path) -> None:
    path = apng(tmp_path / "a.png", [255] * 12)
    video = info(path).video
    assert video.pix_fmt == "rgba" and not video.layout.has_alpha
    frames = list(Decoder(path, video, SourceConfig()).frames())
    assert len(frames) == 12 and {len(frame.planes) for frame in frames} == {3}


def test_what_is_not_looked_at_keeps_its_alpha(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = apng(tmp_path / "a.png", [255] * 12)
    monkeypatch.setattr(opacity, "MAX_PIXELS_LOOKED_AT", 32 * 24 * 11)
    assert info(path).video.layout.has_alpha


def test_a_palette_that_turns_transparent_unseen_is_said(tmp_path: Path) -> None:
    """The first frames' palettes are opaque, so no further frame is looked at beforehand."""
    path = tmp_path / "a.mov"
    pixels = np.arange(32 * 24, dtype=np.uint8).reshape(24, 32) % 4
    with av.open(str(path), "w") as output:
        stream = output.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "pal8"
        for number in range(12):
            palette = np.full((256, 4), 255, np.uint8)
            palette[:, 1:] = np.arange(256)[:, None]
            palette[1, 0] = 255 if number < 9 else 0
            frame = av.VideoFrame.from_ndarray((pixels, palette), format="pal8")
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    video = info(path).video
    if video.pix_fmt != "pal8":
        pytest.skip("this encoder gives palettes alpha in another form")
    assert not video.layout.has_alpha
    decoder = Decoder(path, video, SourceConfig())
    assert {len(frame.planes) for frame in decoder.frames()} == {3}
    (note,) = decoder.report.notes
    assert "Transparent pixels begin at 0.900 s" in note


# --- which way a file goes --------------------------------------------------------------------


def test_an_animated_png_is_a_video_by_any_name(tmp_path: Path) -> None:
    assert not is_picture_input(apng(tmp_path / "a.png", [255] * 3))
    assert not is_picture_input(apng(tmp_path / "a.apng", [255] * 3))
    assert not is_picture_input(tmp_path / "b.gif")
    assert is_picture_input(still(tmp_path / "s.png"))
    with pytest.raises(UsageError, match="use enhance_pictures"):
        srstream.enhance(tmp_path / "s.png")


def test_an_animation_of_one_frame_is_a_picture(tmp_path: Path) -> None:
    path = apng(tmp_path / "a.png", [255])
    assert is_picture_input(path)
    (result,) = srstream.enhance_pictures(path, tmp_path / "out.png")
    assert result.error is None and (tmp_path / "out.png").is_file()


@ffmpeg.needs_ffmpeg
def test_an_animated_png_is_enhanced(tmp_path: Path) -> None:
    path = apng(tmp_path / "a.png", [255] * 5, pix_fmt="rgb24")
    done = run("enhance", path)
    assert done.returncode == 0, done.stderr
    times = [time for time, _ in ffmpeg.frames(tmp_path / "a_4x.mp4")]
    assert times == [time for time, _ in ffmpeg.frames(path)] and len(times) == 5


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def still(path: Path) -> Path:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress((b"\0" + bytes(48)) * 16))
    path.write_bytes(PNG_SIGNATURE + head + data + chunk(b"IEND", b""))
    return path


def test_words_in_a_picture_make_no_animation(tmp_path: Path) -> None:
    """acTL counts as a chunk of its own before the picture, not as text nor behind it."""
    whole = still(tmp_path / "a.png").read_bytes()
    head, rest = whole[:33], whole[33:]
    text = chunk(b"tEXt", b"Comment\0acTL\0\0\0\2\0\0\0\0")
    late = rest[:-12] + chunk(b"acTL", struct.pack(">II", 2, 0)) + rest[-12:]
    for content in (head + text + rest, head + late, whole[:20], b"", PNG_SIGNATURE):
        (tmp_path / "a.png").write_bytes(content)
        assert is_picture_input(tmp_path / "a.png")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, animated and still, and what is none."""
    folder = tmp_path_factory.mktemp("mixed") / "holiday"
    folder.mkdir()
    still(folder / "still.png")
    apng(folder / "moves.png", [255] * 3)
    apng(folder / "clear.png", [0] * 3)
    clips.write_clip(folder / "spin.gif", 3, codec="gif", pix_fmt="rgb8", rate=10)
    (folder / "bad.gif").write_bytes(b"no animation")
    clips.cfr(folder / "film.mp4", frames=3)
    (folder / "notes.txt").write_text("x")
    (folder / "inner").mkdir()
    (folder / ".hidden").write_text("x")
    return folder


def test_a_folder_is_planned_with_all_that_it_holds(mixed: Path) -> None:
    planned = run("plan", mixed, "--json")
    assert planned.returncode == 1 and "bad.gif" in planned.stderr
    folder = mixed.with_name("good")
    shutil.copytree(mixed, folder)
    (folder / "bad.gif").unlink()
    planned = run("plan", folder, "--json")
    assert planned.returncode == 0, planned.stderr
    entries = {Path(e["input"]).name: e for e in json.loads(planned.stdout)}
    outputs = {name: e["output"] and Path(e["output"]).name for name, e in entries.items()}
    assert outputs == {
        "still.png": "still.png",
        "moves.png": "moves.mp4",
        "clear.png": "clear.mkv",
        "spin.gif": "spin.mp4",
        "film.mp4": "film.mp4",
        "notes.txt": None,
        "inner": None,
    }
    moves = entries["moves.png"]
    assert (moves["output_width"], moves["output_height"]) == (128, 96)
    assert "neither a video nor a picture" in entries["notes.txt"]["reason"]


def test_a_folder_is_enhanced_with_its_animations(mixed: Path, tmp_path: Path) -> None:
    done = run("enhance", mixed, "-o", tmp_path / "out")
    assert done.returncode == 1
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"still.png", "moves.mp4", "clear.mkv", "spin.mp4", "film.mp4"}
    assert "left out (neither a video nor a picture by its name): notes.txt" in done.stderr
    assert "left out (a folder; --recursive looks into it): inner" in done.stderr
    assert "srstream: " in done.stderr and "bad.gif" in done.stderr
    assert "hidden" not in done.stderr


def test_many_left_out_files_are_one_line(tmp_path: Path) -> None:
    still(tmp_path / "a.png")
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text("x")
    planned = run("plan", tmp_path)
    assert len(planned.stdout.splitlines()) == 2
    assert "00.txt, 01.txt, 02.txt, 03.txt, 04.txt and 35 more" in planned.stdout
    assert len(find_inputs([tmp_path]).left_out) == 40
    assert not find_inputs([tmp_path / "a.png"]).left_out


def test_two_animations_of_one_name_are_refused(tmp_path: Path) -> None:
    apng(tmp_path / "a.png", [255] * 2)
    clips.write_clip(tmp_path / "a.gif", 2, codec="gif", pix_fmt="rgb8", rate=10)
    config = srstream.JobConfig()
    with pytest.raises(UsageError, match="rename one of them"):
        list(enhance_pictures(tmp_path, None, config))


# --- outputs that cannot be -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.mp4", "out.MKV", "new/out.avi", "out.gif", "out.png"])
def test_pictures_do_not_become_one_file(tmp_path: Path, name: str) -> None:
    still(tmp_path / "a.png")
    still(tmp_path / "b.png")
    for source in (tmp_path, tmp_path / "*.png"):
        with pytest.raises(UsageError, match="name a folder with -o"):
            list(enhance_pictures(source, tmp_path / name, srstream.JobConfig()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_folder_may_be_called_like_a_video_if_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    still(tmp_path / "in" / "a.png")
    (tmp_path / "out.mp4").mkdir()
    (made,) = enhance_pictures(tmp_path / "in", tmp_path / "out.mp4", srstream.JobConfig())
    assert made.destination == tmp_path / "out.mp4" / "a.png"


def test_a_picture_becomes_no_video_and_a_video_no_picture(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a picture and becomes one"):
        plan_picture(still(tmp_path / "a.png"), tmp_path / "out.mp4", srstream.JobConfig())
    video, moving = clips.cfr(tmp_path / "a.mp4", frames=2), apng(tmp_path / "b.png", [9, 9])
    for source, name in ((video, "out.png"), (video, "out.jpg"), (moving, "out.jpg")):
        with pytest.raises(RefusedError, match=r"a video becomes a video and no picture.*\.mp4"):
            srstream.plan(source, tmp_path / name)
