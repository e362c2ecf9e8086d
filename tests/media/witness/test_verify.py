"""The receipt: sound outputs pass, and every kind of fault that was really made is found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from srstream.frame import ColorSpec, Frame
from srstream.media.types import TimeWindow
from srstream.media.verify import Receipt, spread, verify
from srstream.media.write.mux import assemble
from tests.support import clips, nasty_clips
from tests.support.outputs import KEEP, Change, Made, make_output

SAMPLES = [None, 4]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.many_streams(tmp_path_factory.mktemp("many") / "in.mkv")


def receipts(source: Path, output: Path) -> list[Receipt]:
    """What both ways of looking say."""
    return [verify(source, output, sample=sample) for sample in SAMPLES]


# Sound outputs

SOUND: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "constant rate": ("in.mp4", clips.cfr, "out.mp4"),
    "variable rate": ("in.mp4", nasty_clips.vfr, "out.mp4"),
    "late start": ("in.mkv", nasty_clips.late_start, "out.mkv"),
    "late start to Matroska": ("in.mp4", nasty_clips.late_start, "out.mkv"),
    "wrapped clock": ("in.ts", nasty_clips.wrapped_ts, "out.mp4"),
    "two recordings": ("in.ts", nasty_clips.concatenated_ts, "out.mp4"),
    "odd size": ("in.mkv", nasty_clips.odd_size, "out.mkv"),
    "aspect and rotation": ("in.mp4", nasty_clips.sar_and_rotation, "out.mkv"),
    "HDR10": ("in.mp4", nasty_clips.hdr10, "out.mp4"),
    "full range": ("in.mp4", nasty_clips.full_range_601, "out.mp4"),
    "interlaced": ("in.mp4", nasty_clips.interlaced, "out.mp4"),
    "many streams": ("in.mp4", clips.many_streams, "out.mp4"),
    "many streams to Matroska": ("in.mp4", clips.many_streams, "out.mkv"),
    "many streams to MP4": ("in.mkv", clips.many_streams, "out.mp4"),
    "many streams to MOV": ("in.mkv", clips.many_streams, "out.mov"),
    "alpha": ("in.webm", nasty_clips.alpha_webm, "out.mkv"),
    "open groups": ("in.mp4", nasty_clips.open_gop, "out.mp4"),
    "raw": ("in.h264", nasty_clips.raw_h264, "out.mp4"),
    "one frame": ("in.mp4", nasty_clips.one_frame, "out.mp4"),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_outputs_pass(tmp_path: Path, name: str) -> None:
    file_name, make, output = SOUND[name]
    source = make(tmp_path / file_name)
    made = make_output(source, tmp_path / output)
    for receipt in receipts(source, made.path):
        assert receipt.ok, receipt.problems
        assert receipt.num_frames_in == receipt.num_frames_out > 0
        assert receipt.largest_time_error_seconds <= receipt.time_tolerance_seconds
        assert receipt.color.mean_error < 2
        assert receipt.color.num_frames_compared > 0
        if output.endswith("mp4") and file_name.endswith("mp4"):
            assert receipt.largest_time_error_seconds == 0
            assert receipt.largest_offset_change_seconds == 0


def test_losses_are_no_problems(tmp_path: Path, many: Path) -> None:
    made = make_output(many, tmp_path / "out.mp4")
    receipt = verify(many, made.path)
    assert receipt.ok
    assert any("attachment" in loss for loss in receipt.losses)


def test_excerpt_passes_and_the_whole_does_not(tmp_path: Path, many: Path) -> None:
    window = TimeWindow(400, 1600)
    made = make_output(many, tmp_path / "out.mkv", window=window)
    for sample in SAMPLES:
        receipt = verify(many, made.path, window=window, sample=sample)
        assert receipt.ok, receipt.problems
        assert receipt.num_frames_out == 30
        assert receipt.time_shift_seconds == pytest.approx(0.4)
    assert not verify(many, made.path).ok


def test_receipt_is_json(tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mp4")
    receipt = verify(source, make_output(source, tmp_path / "out.mp4").path)
    data = json.loads(receipt.model_dump_json(by_alias=True))
    assert data["schema"] == "srstream.receipt/1"
    assert data["ok"] is True
    assert "12 of 12 frames" in data["summary"]


def test_spread() -> None:
    assert spread(3, 10) == [0, 1, 2]
    assert spread(10, 1) == [5]
    assert spread(101, 5) == [0, 25, 50, 75, 100]


# Faults in the video


def drop_one(number: int, frame: Frame) -> Iterable[Frame]:
    return [] if number == 5 else [frame]


def add_one(number: int, frame: Frame) -> Iterable[Frame]:
    return [frame, replace(frame, pts=frame.pts + 1)] if number == 5 else [frame]


def shift_one(number: int, frame: Frame) -> Iterable[Frame]:
    return [replace(frame, pts=frame.pts + 3)] if number == 5 else [frame]


def shift_all(number: int, frame: Frame) -> Iterable[Frame]:
    return [replace(frame, pts=frame.pts + 2)]


def black(number: int, frame: Frame) -> Iterable[Frame]:
    if number != 11:
        return [frame]
    values = (16, 128, 128)
    planes = [np.full_like(p, v) for p, v in zip(frame.planes, values, strict=True)]
    return [replace(frame, planes=tuple(planes))]


def green(number: int, frame: Frame) -> Iterable[Frame]:
    luma, blue, red = frame.planes
    return [replace(frame, planes=(luma, np.zeros_like(blue), np.zeros_like(red)))]


def half_green(number: int, frame: Frame) -> Iterable[Frame]:
    luma, blue, red = frame.planes
    damaged = blue.copy()
    damaged[-6:, -6:] = 20
    return [replace(frame, planes=(luma, damaged, red))]


def shifted_chroma(number: int, frame: Frame) -> Iterable[Frame]:
    luma, blue, red = frame.planes
    return [replace(frame, planes=(luma, red, blue))]


def expanded(number: int, frame: Frame) -> Iterable[Frame]:
    luma, blue, red = frame.planes
    full = np.clip((luma.astype(float) - 16) * 255 / 219, 0, 255).astype(np.uint8)
    return [replace(frame, planes=(full, blue, red))]


FAULTS: dict[str, tuple[Change, str]] = {
    "a frame is missing": (drop_one, "11 frames are there, the source has 12"),
    "a frame is too many": (add_one, "13 frames are there"),
    "one time is wrong": (shift_one, "a frame is shown"),
    "all times are wrong": (shift_all, "a frame is shown"),
    "a black frame": (black, "black"),
    "green": (green, "mean of a color plane"),
    "a green corner": (half_green, "255 levels"),
    "swapped chroma": (shifted_chroma, "255 levels"),
    "wrong range in the pixels": (expanded, "mean of a color plane"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_the_video_are_found(tmp_path: Path, name: str) -> None:
    change, says = FAULTS[name]
    source = clips.write_clip(tmp_path / "in.mp4", 12, rate=25)
    made = make_output(source, tmp_path / "out.mp4", change=change, config=KEEP)
    for receipt in receipts(source, made.path):
        assert not receipt.ok
        assert any(says in problem for problem in receipt.problems), receipt.problems
        assert receipt.summary.startswith("not verified")


# Faults in the description and in the streams


def remake(made: Made, target: Path, **video: object) -> Path:
    """The same segments, described otherwise."""
    plan = replace(made.plan, video=replace(made.plan.video, **video))  # type: ignore[arg-type]
    assemble(made.source.path, made.source, plan, made.segments, target)
    return target


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sample_aspect_ratio": Fraction(1)}, "pixel aspect became 1:1"),
        ({"display_matrix": None}, "rotation became 0"),
    ],
)
def test_wrong_description_is_found(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    source = nasty_clips.sar_and_rotation(tmp_path / "in.mp4")
    made = make_output(source, tmp_path / "out.mp4")
    wrong = remake(made, tmp_path / "wrong.mp4", **changes)
    for receipt in receipts(source, wrong):
        assert any(says in problem for problem in receipt.problems), receipt.problems


def test_wrong_colour_marks_are_found(tmp_path: Path) -> None:
    source = nasty_clips.full_range_601(tmp_path / "in.mp4")
    other = clips.write_clip(tmp_path / "other.mp4", 6, color=clips.BT709)
    made = make_output(other, tmp_path / "out.mp4")
    receipt = verify(source, made.path, sample=2)
    said = "\n".join(receipt.problems)
    assert "color matrix became 1, the source says 6" in said
    assert "color primaries became 1" in said
    assert "range became limited" in said
    assert made.plan.video.color == ColorSpec(1, 1, 1, False, made.plan.video.color.chroma_location)


def change_streams(
    source: Path, target: Path, *, drop: int | None = None, languages: dict[int, str] | None = None
) -> Path:
    """A copy of a file without a stream, or with other languages."""
    with av.open(str(source)) as before, av.open(str(target), "w") as now:
        kept = {}
        for stream in before.streams:
            if stream.index == drop:
                continue
            if isinstance(stream, av.stream.AttachmentStream):
                now.add_attachment(stream.name or "", stream.mimetype or "", stream.data)
                continue
            added = now.add_stream_from_template(stream, opaque=True)
            added.metadata.update(stream.metadata)
            if languages and stream.index in languages:
                added.metadata["language"] = languages[stream.index]
            added.disposition = stream.disposition
            kept[stream.index] = added
        now.metadata.update(before.metadata)
        now.set_chapters(before.chapters())
        for packet in before.demux():
            if packet.size and packet.stream_index in kept:
                packet.stream = kept[packet.stream_index]
                now.mux(packet)
    return target


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source whose audio streams have languages, and its output."""
    folder = tmp_path_factory.mktemp("labelled")
    plain = clips.many_streams(folder / "plain.mkv")
    source = change_streams(plain, folder / "in.mkv", languages={1: "eng", 2: "jpn"})
    return source, make_output(source, folder / "out.mkv").path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"languages": {1: "jpn", 2: "eng"}}, "its language became jpn, the source says eng"),
        ({"drop": 1}, "Stream 1 (audio, aac, eng) is missing"),
        ({"drop": 3}, "Stream 3 (subtitle, subrip, eng) is missing"),
        ({"drop": 4}, "Stream 4 (subtitle, subrip, deu) is missing"),
        ({"drop": 5}, "Stream 5 (attachment"),
    ],
)
def test_faults_of_the_streams_are_found(
    tmp_path: Path, labelled: tuple[Path, Path], changes: dict[str, object], says: str
) -> None:
    source, output = labelled
    assert verify(source, output, sample=2).ok
    wrong = change_streams(output, tmp_path / "wrong.mkv", **changes)  # type: ignore[arg-type]
    problems = verify(source, wrong, sample=2).problems
    assert any(says in problem for problem in problems), problems


def test_moved_audio_and_missing_chapters_are_found(
    tmp_path: Path, labelled: tuple[Path, Path]
) -> None:
    source, output = labelled
    wrong = tmp_path / "wrong.mkv"
    with av.open(str(output)) as before, av.open(str(wrong), "w") as now:
        streams = {}
        for stream in before.streams:
            if not isinstance(stream, av.stream.AttachmentStream):
                streams[stream.index] = now.add_stream_from_template(stream, opaque=True)
        for packet in before.demux():
            if packet.size:
                if packet.stream_index == 2:
                    packet.pts += 40
                    packet.dts += 40
                packet.stream = streams[packet.stream_index]
                now.mux(packet)
    receipt = verify(source, wrong, sample=2)
    said = "\n".join(receipt.problems)
    assert "moved by 40" in said
    assert "0 chapters are there, the source has 2" in said
    # Said, but no reason to throw a picture away.
    assert "the tag title ('Many streams') is not there" in receipt.losses
