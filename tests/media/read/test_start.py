"""A file's clock may start anywhere: what is written starts at zero, all streams moved alike.

Sources are made and results read by ffmpeg.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest

from srstream.config import JobConfig, SourceConfig
from srstream.jobs.planning.plan import fingerprint, make_plan
from srstream.media.read.probe import probe
from srstream.media.read.scan import scan_packets
from srstream.media.types import TimeWindow
from srstream.media.verify import verify
from tests.support import clips, ffmpeg
from tests.support.jobs import run
from tests.support.outputs import KEEP, make_output

pytestmark = ffmpeg.needs_ffmpeg

LATE = 50001
FRAME = Fraction(1, 25)


def first_times(path: Path) -> dict[int, Fraction]:
    """When each stream begins, by ffprobe's packets; what a decoder is told to drop aside."""
    found = ffmpeg.probe(path, "-show_packets", "-show_streams")
    bases = {s["index"]: Fraction(s["time_base"]) for s in found["streams"]}
    covers = {s["index"] for s in found["streams"] if s["disposition"]["attached_pic"]}
    times: dict[int, Fraction] = {}
    for packet in found["packets"]:
        index = packet["stream_index"]
        if index not in covers and "pts" in packet and "D" not in packet["flags"]:
            moment = packet["pts"] * bases[index]
            times[index] = min(times.get(index, moment), moment)
    return times


