"""What probe and scan say of tiny clips made here and of the real ones in ../shared/data/video."""

from __future__ import annotations

import hashlib
import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from srstream.config import SourceConfig
from srstream.errors import MediaError, RefusedError, SrstreamError, UsageError
from srstream.frame import PlaneLayout
from srstream.media.errors import display_name, libav_errors
from srstream.media.layouts import extract_planes, layout_of
from srstream.media.read.probe import probe, scan_packets
from tests.support import clips, nasty_clips
from tests.support.paths import REPOSITORY

CONFIG = SourceConfig()
DATA = Path(os.environ.get("SRSTREAM_DATA", REPOSITORY.parent / "shared" / "data")) / "video"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the clips in SRSTREAM_DATA/video")


@pytest.mark.parametrize(
    ("name", "make", "error", "words"),
    [
        ("folder.mp4", lambda path: path.mkdir(), UsageError, "is a directory"),
        ("empty.mp4", nasty_clips.empty, MediaError, "is empty"),
        ("text.mp4", nasty_clips.text_file, MediaError, "cannot be read as media"),
        ("sound.mp4", nasty_clips.audio_only, MediaError, "holds no video, only audio"),
        ("giant.mp4", nasty_clips.giant, RefusedError, "60000x60000"),
        (
            "late_index.mp4",
            lambda path: nasty_clips.truncated(path, index_first=False),
            MediaError,
            "cut off before its index (moov)",
        ),
        (
            "encrypted.mp4",
            lambda path: clips.write_clip(
                path,
                container_options={
                    "encryption_scheme": "cenc-aes-ctr",
                    "encryption_key": "00112233445566778899aabbccddeeff",
                    "encryption_kid": "00112233445566778899aabbccddeeff",
                },
            ),
            MediaError,
            "is encrypted",
        ),
    ],
)
def test_refusals_are_one_sentence(tmp_path, name, make, error, words):
    path = tmp_path / name
    make(path)
    with pytest.raises(error) as caught:
        probe(path, CONFIG)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert words in message
    assert "\n" not in message
    assert str(tmp_path) not in message


def test_a_missing_file_is_named_with_its_folder(tmp_path):
    with pytest.raises(UsageError, match="there is no such file") as caught:
        probe(tmp_path / "missing.mp4", CONFIG)
    assert str(caught.value).startswith(f"{tmp_path / 'missing.mp4'}: ")


def test_a_cover_picture_is_no_video(tmp_path):
    path = nasty_clips.audio_only(tmp_path / "a.mp4")
    covered = tmp_path / "covered.mp4"
    with av.open(str(path)) as source, av.open(str(covered), "w") as sink:
        sound = sink.add_stream_from_template(source.streams.audio[0])
        cover = sink.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = clips.to_frame(clips.picture(0), "yuvj420p", None)
        frame.pts, frame.time_base = 0, Fraction(1)
        sink.mux(cover.encode(frame) + cover.encode(None))
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = sound
                sink.mux(packet)
    with pytest.raises(MediaError, match="only audio"):
        probe(covered, CONFIG)


