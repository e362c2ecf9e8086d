"""The decoder on tiny nasty clips and on the real ones: every frame, exact times, exact pixels."""

from __future__ import annotations

import hashlib
import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from srstream.config import SourceConfig
from srstream.errors import DecodeError, MediaError
from srstream.frame import Frame
from srstream.media.layouts import extract_planes
from srstream.media.read.decode import Decoder
from srstream.media.read.decode_report import DecodeReport
from srstream.media.read.probe import probe, scan_packets
from srstream.media.types import VideoInfo
from tests.support import clips, nasty_clips
from tests.support.paths import REPOSITORY

CONFIG = SourceConfig()
SALVAGE = SourceConfig(salvage=True)
DATA = Path(os.environ.get("SRSTREAM_DATA", REPOSITORY.parent / "shared" / "data")) / "video"

MAX_PIXELS = 4_000_000
"""Of a real clip, no more is decoded in a test; a machine with time may raise it."""
REAL = sorted(DATA.glob("real/*")) + sorted(DATA.glob("features/*"))

needs_data = pytest.mark.skipif(not REAL, reason="needs the clips in SRSTREAM_DATA/video")


def decode(
    path: Path,
    *,
    start_pts: int | None = None,
    config: SourceConfig = CONFIG,
    threads: int = 1,
    limit: int | None = None,
    video: VideoInfo | None = None,
) -> tuple[list[Frame], DecodeReport]:
    video = video or probe(path, config).video
    decoder = Decoder(path, video, config, start_pts=start_pts, threads=threads)
    frames = []
    for frame in decoder.frames():
        frames.append(frame)
        if limit is not None and len(frames) >= limit:
            break
    decoder.close()
    return frames, decoder.report


def identity(frame: Frame) -> tuple[Any, ...]:
    digest = hashlib.blake2b()
    for plane in frame.planes:
        digest.update(memoryview(plane).cast("B"))
    return (
        frame.pts,
        frame.width,
        frame.height,
        frame.layout,
        frame.color,
        frame.is_key,
        frame.concealed,
        digest.hexdigest(),
    )


def reference_planes(path: Path) -> list[tuple[Any, ...]]:
    with av.open(str(path)) as container:
        return [extract_planes(f)[1] for f in container.decode(container.streams.video[0])]


NUM_FRAMES = {"size_change.h264": 12, "concatenated.ts": 24, "many_streams.mkv": 50}


@pytest.mark.parametrize("name", sorted(nasty_clips.NASTY))
def test_every_frame_at_its_time(tmp_path, name):
    path = nasty_clips.NASTY[name](tmp_path / name)
    index = scan_packets(path, probe(path, CONFIG).video)
    frames, report = decode(path)
    assert len(frames) == index.num_packets == report.num_frames
    if index.has_timestamps:
        assert tuple(f.pts for f in frames) == index.pts
    assert all(a.pts < b.pts for a, b in pairwise(frames))
    assert report.num_corrupt_packets == report.num_concealed == 0
    assert all(f.layout == frames[0].layout for f in frames)
    for frame in frames:
        for number, plane in enumerate(frame.planes):
            assert plane.shape == frame.layout.plane_shape(number, frame.width, frame.height)
            assert plane.flags.c_contiguous


@pytest.mark.parametrize("name", sorted(nasty_clips.NASTY))
def test_resume_equals_an_uninterrupted_decode(tmp_path, name):
    path = nasty_clips.NASTY[name](tmp_path / name)
    whole = [identity(f) for f in decode(path)[0]]
    for at in range(0, len(whole), 1 + len(whole) // 12):
        resumed, _ = decode(path, start_pts=whole[at][0])
        assert [identity(f) for f in resumed] == whole[at:]


HEVC_OPEN = "open-gop=1:keyint=8:min-keyint=8:bframes=4:scenecut=0:log-level=none"
KINDS: dict[str, dict[str, Any]] = {
    "intra_refresh.mkv": {"options": {"x264-params": "intra-refresh=1:keyint=10:bframes=0"}},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"bf": "2", "g": "8"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "g": "8"}, "format": "vob"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "8"}},
    "hevc.mkv": {"codec": "libx265", "options": {"x265-params": HEVC_OPEN}},
    "interlaced.ts": {"options": {"x264-params": "tff=1:interlaced=1:open-gop=1:keyint=9"}},
    "x264.flv": {"gop": 8},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "edit_list.mp4": {"pts": list(range(-5, 31))},
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_resume_is_exact_in_every_kind_of_stream(tmp_path, name):
    path = clips.write_clip(tmp_path / name, 36, noise=20, **KINDS[name])
    frames, _ = decode(path)
    whole = [identity(f) for f in frames]
    assert tuple(f.pts for f in frames) == scan_packets(path, probe(path, CONFIG).video).pts
    assert len(whole) == (31 if name == "edit_list.mp4" else 36)
    for at in range(0, len(whole), 5):
        resumed, _ = decode(path, start_pts=whole[at][0])
        assert [identity(f) for f in resumed] == whole[at:]