def offsets(path: Path) -> dict[int, Fraction]:
    """When each stream begins after the first stream."""
    times = first_times(path)
    return {index: time - times[0] for index, time in times.items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Picture with B frames, and sound, from zero on."""
    return clips.cfr(tmp_path_factory.mktemp("clips") / "plain.mkv", 20, audio=1)


def late(plain: Path, path: Path, seconds: float = LATE, *options: str) -> Path:
    codecs = [] if path.suffix != ".avi" else ["-c:v", "mpeg4", "-bf", "0"]
    return ffmpeg.convert(
        plain, path, "-map", "0", "-c", "copy", *codecs, "-output_ts_offset", str(seconds), *options
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("in.ts", "out.mp4"),
        ("in.m2ts", "out.mkv"),
        ("in.flv", "out.mp4"),
        ("in.mkv", "out.mov"),
        ("in.mp4", "out.mkv"),
        ("in.mov", "out.mp4"),
    ],
)
def test_a_late_file_starts_at_zero(plain: Path, tmp_path: Path, name: str, output: str) -> None:
    source = late(plain, tmp_path / name)
    assert min(first_times(source).values()) > 50000
    made = make_output(source, tmp_path / output)
    tick = made.source.video.time_base
    rounded = Fraction(1, 1000) if output == "out.mkv" else Fraction(0)
    times = first_times(made.path)
    assert 0 <= min(times.values()) <= max(tick, rounded)
    before, now = offsets(source), offsets(made.path)
    assert before.keys() == now.keys()
    clock = max(rounded, Fraction(1, 2 * 44100))  # of the sound, where it has another than picture
    assert all(abs(now[index] - before[index]) <= clock for index in before)
    receipt = verify(source, made.path)
    assert receipt.ok, receipt.problems
    shift = min(first_times(source).values())
    assert abs(receipt.time_shift_seconds - float(shift)) <= tick


@pytest.mark.parametrize("name", ["in.ts", "in.flv", "in.mkv", "in.mp4"])
def test_the_start_is_kept_on_demand(plain: Path, tmp_path: Path, name: str) -> None:
    source = late(plain, tmp_path / name)
    made = make_output(source, tmp_path / "out.mp4", config=KEEP)
    before, now = first_times(source), first_times(made.path)
    assert all(abs(now[index] - before[index]) <= Fraction(1, 2 * 44100) for index in before)
    receipt = verify(source, made.path)
    assert receipt.ok and receipt.time_shift_seconds == 0


@pytest.mark.parametrize("seconds", [Fraction(-3), Fraction(3), Fraction(1, 8), Fraction(-1, 8)])
@pytest.mark.parametrize("output", ["out.mp4", "out.mkv"])
def test_sound_and_picture_keep_their_distance(
    plain: Path, tmp_path: Path, seconds: Fraction, output: str
) -> None:
    """Sound that begins before the picture, and after it."""
    shifted = clips.cfr(tmp_path / "video.mkv", 20)
    source = tmp_path / "in.ts"
    run_ffmpeg = ["-itsoffset", str(float(seconds)), "-i", str(plain), "-map", "0:v", "-map", "1:a"]
    ffmpeg.convert(shifted, source, *run_ffmpeg, "-c", "copy", "-output_ts_offset", "70")
    made = make_output(source, tmp_path / output)
    before, now = offsets(source), offsets(made.path)
    assert abs(before[1] - seconds) < Fraction(1, 10)
    assert abs(now[1] - before[1]) <= (0 if output == "out.mp4" else Fraction(1, 1000)) + Fraction(
        1, 90000
    )
    assert min(first_times(made.path).values()) == 0
    assert verify(source, made.path).ok


def test_an_encoders_priming_stays_before_zero(tmp_path: Path) -> None:
    """MP4's edit list says that nobody hears it; it is no start of the file."""
    source = clips.cfr(tmp_path / "in.mp4", 20, audio=1)
    with av.open(str(source)) as container:
        assert min(p.pts for p in container.demux(audio=0) if p.size) < 0
    made = make_output(source, tmp_path / "out.mp4")
    with av.open(str(made.path)) as now, av.open(str(source)) as before:
        for container in (before, now):
            video = [p.pts for p in container.demux(video=0) if p.size]
            assert min(video) == 0
        assert [s.start_time for s in now.streams] == [s.start_time for s in before.streams]


@pytest.mark.parametrize(("cue", "begins"), [(52.0, 50.0), (50.0, 50.0), (48.5, 48.5), (0.0, 0.0)])
def test_an_early_cue_is_not_lost(tmp_path: Path, cue: float, begins: float) -> None:
    """What is shown before picture and sound begin is shown before them in the result."""
    (tmp_path / "in.srt").write_text(
        f"1\n00:00:{cue:06.3f} --> 00:00:{cue + 1:06.3f}\nHallo\n".replace(".", ",")
    )
    plain = late(clips.cfr(tmp_path / "video.mkv", 20, audio=1), tmp_path / "late.mkv", 50)
    source = ffmpeg.convert(
        plain, tmp_path / "in.mkv", "-i", str(tmp_path / "in.srt"), "-map", "0", "-map", "1",
        "-c", "copy", "-copyts", "-avoid_negative_ts", "disabled",
    )  # fmt: skip
    first = first_times(source)
    assert abs(min(first.values()) - Fraction(begins)) < Fraction(1, 10)
    made = make_output(source, tmp_path / "out.mkv")
    times = first_times(made.path)
    shift = min(first.values())
    assert times == {index: time - shift for index, time in first.items()}
    receipt = verify(source, made.path)
    assert receipt.ok, receipt.problems


def test_what_is_not_taken_along_does_not_count(plain: Path, tmp_path: Path) -> None:
    """Data from zero on, which no output can hold, and a cover picture at zero."""
    source = tmp_path / "in.ts"
    with (
        av.open(str(late(plain, tmp_path / "late.ts"))) as before,
        av.open(str(source), "w") as now,
    ):
        streams = [now.add_stream_from_template(s, opaque=True) for s in before.streams]
        data = now.add_mux_stream("klv")
        data.time_base = Fraction(1, 90000)
        for number in range(3):
            packet = av.Packet(b"\x06\x0e\x2b\x34" + bytes(12))
            packet.pts = packet.dts = 90000 * (1 + number)
            packet.time_base, packet.stream = Fraction(1, 90000), data
            now.mux(packet)
        for packet in before.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                now.mux(packet)
    assert min(first_times(source).values()) < 10
    made = make_output(source, tmp_path / "out.mp4")
    assert min(first_times(made.path).values()) == 0
    covered = with_cover(plain, tmp_path / "covered.mp4")
    assert min(first_times(make_output(covered, tmp_path / "b.mp4").path).values()) == 0


def with_cover(plain: Path, path: Path) -> Path:
    picture = path.with_suffix(".jpg")
    ffmpeg.convert(plain, picture, "-frames:v", "1", "-update", "1")
    options = ["-map", "0", "-map", "1", "-c", "copy", "-disposition:v:1", "attached_pic"]
    return ffmpeg.convert(
        late(plain, path.with_name("late.mp4"), 9.5), path, "-i", str(picture), "-copyts", *options
    )  # fmt: skip


def test_a_clock_that_wraps_at_once_is_carried_on(plain: Path, tmp_path: Path) -> None:
    """33 bits end between the first frame and the first sound."""
    wrap = (1 << 33) / 90000
    source = late(plain, tmp_path / "in.ts", wrap - 1.4 - 0.02)
    made = make_output(source, tmp_path / "out.mp4")
    assert len(ffmpeg.frames(made.path)) == 20
    times = first_times(made.path)
    assert min(times.values()) == 0 and max(times.values()) < Fraction(1, 10)
    reference = make_output(late(plain, tmp_path / "early.ts", 5), tmp_path / "early.mp4")
    assert offsets(made.path) == offsets(reference.path)


def test_chapters_move_along(tmp_path: Path) -> None:
    plain = clips.write_clip(tmp_path / "c.mkv", 50, audio=1, chapters=("One", "Two"))
    source = tmp_path / "in.mkv"
    with (
        av.open(str(late(plain, tmp_path / "l.mkv", 100))) as before,
        av.open(str(source), "w") as now,
    ):
        streams = [now.add_stream_from_template(s, opaque=True) for s in before.streams]
        base = Fraction(1, 1000)
        now.set_chapters(
            [
                {"id": n, "start": a, "end": b, "time_base": base, "metadata": {"title": t}}
                for n, (a, b, t) in enumerate([(0, 100500, "One"), (100500, 102000, "Two")], 1)
            ]
        )
        for packet in before.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                now.mux(packet)
    shift = min(first_times(source).values())
    made = make_output(source, tmp_path / "out.mkv")
    found = ffmpeg.probe(made.path, "-show_chapters")["chapters"]
    starts = [Fraction(c["start"]) * Fraction(c["time_base"]) for c in found]
    assert starts == [0, Fraction(201, 2) - shift]
    assert [c["tags"]["title"] for c in found] == ["One", "Two"]


@pytest.mark.parametrize("name", ["in.ts", "in.mkv"])
def test_excerpts_start_at_zero_or_where_the_source_does(
    plain: Path, tmp_path: Path, name: str
) -> None:
    source = late(plain, tmp_path / name)
    video = probe(source, SourceConfig()).video
    start = scan_packets(source, video).pts[10]
    window = TimeWindow(start_pts=start)
    made = make_output(source, tmp_path / "out.mp4", window=window)
    assert first_times(made.path)[0] == 0
    assert len(ffmpeg.frames(made.path)) == 10
    assert verify(source, made.path, window=window).ok
    kept = make_output(source, tmp_path / "kept.mp4", window=window, config=KEEP)
    assert first_times(kept.path)[0] == first_times(source)[0]
    assert verify(source, kept.path, window=window).ok


def test_it_is_said_beforehand_and_part_of_the_job(plain: Path, tmp_path: Path) -> None:
    source = late(plain, tmp_path / "in.ts")
    begins = float(min(first_times(source).values()))
    assert begins > 50000
    moved, kept = make_plan(source, None, JobConfig()), make_plan(source, None, KEEP)
    (note,) = [note for note in moved.output.notes if "--keep-start" in note]
    assert f"starts at {begins:.3f} s" in note
    assert not [note for note in kept.output.notes if "clock" in note]
    assert not [n for n in make_plan(plain, None, JobConfig()).output.notes if "clock" in n]
    one, other = fingerprint(moved), fingerprint(kept)
    assert one["settings"].pop("source") != other["settings"].pop("source")
    assert one == other


def test_the_command_keeps_the_start(plain: Path, tmp_path: Path) -> None:
    source = late(plain, tmp_path / "in.ts")
    done = run("enhance", source, "-o", tmp_path / "out.mp4", "--keep-start")
    assert done.returncode == 0, done.stderr
    assert min(first_times(tmp_path / "out.mp4").values()) > 50000