def test_max_pixels_is_the_limit(tmp_path):
    path = clips.cfr(tmp_path / "a.mp4")
    assert probe(path, SourceConfig(max_pixels=64 * 48)).video.width == 64
    with pytest.raises(RefusedError, match="64x48"):
        probe(path, SourceConfig(max_pixels=64 * 48 - 1))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_hdr10(tmp_path, suffix):
    video = probe(nasty_clips.hdr10(tmp_path / f"a.{suffix}"), CONFIG).video
    color = video.color
    assert (video.codec, video.layout.bits) == ("hevc", 10)
    assert (color.primaries, color.transfer, color.matrix, color.full_range) == (9, 16, 9, False)
    assert video.hdr.content_light_level == (1000, 400)
    assert video.hdr.mastering_display == (
        "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    )


def test_full_range_601(tmp_path):
    color = probe(nasty_clips.full_range_601(tmp_path / "a.mp4"), CONFIG).video.color
    assert (color.primaries, color.transfer, color.matrix, color.full_range) == (6, 6, 6, True)


@pytest.mark.parametrize("location", range(6))
def test_chroma_location(tmp_path, location):
    path = clips.cfr(tmp_path / "a.mp4", options={"x264-params": f"chromaloc={location}"})
    # x264 counts from 0 = left, AVChromaLocation from 1; x264 leaves its default out.
    assert probe(path, CONFIG).video.color.chroma_location == location + 1


def test_aspect_and_rotation(tmp_path):
    video = probe(nasty_clips.sar_and_rotation(tmp_path / "a.mp4"), CONFIG).video
    assert video.sample_aspect_ratio == Fraction(4, 3)
    assert video.rotation_degrees == 90
    assert video.display_matrix is not None
    assert video.display_matrix[:2] == (0, -65536)


def test_interlaced_is_found_and_said(tmp_path):
    info = probe(nasty_clips.interlaced(tmp_path / "a.mp4"), CONFIG)
    assert info.video.is_interlaced
    assert any("interlaced" in text for text in info.warnings)
    assert not probe(clips.cfr(tmp_path / "b.mp4"), CONFIG).video.is_interlaced


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_webm_alpha(tmp_path, codec):
    video = probe(nasty_clips.alpha_webm(tmp_path / "a.webm", codec=codec), CONFIG).video
    assert video.layout == PlaneLayout("yuv", 8, 1, 1, has_alpha=True)


def test_all_streams_are_listed(tmp_path):
    info = probe(clips.many_streams(tmp_path / "a.mkv"), CONFIG)
    assert [s.type for s in info.streams] == [
        "video",
        "audio",
        "audio",
        "subtitle",
        "subtitle",
        "attachment",
    ]
    assert [s.language for s in info.streams if s.type == "subtitle"] == ["eng", "deu"]
    assert info.streams[5].title == "font.ttf"
    assert info.num_chapters == 2


def test_odd_size(tmp_path):
    video = probe(nasty_clips.odd_size(tmp_path / "a.mkv"), CONFIG).video
    assert (video.width, video.height) == (61, 47)
    assert video.layout.plane_shape(1, 61, 47) == (24, 31)


def scan(path):
    return scan_packets(path, probe(path, CONFIG).video)


def test_scan_gives_the_exact_times(tmp_path):
    path = nasty_clips.vfr(tmp_path / "a.mkv")
    index = scan(path)
    assert index.pts == nasty_clips.VFR_PTS
    assert index.key_pts[0] == 0
    assert set(index.key_pts) <= set(index.pts)
    assert index.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert index.truncated_at_seconds is None


def test_scan_carries_a_wrapped_clock_on(tmp_path):
    pts = scan(nasty_clips.wrapped_ts(tmp_path / "a.ts")).pts
    assert [b - a for a, b in pairwise(pts)] == [3600] * 11


def test_scan_carries_a_restarted_clock_on(tmp_path):
    pts = scan(nasty_clips.concatenated_ts(tmp_path / "a.ts")).pts
    assert [b - a for a, b in pairwise(pts)] == [3600] * 23


def test_scan_of_a_raw_stream_has_no_times(tmp_path):
    index = scan(nasty_clips.raw_h264(tmp_path / "a.h264"))
    assert (index.has_timestamps, index.pts, index.num_packets) == (False, (), 12)


@pytest.mark.parametrize("keep", [0.35, 0.6, 0.9])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov"])
def test_truncation_is_found(tmp_path, suffix, keep):
    whole = nasty_clips.truncated(tmp_path / f"whole.{suffix}", keep=1.0)
    assert scan(whole).truncated_at_seconds is None
    if suffix == "mov":
        # Its index is at the end: it does not even open.
        with pytest.raises(MediaError, match="moov"):
            probe(nasty_clips.truncated(tmp_path / f"a.{suffix}", keep=keep), CONFIG)
        return
    index = scan(nasty_clips.truncated(tmp_path / f"a.{suffix}", keep=keep))
    assert index.truncated_at_seconds is not None
    assert index.truncated_at_seconds == pytest.approx(index.num_packets / 25, abs=0.13)
    assert 3 * keep - 0.8 < index.truncated_at_seconds < 3.0


def test_a_deadline_ends_the_pass(tmp_path):
    path = clips.cfr(tmp_path / "a.mp4")
    index = scan_packets(path, probe(path, CONFIG).video, deadline_seconds=0.0)
    assert not index.is_complete
    assert index.sha256 == ""


def test_progress_reaches_the_end(tmp_path):
    path = clips.cfr(tmp_path / "a.mkv", frames=50)
    told: list[tuple[int, int]] = []
    scan_packets(path, probe(path, CONFIG).video, on_progress=lambda *n: told.append(n))
    assert told == sorted(told)
    assert told[-1] == (path.stat().st_size, path.stat().st_size)


@needs_data
@pytest.mark.parametrize("path", sorted(DATA.glob("corrupt/*")), ids=lambda path: path.name)
def test_corrupt_clips_are_read_or_refused(path):
    try:
        info = probe(path, CONFIG)
    except SrstreamError as error:
        assert str(error).startswith(f"{path.name}: ")
        return
    scan_packets(path, info.video)


COMMON_FORMATS = """
    yuv420p yuv422p yuv444p yuv440p yuv411p yuv410p yuva420p yuva444p12le yuv420p10le
    yuv422p10be yuv444p12le yuv420p16be gray gray10le gray16be gbrp gbrap gbrp10le gbrap16be
    nv12 nv21 nv16 nv24 nv42 nv20le p010le p012le p016be p210le p216le p410le p416le yuyv422
    uyvy422 yvyu422 y210le y212le rgb24 bgr24 rgba bgra argb abgr rgb0 bgr0 0rgb 0bgr rgb48le
    bgr48be rgba64le bgra64be ya8 ya16le vuya vuyx ayuv uyva vyu444 ayuv64le yuv444p10msble
    monow monob x2rgb10le xv30le xv36le gbrpf32le grayf32le
"""


def planar_name(layout: PlaneLayout) -> str:
    """libav's planar pixel format with exactly this layout, e.g. yuv420p10le."""
    alpha = "a" if layout.has_alpha else ""
    depth = "" if layout.bits == 8 else f"{layout.bits}le"
    if layout.kind == "gray":
        return (f"ya{layout.bits}" + ("le" if layout.bits > 8 else "")) if alpha else f"gray{depth}"
    if layout.kind == "rgb":
        return f"gbr{alpha}p{depth}"
    chroma = {(0, 0): 444, (1, 0): 422, (1, 1): 420, (0, 1): 440, (2, 0): 411, (2, 2): 410}
    return f"yuv{alpha}{chroma[layout.log2_chroma_w, layout.log2_chroma_h]}p{depth}"


@pytest.mark.parametrize("pix_fmt", COMMON_FORMATS.split())
def test_planes_equal_swscales(pix_fmt):
    """swscale is the reference: to our layout's planar format, without change of size or matrix."""
    noise = np.random.default_rng(0).integers(0, 256, (23, 37, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format=pix_fmt, threads=1)
    layout, planes = extract_planes(frame)
    assert layout == layout_of(pix_fmt)
    converted = frame.reformat(format=planar_name(layout), threads=1)
    reference_layout, reference = extract_planes(converted)
    assert reference_layout == layout
    for index, (plane, expected) in enumerate(zip(planes, reference, strict=True)):
        assert plane.shape == layout.plane_shape(index, 37, 23)
        assert plane.dtype == layout.dtype
        assert plane.flags.c_contiguous
        np.testing.assert_array_equal(plane, expected)


def test_planes_hold_the_pixels():
    rgb_HWC = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    _, (green, blue, red) = extract_planes(av.VideoFrame.from_ndarray(rgb_HWC, format="rgb24"))
    np.testing.assert_array_equal(np.dstack([red, green, blue]), rgb_HWC)


def test_hardware_surfaces_are_refused():
    with pytest.raises(MediaError, match="vaapi"):
        layout_of("vaapi")


def test_every_libav_error_becomes_ours():
    for kind in av.error.classes.values():
        with (
            pytest.raises(
                SrstreamError, match=r"^a\.mp4: it failed at 1\.500 s \(FFmpeg: gone\)\."
            ),
            libav_errors("/x/a.mp4", "it failed", 1.5),
        ):
            raise kind(1, "gone")


def test_passwords_are_not_shown():
    assert display_name("rtsp://user:secret@camera/one") == "rtsp://camera/one"