@pytest.mark.parametrize("name", ["cfr.mp4", "open_gop.mkv", "hdr10.mp4", "odd_size.mkv"])
def test_pixels_are_the_decoders(tmp_path, name):
    path = nasty_clips.NASTY[name](tmp_path / name)
    for frame, planes in zip(decode(path)[0], reference_planes(path), strict=True):
        for plane, expected in zip(frame.planes, planes, strict=True):
            np.testing.assert_array_equal(plane, expected)


def test_raw_stream_is_timed_by_its_rate(tmp_path):
    path = nasty_clips.raw_h264(tmp_path / "a.h264", rate=30)
    frames, _ = decode(path)
    assert [f.pts * f.time_base for f in frames] == [Fraction(n, 30) for n in range(12)]


def test_alpha_is_kept(tmp_path):
    expected = clips.to_frame(nasty_clips.alpha_picture(3, 64, 48), "yuva420p", None)
    expected_alpha = extract_planes(expected)[1][3]
    lossless, _ = decode(nasty_clips.alpha_ffv1(tmp_path / "a.mkv"))
    np.testing.assert_array_equal(lossless[3].planes[3], expected_alpha)
    for codec in ("libvpx", "libvpx-vp9"):
        lossy, _ = decode(nasty_clips.alpha_webm(tmp_path / "a.webm", codec=codec))
        assert len(lossy) == 6
        error = np.abs(lossy[3].planes[3].astype(int) - expected_alpha.astype(int))
        assert error.mean() < 12


def test_change_of_size_is_said_once(tmp_path):
    frames, report = decode(nasty_clips.size_change(tmp_path / "a.h264"))
    assert [(f.width, f.height) for f in frames] == [(64, 48)] * 6 + [(96, 64)] * 6
    assert report.notes == ["The picture changes from 64x48 yuv420p to 96x64 yuv420p at 0.240 s."]


def test_color_comes_with_the_frame(tmp_path):
    frames, _ = decode(nasty_clips.hdr10(tmp_path / "a.mp4"))
    color = frames[-1].color
    assert (color.primaries, color.transfer, color.matrix, color.full_range) == (9, 16, 9, False)
    assert frames[0].planes[0].dtype == np.uint16
    assert frames[0].planes[0].max() < 1024


def test_interlaced_frames_are_deinterlaced_in_place(tmp_path):
    path = nasty_clips.interlaced(tmp_path / "a.mp4")
    frames, _ = decode(path)
    woven = reference_planes(path)
    assert len(frames) == len(woven) == 12
    assert [f.pts for f in frames] == [512 * n for n in range(12)]

    def combing(plane: Any) -> float:
        rows = plane.astype(int)
        return float(np.abs(rows[1:-1] * 2 - rows[:-2] - rows[2:]).mean())

    assert combing(frames[6].planes[0]) < 0.7 * combing(woven[6][0])


def test_fields_that_come_late_are_said(tmp_path):
    part = clips.write_clip(tmp_path / "1.h264", 10, gop=5, options={"bf": "0"})
    late = nasty_clips.interlaced(tmp_path / "2.h264")
    path = tmp_path / "a.h264"
    path.write_bytes(part.read_bytes() + late.read_bytes())
    frames, report = decode(path)
    assert len(frames) == 22
    assert report.notes == [
        "Interlaced frames begin at 0.400 s; from there the video is deinterlaced (bwdif)."
    ]


