"""Segments and the source's other streams in one file: exact times, nothing lost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest

from srstream.config import EncodeConfig, JobConfig
from srstream.errors import EncodeError
from srstream.media.types import TimeWindow
from srstream.media.write.convert import _READERS, _WRITERS
from srstream.media.write.mux import assemble
from tests.support import clips, nasty_clips
from tests.support.outputs import KEEP, make_output, packet_times

MILLISECOND = Fraction(1, 1000)


def expected_times(made_pts: tuple[int, ...], base: Fraction, name: str) -> list[Fraction]:
    times = [pts * base for pts in made_pts]
    if name.endswith(".mkv"):
        return [round(time * 1000) * MILLISECOND for time in times]
    return times


# Times


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("output", ["out.mp4", "out.mov", "out.mkv"])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("cfr.mp4", clips.cfr),
        ("vfr.mp4", nasty_clips.vfr),
        ("vfr.mkv", nasty_clips.vfr),
        ("late.mp4", nasty_clips.late_start),
        ("late.mkv", nasty_clips.late_start),
        ("wrapped.ts", nasty_clips.wrapped_ts),
        ("open.mp4", nasty_clips.open_gop),
        ("raw.h264", nasty_clips.raw_h264),
        ("one.mp4", nasty_clips.one_frame),
    ],
)
def test_video_times_are_the_sources(
    tmp_path: Path, name: str, make: Callable[[Path], Path], output: str, keep: bool
) -> None:
    made = make_output(make(tmp_path / name), tmp_path / output, config=KEEP if keep else None)
    pts = tuple(p for segment in made.segments for p in segment.pts)
    shift = min(pts[0], 0) if keep else pts[0]
    wanted = expected_times(tuple(p - shift for p in pts), made.source.video.time_base, output)
    assert packet_times(made.path, 0) == wanted
    with av.open(str(made.path)) as container:
        shown = [f.pts * Fraction(f.time_base) for f in container.decode(video=0)]
    assert shown == wanted


def test_decode_times_rise_and_do_not_pass_display_times(tmp_path: Path) -> None:
    made = make_output(nasty_clips.vfr(tmp_path / "in.mp4"), tmp_path / "out.mp4", segment_frames=4)
    with av.open(str(made.path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    dts = [p.dts for p in packets]
    assert all(b > a for a, b in pairwise(dts))
    assert all(p.dts <= p.pts for p in packets)
    assert [p.pts for p in packets] != sorted(p.pts for p in packets)


@pytest.mark.parametrize("output", ["out.mp4", "out.mov", "out.mkv"])
def test_copied_packets_keep_bytes_and_times(tmp_path: Path, output: str) -> None:
    """AAC with its priming before zero and its skipped samples, in MP4 an edit list."""
    source = clips.cfr(tmp_path / "in.mp4", 30, audio=2)
    made = make_output(source, tmp_path / output)
    for index in (1, 2):
        before, now = packet_times(source, index), packet_times(made.path, index)
        assert before[0] < 0
        wanted = before
        if output.endswith(".mkv"):
            assert len(now) == len(before)
            assert max(abs(a - b) for a, b in zip(now, before, strict=True)) <= MILLISECOND / 2
        else:
            assert now == wanted
        assert _payloads(source, index) == _payloads(made.path, index)
        if not output.endswith(".mkv"):
            assert _decoded_audio(source, index) == _decoded_audio(made.path, index)


def test_late_audio_stays_late_to_the_sample(tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    first = clips.cfr(tmp_path / "av.mp4", 20, audio=1)
    # 44100 / 7919 is no number of milliseconds.
    _remux_with_delay(first, source, audio_ticks=7919, video_ticks=1234)
    made = make_output(source, tmp_path / "out.mp4", config=KEEP)
    assert packet_times(made.path, 1) == packet_times(source, 1)
    assert packet_times(made.path, 0) == packet_times(source, 0)
    made = make_output(source, tmp_path / "out.mp4")
    tick = made.source.video.time_base
    begins = min(packet_times(source, 0)[0], packet_times(source, 1)[0])
    shift = begins // tick * tick
    assert packet_times(made.path, 0) == [time - shift for time in packet_times(source, 0)]
    moved = zip(packet_times(made.path, 1), packet_times(source, 1), strict=True)
    assert max(abs(now + shift - before) for now, before in moved) <= Fraction(1, 2 * 48000)


# Everything else


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_many_streams_come_along_in_order(tmp_path: Path, suffix: str) -> None:
    source = clips.many_streams(tmp_path / f"in{suffix}")
    made = make_output(source)
    with av.open(str(source)) as before, av.open(str(made.path)) as now:
        assert [s.type for s in before.streams] == [s.type for s in now.streams]
        assert [s.language for s in before.streams] == [s.language for s in now.streams]
        assert [s.disposition for s in before.streams] == [s.disposition for s in now.streams]
        assert now.metadata["title"] == "Many streams"
        assert _chapters(before) == _chapters(now)
        if suffix == ".mkv":
            assert [a.data for a in now.streams.attachments] == [b"not really a font"]
            assert now.streams.attachments[0].name == "font.ttf"
        subtitles = [s.index for s in before.streams.subtitles]
    for index in subtitles:
        assert _payloads(source, index) == _payloads(made.path, index)


@pytest.mark.parametrize(
    ("source_name", "output", "codec"),
    [
        ("in.mkv", "out.mp4", "mov_text"),
        ("in.mp4", "out.mkv", "subrip"),
        ("in.mkv", "out.mov", "mov_text"),
    ],
)
def test_subtitles_are_converted(tmp_path: Path, source_name: str, output: str, codec: str) -> None:
    made = make_output(clips.many_streams(tmp_path / source_name), tmp_path / output)
    with av.open(str(made.path)) as container:
        streams = container.streams.subtitles
        assert [s.codec_context.codec.canonical_name for s in streams] == [codec] * 2
        assert streams[0].language == "eng"
        texts = [bytes(p) for p in container.demux(streams[0]) if p.size]
    assert any(b"line 0" in text for text in texts)


def test_audio_is_converted_in_time(tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.webm", 30, codec="libvpx-vp9", audio=0, gop=10)
    made = _with_vorbis(source, tmp_path / "vorbis.webm")
    result = make_output(made, tmp_path / "out.mp4")
    assert any("aac" in loss for loss in result.plan.losses)
    before, now = packet_times(made, 1), packet_times(result.path, 1)
    # The sound begins at zero; what lies before it primes the decoder, of either codec.
    assert before[0] < 0
    assert now[0] == Fraction(-1024, 48000)
    assert abs(now[-1] - before[-1]) < Fraction(60, 1000)


def test_text_formats_turn_into_each_other() -> None:
    assert _WRITERS["mov_text"](_READERS["subrip"](b"<i>a</i> & b\r\nc")) == b"\x00\x07a & b\nc"
    assert _READERS["mov_text"](b"\x00\x02\xc3\xa4styl") == "ä"
    assert _READERS["ass"](rb"0,0,Default,,0,0,0,,{\i1}Hi,\Nyou") == "Hi,\nyou"
    assert _WRITERS["subrip"](_READERS["webvtt"](b"<v Ann>a &amp; b</v>\nc")) == b"a & b\r\nc"


@pytest.mark.parametrize("output", ["out.mp4", "out.mkv"])
def test_cover_picture_comes_along(tmp_path: Path, output: str) -> None:
    source = _with_cover(clips.cfr(tmp_path / "plain.mp4"), tmp_path / "in.mp4")
    made = make_output(source, tmp_path / output)
    with av.open(str(made.path)) as container:
        covers = [s for s in container.streams.video if s.disposition & 1024]
        assert len(covers) == 1
        data = next(bytes(p) for p in container.demux(covers[0]) if p.size)
    with av.open(str(source)) as container:
        assert data == next(bytes(p) for p in container.demux(container.streams[1]) if p.size)


# How it is to be shown


@pytest.mark.parametrize("codec", ["libx264", "ffv1", "libsvtav1", "libx265"])
@pytest.mark.parametrize("sar", [Fraction(4, 3), Fraction(12, 11), Fraction(128, 117)])
def test_pixel_aspect_and_rotation_in_matroska(tmp_path: Path, codec: str, sar: Fraction) -> None:
    source = clips.write_clip(tmp_path / "in.mp4", 3, sar=sar, rotation=90)
    config = JobConfig(encode=EncodeConfig(codec=codec))
    made = make_output(source, tmp_path / "out.mkv", config=config)
    with av.open(str(made.path)) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio == sar
        frame = next(container.decode(stream))
        assert frame.rotation == made.source.video.rotation_degrees != 0
        assert "title" not in {key.lower() for key in stream.metadata}


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_hdr10_survives(tmp_path: Path, suffix: str) -> None:
    from srstream.config import SourceConfig
    from srstream.media.read.probe import probe

    made = make_output(nasty_clips.hdr10(tmp_path / "in.mkv", 4), tmp_path / f"out{suffix}")
    found = probe(made.path, SourceConfig()).video
    assert found.hdr == made.source.video.hdr
    assert found.hdr.mastering_display is not None
    assert found.color == made.source.video.color
    assert found.layout.bits == 10


# Excerpts


def test_excerpt_begins_when_the_source_does(tmp_path: Path) -> None:
    source = clips.many_streams(tmp_path / "in.mkv")
    window = TimeWindow(start_pts=400, end_pts=1600)
    made = make_output(source, tmp_path / "out.mkv", window=window)
    video = packet_times(made.path, 0)
    assert video[0] == 0
    assert video[-1] == Fraction(1160, 1000)
    for index in (1, 2):
        taken = [t for t in packet_times(source, index) if Fraction(4, 10) <= t < Fraction(16, 10)]
        assert packet_times(made.path, index) == [t - Fraction(4, 10) for t in taken]
    with av.open(str(made.path)) as container:
        chapters = _chapters(container)
    assert chapters == [(0, Fraction(6, 10), "One"), (Fraction(6, 10), Fraction(12, 10), "Two")]


# Bytes and errors


def test_same_segments_give_the_same_bytes(tmp_path: Path) -> None:
    source = clips.many_streams(tmp_path / "in.mkv")
    for name in ("out.mkv", "out.mp4"):
        made = make_output(source, tmp_path / name)
        again = tmp_path / "again.part"
        assemble(source, made.source, made.plan, made.segments, again)
        digests = {hashlib.sha256(p.read_bytes()).hexdigest() for p in (made.path, again)}
        assert len(digests) == 1


def test_progress_is_told(tmp_path: Path) -> None:
    made = make_output(clips.cfr(tmp_path / "in.mp4"), tmp_path / "out.mp4")
    steps: list[tuple[int, int | None]] = []
    assemble(
        made.source.path, made.source, made.plan, made.segments, tmp_path / "x.part",
        on_progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert steps == [(n, 12) for n in range(1, 13)]


def test_a_segment_that_lacks_frames_is_noticed(tmp_path: Path) -> None:
    made = make_output(clips.cfr(tmp_path / "in.mp4"), tmp_path / "out.mp4")
    first = made.segments[0]
    wrong = replace(first, pts=(*first.pts, first.pts[-1] + 1))
    with pytest.raises(EncodeError, match="5 packets with a time, 6 frames"):
        assemble(made.source.path, made.source, made.plan, [wrong], tmp_path / "x.part")
    first.path.write_bytes(first.path.read_bytes()[:100])
    with pytest.raises(EncodeError, match="cannot be read"):
        assemble(made.source.path, made.source, made.plan, made.segments, tmp_path / "x.part")


def test_segments_of_different_settings_are_noticed(tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mp4")
    made = make_output(source, tmp_path / "out.mp4")
    config = JobConfig(encode=EncodeConfig(preset="slow"))
    other = make_output(source, tmp_path / "other.mp4", config=config)
    mixed = [made.segments[0], other.segments[1]]
    with pytest.raises(EncodeError, match="other settings"):
        assemble(source, made.source, made.plan, mixed, tmp_path / "x.part")


def _payloads(path: Path, index: int) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams[index]) if p.size]


def _decoded_audio(path: Path, index: int) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        frames = container.decode(container.streams[index])
        return [
            (f.pts * Fraction(f.time_base), f.to_ndarray().tobytes())
            for f in frames
            if isinstance(f, av.AudioFrame)
        ]


def _chapters(container: av.container.InputContainer) -> list[tuple[Fraction, Fraction, str]]:
    return [
        (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"]["title"])
        for c in container.chapters()
        if c["time_base"]
    ]


def _remux_with_delay(source: Path, target: Path, audio_ticks: int, video_ticks: int) -> None:
    options = {"movie_timescale": "614400000", "video_track_timescale": "12800"}
    with av.open(str(source)) as before, av.open(str(target), "w", options=options) as now:
        streams = [now.add_stream_from_template(s, opaque=True) for s in before.streams]
        for packet in before.demux():
            if packet.size:
                ticks = audio_ticks if packet.stream.type == "audio" else video_ticks
                packet.pts += ticks
                packet.dts += ticks
                packet.stream = streams[packet.stream_index]
                now.mux(packet)


def _with_cover(source: Path, target: Path) -> Path:
    with av.open(str(source)) as before, av.open(str(target), "w") as now:
        video = now.add_stream_from_template(before.streams.video[0], opaque=True)
        cover = now.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in [*cover.encode(av.VideoFrame(32, 32, "yuvj420p")), *cover.encode(None)]:
            packet.pts = packet.dts = 0
            now.mux(packet)
        for packet in before.demux(before.streams.video[0]):
            if packet.size:
                packet.stream = video
                now.mux(packet)
    return target


def _with_vorbis(source: Path, target: Path) -> Path:
    """The clip with a second of Vorbis, which MP4 players do not take."""
    with av.open(str(source)) as before, av.open(str(target), "w") as now:
        video = now.add_stream_from_template(before.streams.video[0], opaque=True)
        sound = now.add_stream("libvorbis" if _has("libvorbis") else "vorbis", rate=48000)
        sound.codec_context.layout = "stereo"
        if not _has("libvorbis"):
            sound.codec_context.options = {"strict": "experimental"}
        for packet in before.demux(before.streams.video[0]):
            if packet.size:
                packet.stream = video
                now.mux(packet)
        for start in range(0, 48000, 1024):
            frame = av.AudioFrame("fltp", "stereo", 1024)
            frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            for plane in frame.planes:
                plane.update(bytes(4096))
            now.mux(sound.encode(frame))
        now.mux(sound.encode(None))
    return target


def _has(codec: str) -> bool:
    try:
        av.Codec(codec, "w")
    except ValueError:
        return False
    return True
