"""The receipt as a witness of the pipeline: its own functions are broken, each fault is named."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import srstream
from srstream.config import EncodeConfig, JobConfig
from srstream.enhancer.enhancer import Enhancer
from srstream.errors import VerifyError
from srstream.media.read.deinterlace import Deinterlacer
from srstream.media.read.skipped import SkippedPackets
from srstream.media.types import WHOLE, TimeWindow
from srstream.media.verify import verify
from tests.media.read.test_cropping import SOME, _with_pixel_crop
from tests.support import clips, nasty_clips
from tests.support.jobs import run
from tests.support.outputs import make_output
from tests.support.witness import check, remuxed, said, with_data


def test_a_crop_that_is_lost_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _with_pixel_crop(tmp_path / "in.mkv", SOME)
    assert verify(source, make_output(source, tmp_path / "good.mkv").path).problems == []
    monkeypatch.setattr("srstream.media.read.probe.container_crop", lambda *what: WHOLE)
    check(source, make_output(source, tmp_path / "out.mkv").path, "the crop is not there")


def test_fields_that_stay_woven_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = nasty_clips.interlaced(tmp_path / "in.mp4")
    assert verify(source, make_output(source, tmp_path / "good.mp4").path).problems == []
    monkeypatch.setattr(Deinterlacer, "push", lambda self, frame: iter([(frame, frame)]))
    check(source, make_output(source, tmp_path / "out.mp4").path, "is not deinterlaced")


def palette_video(path: Path, frames: int = 12) -> Path:
    """Raw video of a palette, which AVI sends with the first packet only."""
    palette = np.random.default_rng(3).integers(60, 255, (256, 4), dtype=np.uint8)
    palette[:, 0] = 255  # opaque
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "pal8"
        for n in range(frames):
            codes = (np.arange(64) // 8 + np.arange(48)[:, None] // 8 * 8 + n).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray((codes, palette), format="pal8")
            frame.pts, frame.time_base = n, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_still_chart_of_two_fields_is_no_moved_picture(codec: str, tmp_path: Path) -> None:
    """Rows that the deinterlacer makes of their neighbors may seem moved by a part of a row."""
    source, output = tmp_path / "in.mkv", tmp_path / "out.mkv"
    chart = ["-f", "lavfi", "-i", "testsrc2=s=176x144:r=25:d=0.2", "-vf", "setfield=tff"]
    fields = ["-c:v", codec, "-flags", "+ilme+ildct", "-b:v", "4M"]
    subprocess.run(["ffmpeg", "-v", "error", *chart, *fields, source], check=True)
    done = run("enhance", source, "-o", output)
    assert done.returncode == 0, done.stderr
    assert "deinterlaced" in done.stderr


def test_a_palette_that_is_skipped_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault of old: every frame of an excerpt black, and the receipt saw black as well."""
    source = palette_video(tmp_path / "in.avi", 24)
    window = TimeWindow(start_pts=14)
    config = JobConfig(encode=EncodeConfig(chroma="keep"))
    good = make_output(source, tmp_path / "good.mkv", window=window, config=config)
    assert verify(source, good.path, window=window, sample=4).problems == []
    monkeypatch.setattr(SkippedPackets, "give", lambda self, packet: packet)
    made = make_output(source, tmp_path / "out.mkv", window=window, config=config)
    receipt = verify(source, made.path, window=window, sample=4)
    assert "are black that are not black in the source" in said(receipt)


def two_parts(path: Path, first: dict[str, Any], second: dict[str, Any]) -> Path:
    """A transport stream whose second half is described otherwise."""
    parts = []
    for number, how in enumerate((first, second)):
        part = path.with_suffix(f".{number}.ts")
        pts = [number * 10 + n for n in range(10)]
        clips.write_clip(part, 10, pts=pts, gop=5, options={"bf": "1"}, format="mpegts", **how)
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))
    return path


PARTS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Any, Any], Any], str]] = {
    "pixel aspect": (
        {"sar": Fraction(12, 11)},
        {"sar": Fraction(16, 11)},
        lambda self, frame: replace(frame, sample_aspect_ratio=None),
        "another pixel aspect or size than the first, and is shown in its shape",
    ),
    "range": (
        {"color": clips.BT709},
        {"color": replace(clips.BT709, range=2)},
        lambda self, frame: replace(frame, color=replace(frame.color, full_range=False)),
        "has its range stretched",
    ),
    "matrix": (
        {"color": clips.BT709},
        {"color": replace(clips.BT709, matrix=6)},
        lambda self, frame: replace(frame, color=replace(frame.color, matrix=1)),
        "has the colors of another matrix",
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_change_in_mid_stream_that_is_lost_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    first, second, lose, words = PARTS[name]
    source = two_parts(tmp_path / "in.ts", first, second)
    config = JobConfig.model_validate({"model": {"name": "fast", "restore": 0}})
    good = srstream.enhance(source, tmp_path / "good.mp4", config=config)
    assert verify(source, good.output).problems == []
    push = Enhancer.push
    monkeypatch.setattr(Enhancer, "push", lambda self, frame: push(self, lose(self, frame)))
    with pytest.raises(VerifyError, match=words):
        srstream.enhance(source, tmp_path / "out.mp4", config=config)


def test_cues_that_are_late_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of old: cues that overlap were put one behind the other in MP4."""
    source = clips.write_clip(tmp_path / "plain.mkv", 50, subtitles=("eng",))

    def three(packet: av.Packet) -> list[av.Packet]:
        made = []
        for number, (start, length) in enumerate([(100, 900), (400, 300), (600, 1000)]):
            cue = with_data(packet, f"line {number}".encode())
            cue.pts = cue.dts = start
            cue.duration = length
            made.append(cue)
        return made

    source = remuxed(source, tmp_path / "in.mkv", edits={1: three})
    good = make_output(source, tmp_path / "good.mp4")
    assert verify(source, good.path).problems == []

    def in_a_row(cues: Any) -> Iterator[Any]:
        free = 0
        for cue in sorted(cues, key=lambda cue: cue.start):
            start = max(cue.start, free)
            free = start + cue.end - cue.start
            yield replace(cue, start=start, end=free)

    monkeypatch.setattr("srstream.media.write.mux.one_at_a_time", in_a_row)
    made = make_output(source, tmp_path / "out.mp4")
    check(source, made.path, "the text 'line 1' (and 1 more) is shown from 1.000 to 1.300 s")