def test_a_recording_cut_in_the_middle(tmp_path):
    whole = clips.write_clip(tmp_path / "w.ts", 60, gop=20, format="mpegts", noise=30)
    data = whole.read_bytes()
    path = tmp_path / "a.ts"
    path.write_bytes(data[len(data) // 4 // 188 * 188 :])
    frames, report = decode(path)
    assert frames[0].is_key
    assert tuple(f.pts for f in frames) == scan_packets(path, probe(path, CONFIG).video).pts
    assert report.num_corrupt_packets == 0


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_lost_packet_is_concealed(tmp_path, suffix):
    path = nasty_clips.bit_flips(tmp_path / f"a.{suffix}", packets=(7,), damage=1 << 20)
    frames, report = decode(path)
    assert len(frames) == 24
    assert report.num_corrupt_packets == report.num_concealed == 1
    assert [f.concealed for f in frames].index(True) == 7
    np.testing.assert_array_equal(frames[7].planes[0], frames[6].planes[0])
    index = scan_packets(path, probe(path, CONFIG).video)
    assert tuple(f.pts for f in frames) == index.pts


def test_a_lost_last_packet_is_concealed(tmp_path):
    path = nasty_clips.bit_flips(tmp_path / "a.mp4", packets=(23,), damage=1 << 20)
    frames, _ = decode(path)
    assert len(frames) == 24
    assert frames[-1].concealed


def test_resume_behind_and_inside_damage(tmp_path):
    path = nasty_clips.bit_flips(tmp_path / "a.mp4", packets=(7, 20), damage=1 << 20, frames=36)
    whole = [identity(f) for f in decode(path)[0]]
    for at in range(0, 36, 3):
        resumed, _ = decode(path, start_pts=whole[at][0])
        assert [identity(f) for f in resumed] == whole[at:]


def test_eight_lost_packets_end_the_job(tmp_path):
    path = nasty_clips.bit_flips(
        tmp_path / "a.mp4", packets=range(8, 24), damage=1 << 20, frames=24, gop=99
    )
    with pytest.raises(DecodeError, match=r"8 packets in a row failed at 0\.320 s") as caught:
        decode(path)
    assert "--salvage" in str(caught.value)
    frames, report = decode(path, config=SALVAGE)
    assert len(frames) == 8
    assert report.stopped_at_seconds == pytest.approx(0.32)
    assert report.num_concealed == 0


def test_truncated_file_gives_its_good_part(tmp_path):
    frames, _ = decode(nasty_clips.truncated(tmp_path / "a.mkv"))
    assert 30 < len(frames) < 75
    assert [f.pts for f in frames] == [40 * n for n in range(len(frames))]


def test_upside_down_rows(tmp_path):
    """AVI stores bgr24 with the last row first."""
    path = clips.write_clip(tmp_path / "a.avi", 3, codec="rawvideo", pix_fmt="bgr24", height=47)
    frames, _ = decode(path)
    rgb = np.dstack([frames[2].planes[2], frames[2].planes[0], frames[2].planes[1]])
    np.testing.assert_array_equal(rgb, clips.picture(2, 64, 47))


def test_palette(tmp_path):
    """GIF: libav's decoder gives bgra."""
    path = clips.write_clip(tmp_path / "a.gif", 3, codec="gif", pix_fmt="rgb8", rate=10)
    frames, _ = decode(path)
    assert len(frames) == 3
    assert frames[0].layout.kind == "rgb"


def test_max_pixels_holds_for_the_decoder(tmp_path):
    """A stream that grows behind the probed part is stopped by libav itself."""
    path = nasty_clips.size_change(tmp_path / "a.h264", frames=20)
    config = SourceConfig(max_pixels=64 * 48)
    video = probe(path, config).video
    with pytest.raises(DecodeError):
        list(Decoder(path, video, config).frames())


def test_source_that_was_replaced(tmp_path):
    path = clips.cfr(tmp_path / "a.mp4")
    video = probe(path, CONFIG).video
    nasty_clips.audio_only(path)
    with pytest.raises(MediaError, match="any more"):
        Decoder(path, video, CONFIG)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video", "libvpx-vp9", "ffv1"])
def test_threads_do_not_change_pixels(tmp_path, codec):
    path = clips.write_clip(
        tmp_path / "a.mkv", 8, codec=codec, width=256, height=144, noise=20, options={"slices": "4"}
    )
    one, _ = decode(path, threads=1)
    four, _ = decode(path, threads=4)
    assert [identity(f) for f in one] == [identity(f) for f in four]


@needs_data
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_clips_resume_exactly(path):
    """Every frame is there, and from three points on the frames equal the uninterrupted ones."""
    video = probe(path, CONFIG).video
    index = scan_packets(path, video)
    assert index.truncated_at_seconds is None
    limit = max(MAX_PIXELS // (video.width * video.height), 2)
    frames, report = decode(path, limit=limit, video=video)
    whole = [identity(f) for f in frames]
    assert tuple(f.pts for f in frames) == index.pts[:limit]
    assert report.num_corrupt_packets == 0
    is_long = len(index.pts) > limit
    for share in (0.7,) if is_long else (0.2, 0.5, 0.93):
        at = int(len(whole) * share)
        left = len(whole) - at
        resumed, _ = decode(path, start_pts=whole[at][0], limit=left, video=video)
        assert [identity(f) for f in resumed] == whole[at:]
