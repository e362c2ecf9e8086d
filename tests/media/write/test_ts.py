"""MPEG-TS as an output: what it holds and says, and when; read by ffprobe and ffmpeg."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from srstream.config import EncodeConfig, JobConfig
from srstream.errors import RefusedError
from srstream.media.read.probe import probe
from srstream.media.types import TimeWindow
from srstream.media.verify import verify
from srstream.media.write.container_file import fill_up
from srstream.media.write.encode import plan_output
from tests.media.read.test_start import first_times, late
from tests.support import clips, ffmpeg, nasty_clips
from tests.support.jobs import run
from tests.support.outputs import KEEP, Made, make_output

pytestmark = ffmpeg.needs_ffmpeg
TICK = Fraction(1, 90000)


def streams(path: Path) -> list[dict[str, Any]]:
    return list(ffmpeg.probe(path, "-show_streams")["streams"])


def times(path: Path) -> list[Fraction]:
    """Of the frames, from the first one on; ffmpeg decodes them without a word."""
    found = [time for time, _ in ffmpeg.frames(path)]
    return [time - found[0] for time in found]


def check(made: Made, source: Path) -> None:
    """Frames, offsets and the receipt, to a tick of 1/90000 s."""
    output = made.path
    assert ffmpeg.probe(output, "-show_format")["format"]["format_name"] == "mpegts"
    before, now = times(source), times(output)
    assert len(before) == len(now)
    assert max(abs(a - b) for a, b in zip(before, now, strict=True)) <= TICK
    assert all(b > a for a, b in pairwise(now))
    receipt = verify(source, output, plan=made.plan)
    assert receipt.ok, receipt.problems
    assert receipt.time_tolerance_seconds == pytest.approx(float(TICK / 2))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Picture with B frames, and sound, from zero on."""
    return clips.cfr(tmp_path_factory.mktemp("clips") / "plain.mkv", 20, audio=1)


def with_audio(plain: Path, path: Path, *codec: str) -> Path:
    return ffmpeg.convert(plain, path, "-map", "0", "-c:v", "copy", *codec)


@pytest.mark.parametrize(
    ("codec", "becomes"),
    [
        (("-c:a", "copy"), "aac"),
        (("-c:a", "ac3", "-ac", "6"), "ac3"),
        (("-c:a", "eac3"), "eac3"),
        (("-c:a", "mp2"), "mp2"),
        (("-c:a", "libmp3lame"), "mp3"),
        (("-c:a", "libopus", "-ar", "48000"), "opus"),
        (("-c:a", "dca", "-strict", "-2", "-ar", "48000", "-ac", "2"), "dts"),
        (("-c:a", "flac"), "aac"),
        (("-c:a", "pcm_s16le"), "aac"),
        (("-c:a", "libvorbis"), "aac"),
    ],
)
def test_sound_is_copied_or_converted(
    plain: Path, tmp_path: Path, codec: tuple[str, ...], becomes: str
) -> None:
    source = with_audio(plain, tmp_path / "in.mkv", *codec)
    made = make_output(source, tmp_path / "out.ts")
    check(made, source)
    video, audio = streams(made.path)
    assert (video["codec_name"], audio["codec_name"]) == ("h264", becomes)
    assert audio["channels"] == streams(source)[1]["channels"]
    before, now = first_times(source), first_times(made.path)
    moved = (now[1] - now[0]) - (before[1] - before[0])
    is_copied = becomes != "aac" or codec == ("-c:a", "copy")
    assert abs(moved) <= (Fraction(1, 1000) if is_copied else Fraction(1, 20))
    assert bool(made.plan.losses) != is_copied


@pytest.mark.parametrize("name", ["out.ts", "out.m2ts", "out.MTS", "out.m2t"])
def test_names_that_end_so(plain: Path, tmp_path: Path, name: str) -> None:
    """M2TS is for discs and cameras: every packet has four bytes more, in front."""
    made = make_output(plain, tmp_path / name)
    check(made, plain)
    content = made.path.read_bytes()
    size, at = (192, 4) if "m2ts" in name.lower() or "mts" in name.lower() else (188, 0)
    assert len(content) % size == 0 and set(content[at::size]) == {0x47}


