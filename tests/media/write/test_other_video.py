"""A source with several videos: the enhanced one is what players show.

The expected values are ffprobe's, of an output that the command made of the sample, whose larger
video comes second and where both are default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.ffmpeg import needs_ffmpeg, probe
from tests.support.jobs import run


def videos_of(path: Path) -> list[dict[str, Any]]:
    return [s for s in probe(path, "-show_streams")["streams"] if s["codec_type"] == "video"]


@needs_ffmpeg
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts"])
def test_the_enhanced_video_is_first_and_alone_default(
    tmp_path: Path, sample_clip: Path, suffix: str
) -> None:
    source = videos_of(sample_clip)
    assert [(v["width"], v["disposition"]["default"]) for v in source] == [(320, 1), (480, 1)]
    output = tmp_path / f"out{suffix}"
    done = run("enhance", sample_clip, "--end", "0.1", "--preset", "ultrafast", "-o", output)
    assert done.returncode == 0, done.stderr
    assert "Stream 0 is another video, kept behind the enhanced one" in done.stderr
    first, second = videos_of(output)
    assert (first["width"], second["width"]) == (4 * 480, 320)
    assert not second["disposition"]["default"]
    if suffix != ".ts":  # It has no such flag.
        assert first["disposition"]["default"]


@needs_ffmpeg
def test_other_videos_are_left_out_where_asked_for(tmp_path: Path, sample_clip: Path) -> None:
    output = tmp_path / "out.mp4"
    options = ["--other-video", "drop", "--end", "0.1", "--preset", "ultrafast"]
    done = run("enhance", sample_clip, *options, "-o", output)
    assert done.returncode == 0, done.stderr
    assert "Stream 0 (video, h264, eng) is left out: --other-video drop was given." in done.stderr
    assert [v["width"] for v in videos_of(output)] == [4 * 480]
    streams = probe(output, "-show_streams")["streams"]
    assert sorted(s["codec_type"] for s in streams if s["codec_type"] != "data") == sorted(
        ["video", "audio", "audio", "subtitle", "subtitle"]
    )
