"""An animated WebP is read as a video: every frame as its own library shows it, at its own time."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from srstream.config import SourceConfig
from srstream.errors import MediaError, RefusedError
from srstream.media.read.decode import Decoder
from srstream.media.read.demux import MAX_PIXELS, open_source
from srstream.media.read.probe import probe
from srstream.media.read.scan import scan_packets
from srstream.pictures.inputs import is_picture_input
from tests.media.animations import files
from tests.media.animations.files import Part
from tests.support import ffmpeg
from tests.support.jobs import run

SIZE = (61, 47)


def shown(path: Path) -> list[tuple[Fraction, int, files.Bgra]]:
    """(time, duration in milliseconds, BGRA) of each frame as srstream opens the file."""
    found = []
    with open_source(path, MAX_PIXELS) as container:
        for frame in container.decode(video=0):
            base = frame.time_base
            picture = cv2.cvtColor(frame.to_ndarray(format="rgba"), cv2.COLOR_RGBA2BGRA)
            found.append((frame.pts * base, int(frame.duration * base * 1000), picture))
    return found


def parts() -> list[Part]:
    """Frames that are drawn over, beside and instead of each other."""
    rng = np.random.default_rng(3)

    def noise(width: int, height: int, *alphas: int) -> files.Bgra:
        pixels = rng.integers(0, 256, (height, width, 4), np.uint8)
        pixels[..., 3] = rng.choice(alphas, (height, width))
        return pixels

    return [
        Part(noise(61, 47, 0, 255), duration=70),
        Part(noise(20, 11, 0, 90, 255), 4, 6, duration=130, is_cleared_after=True),
        Part(noise(61, 47, 0, 1, 128, 254), duration=40),
        Part(noise(31, 17, 0, 255), 30, 30, duration=200, is_blended=False),
        Part(noise(15, 9, 128), 46, 38, duration=90, is_cleared_after=True, is_blended=False),
        Part(noise(1, 1, 255), 60, 46, duration=10),
        Part(noise(33, 21, 0, 200, 255), 8, 8, duration=5000, quality=80),
        Part(noise(33, 21, 255)[..., :3].copy(), 10, 8, duration=50, quality=60),
    ]


def test_frames_are_put_together_as_by_the_library_of_the_format(tmp_path: Path) -> None:
    path = files.write_webp(tmp_path / "a.webp", SIZE, parts(), 3)
    wanted, durations, plays = files.read(path)
    assert plays == 3 and durations == [part.duration for part in parts()]
    found = shown(path)
    assert [duration for _, duration, _ in found] == durations
    assert [time for time, _, _ in found] == [
        Fraction(sum(durations[:n]), 1000) for n in range(len(durations))
    ]
    for (_, _, picture), expected in zip(found, wanted, strict=True):
        seen = expected[..., 3] > 0  # what is clear has no color
        assert np.array_equal(picture[..., 3], expected[..., 3])
        difference = np.abs(picture[seen].astype(int) - expected[seen])
        assert difference.max() <= 1  # libwebp loses one where it blends with nothing


def test_lossy_frames_are_the_same(tmp_path: Path) -> None:
    frames = [files.ball(n, is_soft=True) for n in range(5)]
    path = files.write(tmp_path / "a.webp", frames, options=[cv2.IMWRITE_WEBP_QUALITY, 70])
    wanted, _, _ = files.read(path)
    for (_, _, picture), expected in zip(shown(path), wanted, strict=True):
        assert np.array_equal(picture, expected)


def test_times_without_end_and_without_length(tmp_path: Path) -> None:
    """A duration of 0 is shown for a tenth of a second, as browsers do."""
    durations = [0, 1, 70_000, 30]
    pixels = [files.opaque(n) for n in range(4)]
    frames = [Part(p, duration=d) for p, d in zip(pixels, durations, strict=True)]
    path = files.write_webp(tmp_path / "a.webp", SIZE, frames)
    starts = [Fraction(n, 1000) for n in (0, 100, 101, 70_101)]
    assert [time for time, _, _ in shown(path)] == starts
    info = probe(path, SourceConfig())
    index = scan_packets(path, info.video)
    assert [pts * info.video.time_base for pts in index.pts] == starts
    assert info.duration_seconds == 70.131
    assert (info.container, info.video.codec, info.streams[0].codec) == ("webp",) * 3


def test_a_decode_that_resumes_gives_the_same_frames(tmp_path: Path) -> None:
    path = files.write_webp(tmp_path / "a.webp", SIZE, parts())
    info = probe(path, SourceConfig())
    whole = list(Decoder(path, info.video, SourceConfig()).frames())
    late = list(Decoder(path, info.video, SourceConfig(), start_pts=whole[4].pts).frames())
    assert [frame.pts for frame in late] == [frame.pts for frame in whole[4:]]
    for one, other in zip(late, whole[4:], strict=True):
        assert all(map(np.array_equal, one.planes, other.planes))


@ffmpeg.needs_ffmpeg
def test_it_becomes_a_video(tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.webp", [files.opaque(n) for n in range(5)])
    assert not is_picture_input(path)
    done = run("enhance", path)
    assert done.returncode == 0, done.stderr
    assert "verified: 5 of 5 frames" in done.stderr
    times = [time for time, _ in ffmpeg.frames(tmp_path / "a_4x.mp4")]
    assert [round(time * 1000) for time in times] == [0, 70, 200, 240, 440]
    (stream,) = ffmpeg.probe(tmp_path / "a_4x.mp4", "-show_streams")["streams"]
    assert (stream["width"], stream["height"]) == (4 * 61, 4 * 47)


def test_a_folder_holds_animated_and_still_ones(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    files.write(folder / "moves.webp", [files.ball(n) for n in range(3)])
    cv2.imwrite(str(folder / "still.webp"), files.opaque(0))
    planned = run("plan", folder, "--json")
    assert planned.returncode == 0, planned.stderr
    outputs = {Path(e["input"]).name: Path(e["output"]).name for e in json.loads(planned.stdout)}
    assert outputs == {"moves.webp": "moves.mkv", "still.webp": "still.webp"}


# Damage and bounds


def moving(path: Path, num_frames: int = 12) -> Path:
    frames = [files.opaque(n % 5) for n in range(num_frames)]
    return files.write_webp(path, SIZE, [Part(f, duration=100) for f in frames])


def test_a_cut_off_file_is_refused_and_its_beginning_saved(tmp_path: Path) -> None:
    whole = moving(tmp_path / "a.webp").read_bytes()
    cut = tmp_path / "cut.webp"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    refused = run("enhance", cut, "-o", tmp_path / "out.mp4")
    assert refused.returncode == 1 and "earlier than its header says" in refused.stderr
    saved = run("enhance", cut, "-o", tmp_path / "out.mp4", "--salvage")
    assert saved.returncode == 4, saved.stderr
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert 6 <= sum(1 for _ in video.decode(video=0)) <= 8


@pytest.mark.parametrize("length", [21, 30, 60, 100])
def test_a_file_without_a_frame_is_damaged(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(moving(path).read_bytes()[:length])
    done = run("enhance", path)
    assert done.returncode == 1 and "holds no frame" in done.stderr, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["a.webp"]


def test_a_frame_that_cannot_be_decoded_is_counted(tmp_path: Path) -> None:
    path = moving(tmp_path / "a.webp")
    data = bytearray(path.read_bytes())
    starts = [n for n in range(len(data)) if data[n : n + 4] == b"VP8L"]
    data[starts[5] + 13 : starts[5] + 60] = b"\xff" * 47
    path.write_bytes(data)
    done = run("enhance", path)
    assert done.returncode == 0, done.stderr
    assert "1 corrupt packets, 1 frames concealed" in done.stderr
    assert "OpenCV" not in done.stderr and "ERROR" not in done.stderr


def test_a_frame_outside_of_the_canvas_is_refused(tmp_path: Path) -> None:
    frames = [Part(files.opaque(0)), Part(files.opaque(1), left=2)]
    path = files.write_webp(tmp_path / "a.webp", SIZE, frames)
    with pytest.raises(MediaError, match=r"1 of its 2 frames have no place.*copy it again"):
        probe(path, SourceConfig())


def test_a_frame_of_another_size_than_it_says_is_not_decoded(tmp_path: Path) -> None:
    """The bit stream states 16383 columns, so that a decoder would ask for much memory."""
    path = moving(tmp_path / "a.webp")
    data = bytearray(path.read_bytes())
    at = data.index(b"VP8L") + 9
    data[at : at + 2] = (0x3FFE | int.from_bytes(data[at : at + 2], "little")).to_bytes(2, "little")
    path.write_bytes(data)
    with open_source(path, MAX_PIXELS) as container, pytest.raises(av.FFmpegError):
        next(container.decode(video=0))


def test_a_huge_canvas_is_refused_before_it_is_made(tmp_path: Path) -> None:
    path = files.write_webp(tmp_path / "a.webp", (1 << 24, 1 << 24), [Part(files.opaque(0))])
    done = run("enhance", path)
    assert done.returncode == 2, done.stderr
    assert "16777216x16777216, more than the 268435456 pixels" in done.stderr
    with pytest.raises(RefusedError, match=r"source\.max_pixels"):
        probe(moving(path), SourceConfig(max_pixels=61 * 47 - 1))


def test_a_long_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    frame = files.frame_chunk(Part(files.opaque(0)[:1, :1], duration=10))
    whole = files.write_webp(path, SIZE, []).read_bytes() + frame * 100_000
    path.write_bytes(whole[:4] + (len(whole) - 8).to_bytes(4, "little") + whole[8:])
    with pytest.raises(RefusedError, match=r"lasts 1000 s, more than the 999 s"):
        probe(path, SourceConfig(max_duration_seconds=999))