@pytest.mark.parametrize(
    "make",
    [
        nasty_clips.vfr,
        nasty_clips.open_gop,
        nasty_clips.raw_h264,
        nasty_clips.one_frame,
        nasty_clips.wrapped_ts,
        lambda path: clips.write_clip(path, 6, rate=1, audio=1),
        lambda path: clips.write_clip(path, 30, rate=Fraction(60000, 1001)),
        lambda path: clips.write_clip(path, 3, width=16, height=16),
        lambda path: clips.write_clip(path, 9, codec="mpeg2video", rate=25, audio=2),
    ],
)
def test_times_of_all_kinds(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    names = {nasty_clips.raw_h264: "in.h264", nasty_clips.wrapped_ts: "in.ts"}
    source = make(tmp_path / names.get(make, "in.mkv"))
    made = make_output(source, tmp_path / "out.ts")
    if make is nasty_clips.raw_h264:  # whose times ffmpeg only guesses
        assert len(times(made.path)) == sum(len(s.pts) for s in made.segments)
        assert verify(source, made.path).ok
    else:
        check(made, source)


def test_the_picture_is_described_in_its_stream(tmp_path: Path) -> None:
    source = clips.write_clip(
        tmp_path / "in.mp4", 5, sar=Fraction(64, 45), color=clips.BT601_FULL, pix_fmt="yuv420p"
    )
    made = make_output(source, tmp_path / "out.ts")
    check(made, source)
    (video,) = streams(made.path)
    assert video["sample_aspect_ratio"] == "64:45" and video["color_range"] == "pc"
    assert video["color_primaries"] == video["color_transfer"] == "smpte170m"


def test_hdr_and_ten_bits(tmp_path: Path) -> None:
    source = nasty_clips.hdr10(tmp_path / "in.mkv", 4)
    made = make_output(source, tmp_path / "out.ts")
    check(made, source)
    (video,) = streams(made.path)
    assert (video["codec_name"], video["pix_fmt"]) == ("hevc", "yuv420p10le")
    assert video["color_transfer"] == "smpte2084"
    frame = ffmpeg.probe(made.path, "-show_frames", "-read_intervals", "%+#1")["frames"][0]
    kinds = {data["side_data_type"] for data in frame["side_data_list"]}
    assert {"Mastering display metadata", "Content light level metadata"} <= kinds


def test_what_it_cannot_hold_is_said(tmp_path: Path) -> None:
    source = clips.many_streams(tmp_path / "in.mkv")
    made = make_output(source, tmp_path / "out.ts")
    losses = "\n".join(made.plan.losses)
    for words in ("2 chapters", "tags (title", "subtitle", "attachment"):
        assert words in losses, losses
    check(made, source)
    found = streams(made.path)
    assert {s["codec_type"] for s in found} == {"video", "audio"}
    named = ffmpeg.convert(
        source, tmp_path / "named.mkv", "-map", "0:v:0", "-map", "0:a:0", "-c", "copy",
        "-metadata:s:a:0", "language=ger",
    )  # fmt: skip
    made = make_output(named, tmp_path / "named.ts")
    assert streams(made.path)[1]["tags"]["language"] == "ger"
    turned = clips.write_clip(tmp_path / "turned.mp4", 4, rotation=90)
    made = make_output(turned, tmp_path / "turned.ts")
    assert any("rotation by" in loss for loss in made.plan.losses)


@pytest.mark.parametrize("codec", ["libsvtav1", "libvpx-vp9", "ffv1"])
def test_codecs_that_it_cannot_say(plain: Path, tmp_path: Path, codec: str) -> None:
    info = probe(plain, JobConfig().source)
    config = JobConfig(encode=EncodeConfig(codec=codec))
    size = (info.video.width * 2, info.video.height * 2)
    with pytest.raises(RefusedError, match="MPEG-TS"):
        plan_output(info, config, tmp_path / "out.ts", size)


def test_the_clock_of_a_recorder_can_be_kept(plain: Path, tmp_path: Path) -> None:
    source = late(plain, tmp_path / "in.ts")
    before = first_times(source)
    assert min(before.values()) > 50000
    made = make_output(source, tmp_path / "kept.ts", config=KEEP)
    assert first_times(made.path) == before
    moved = first_times(make_output(source, tmp_path / "out.ts").path)
    assert moved[1] - moved[0] == before[1] - before[0] and 1 < min(moved.values()) < 2


def test_an_excerpt(plain: Path, tmp_path: Path) -> None:
    window = TimeWindow(start_pts=200, end_pts=600)
    made = make_output(plain, tmp_path / "out.ts", window=window)
    assert len(times(made.path)) == 10
    assert verify(plain, made.path, window=window, plan=made.plan).ok


def test_the_clock_may_wrap_in_the_middle(tmp_path: Path) -> None:
    source = clips.write_clip(tmp_path / "in.mkv", 50, audio=1)
    wrapping = late(source, tmp_path / "in.ts", float(Fraction(1 << 33, 90000)) - 2.4)
    made = make_output(wrapping, tmp_path / "kept.ts", config=KEEP)
    assert len(ffmpeg.frames(made.path)) == 50
    assert verify(wrapping, made.path, plan=made.plan).ok


def test_a_tiny_file_is_filled_up(tmp_path: Path) -> None:
    packet = b"\x47\x40\x11\x10" + bytes(184)
    for prefix in (b"", b"\x01\x02\x03\x04"):
        path = tmp_path / "x"
        path.write_bytes((prefix + packet) * 3)
        fill_up(path)
        content = path.read_bytes()
        assert len(content) == 64 * (188 + len(prefix))
        assert content.startswith((prefix + packet) * 3)
        fill_up(path)
        assert path.read_bytes() == content


def test_the_command_writes_it(plain: Path, tmp_path: Path) -> None:
    done = run("enhance", plain, "-o", tmp_path / "out.m2ts")
    assert done.returncode == 0, done.stderr
    assert times(tmp_path / "out.m2ts") == times(plain)
    verified = run("verify", plain, tmp_path / "out.m2ts")
    assert verified.returncode == 0, verified.stdout
