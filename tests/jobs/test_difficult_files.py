"""Difficult files from end to end: each comes out right or is refused in one clear sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import srstream
from srstream.config import EncodeConfig, JobConfig, ScaleConfig, SourceConfig
from srstream.errors import SrstreamError
from srstream.jobs.events import Event, Note, Started
from srstream.jobs.store import job_directory
from tests.support import clips, nasty_clips

Maker = Callable[[Path], Path]

COMES_OUT: dict[str, tuple[str, Maker, str]] = {
    "constant rate": ("in.mp4", clips.cfr, ".mp4"),
    "variable rate": ("in.mp4", nasty_clips.vfr, ".mp4"),
    "variable rate in matroska": ("in.mkv", nasty_clips.vfr, ".mkv"),
    "late start": ("in.mp4", nasty_clips.late_start, ".mp4"),
    "wrapped clock": ("in.ts", nasty_clips.wrapped_ts, ".mp4"),
    "clock that starts again": ("in.ts", nasty_clips.concatenated_ts, ".mp4"),
    "odd size": ("in.mkv", nasty_clips.odd_size, ".mkv"),
    "pixel aspect and rotation": ("in.mp4", nasty_clips.sar_and_rotation, ".mp4"),
    "HDR10": ("in.mp4", nasty_clips.hdr10, ".mp4"),
    "full-range BT.601": ("in.mp4", nasty_clips.full_range_601, ".mp4"),
    "interlaced": ("in.mp4", nasty_clips.interlaced, ".mp4"),
    "many streams": ("in.mkv", clips.many_streams, ".mkv"),
    "many streams in MP4": ("in.mp4", clips.many_streams, ".mp4"),
    "alpha, FFV1": ("in.mkv", nasty_clips.alpha_ffv1, ".mkv"),
    "alpha, VP9": ("in.webm", nasty_clips.alpha_webm, ".mkv"),
    "open GOP": ("in.mp4", nasty_clips.open_gop, ".mp4"),
    "raw H.264": ("in.h264", nasty_clips.raw_h264, ".mp4"),
    "one frame": ("in.mp4", nasty_clips.one_frame, ".mp4"),
    "size change": ("in.h264", nasty_clips.size_change, ".mp4"),
    "bit flips": ("in.mp4", nasty_clips.bit_flips, ".mp4"),
}


@pytest.mark.parametrize("name", COMES_OUT)
def test_it_comes_out_right(name: str, tmp_path: Path) -> None:
    file_name, make, suffix = COMES_OUT[name]
    source = make(tmp_path / file_name)
    result = srstream.enhance(source)
    assert result.exit_code == 0
    assert result.output == tmp_path / f"in_4x{suffix}"
    receipt = srstream.verify(source, result.output)
    assert receipt.ok, receipt.problems
    assert receipt.num_frames_out == receipt.num_frames_in > 0
    assert not job_directory(result.output).exists()


REFUSED: dict[str, tuple[str, Maker, str]] = {
    "truncated, index first": ("in.mp4", nasty_clips.truncated, "--salvage"),
    "truncated matroska": ("in.mkv", nasty_clips.truncated, "--salvage"),
    "truncated, index last": (
        "in.mp4",
        lambda path: nasty_clips.truncated(path, index_first=False),
        "in.mp4",
    ),
    "audio only": ("in.mp4", nasty_clips.audio_only, "no video"),
    "empty": ("in.mp4", nasty_clips.empty, "empty"),
    "text named mp4": ("in.mp4", nasty_clips.text_file, "in.mp4"),
    "giant": ("in.mov", nasty_clips.giant, "60000x60000"),
    "missing": ("in.mp4", lambda path: path, "no such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    file_name, make, words = REFUSED[name]
    source = make(tmp_path / file_name)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SrstreamError) as refusal:
        srstream.enhance(source)
    text = str(refusal.value)
    assert words.lower() in text.lower() and "\n" not in text and len(text) < 400
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("file_name", ["in.mp4", "in.mkv"])
def test_salvage_delivers_the_good_part(file_name: str, tmp_path: Path) -> None:
    source = nasty_clips.truncated(tmp_path / file_name)
    config = JobConfig(source=SourceConfig(salvage=True))
    result = srstream.enhance(source, config=config)
    assert result.exit_code == 4
    assert 20 <= result.num_frames < 75
    with av.open(str(result.output)) as container:
        assert sum(1 for _ in container.decode(video=0)) == result.num_frames


def test_eight_corrupt_packets_in_a_row_end_the_job(tmp_path: Path) -> None:
    source = nasty_clips.bit_flips(
        tmp_path / "in.mkv", packets=range(12, 24), damage=100_000, codec="ffv1", options={}
    )
    with pytest.raises(SrstreamError, match="--salvage"):
        srstream.enhance(source, tmp_path / "out.mp4")
    config = JobConfig(source=SourceConfig(salvage=True))
    result = srstream.enhance(source, tmp_path / "out.mp4", config=config, restart=True)
    assert (result.exit_code, result.num_frames) == (4, 12)


def run_with_events(source: Path, **arguments: Any) -> tuple[Any, list[Event]]:
    events: list[Event] = []
    return srstream.enhance(source, on_event=events.append, **arguments), events


def test_interlaced_material_is_said_aloud(tmp_path: Path) -> None:
    _, events = run_with_events(nasty_clips.interlaced(tmp_path / "in.mp4"))
    said = [event.text for event in events if isinstance(event, Note)]
    said += [note for event in events if isinstance(event, Started) for note in event.notes]
    assert any("interlaced" in text for text in said)


def test_dropped_alpha_is_announced_before_the_start(tmp_path: Path) -> None:
    config = JobConfig(encode=EncodeConfig(codec="libx264"))
    _, events = run_with_events(nasty_clips.alpha_ffv1(tmp_path / "in.mkv"), config=config)
    first = events[[isinstance(event, Started) for event in events].index(True)]
    assert isinstance(first, Started) and any("alpha" in loss for loss in first.losses)


@pytest.mark.parametrize("scaling", [ScaleConfig(scale=2), ScaleConfig(height=100)])
def test_a_smaller_size_is_the_model_s_resized(scaling: ScaleConfig, tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mp4")
    result = srstream.enhance(source, config=JobConfig(scaling=scaling))
    with av.open(str(result.output)) as container:
        stream = container.streams.video[0]
        assert stream.height == (96 if scaling.scale else 100)
        assert stream.width == (128 if scaling.scale else 134)
    assert srstream.verify(source, result.output).ok


def test_an_excerpt_holds_exactly_the_frames_of_its_window(tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mp4", frames=50, noise=4, audio=1)
    config = JobConfig(source=SourceConfig(start_seconds=0.4, end_seconds=1.2))
    result = srstream.enhance(source, config=config)
    assert result.num_frames == 20
    with av.open(str(source)) as original, av.open(str(result.output)) as excerpt:
        wanted = [frame.to_ndarray(format="gray") for frame in original.decode(video=0)][10:30]
        found = [frame.to_ndarray(format="gray") for frame in excerpt.decode(video=0)]
    assert len(found) == 20
    for a, b in zip(wanted, found, strict=True):
        small = b.reshape(48, 4, 64, 4).mean((1, 3))
        assert np.abs(small - a).mean() < 3


def test_memory_may_be_limited(tmp_path: Path) -> None:
    source = clips.write_clip(tmp_path / "in.mp4", 2, width=240, height=180)
    free = srstream.enhance(source, tmp_path / "free.mp4")
    config = JobConfig.model_validate({"engine": {"max_memory_bytes": 400 << 20}})
    tight = srstream.enhance(source, tmp_path / "tight.mp4", config=config)
    with av.open(str(free.output)) as a, av.open(str(tight.output)) as b:
        for one, other in zip(a.decode(video=0), b.decode(video=0), strict=True):
            np.testing.assert_array_equal(one.to_ndarray(), other.to_ndarray())
