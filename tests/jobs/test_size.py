"""The size of an output: what is asked for, as a viewer sees it, also beyond the network's own."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from srstream.config import ScaleConfig
from srstream.errors import RefusedError, UsageError
from srstream.frame import ColorSpec, FrameForm, PlaneLayout
from srstream.jobs.planning.size import output_size
from tests.support import clips
from tests.support.ffmpeg import needs_ffmpeg, probe
from tests.support.jobs import run

YUV420 = PlaneLayout("yuv", 8, 1, 1)


def size(columns: int, rows: int, *, turn: int = 0, aspect: str = "1", **asked: object) -> object:
    form = FrameForm(columns, rows, YUV420, ColorSpec(), Fraction(aspect))
    scaling = ScaleConfig.model_validate(asked)
    return output_size(form, scaling, 4, rotation_degrees=turn)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (1280, 720)),
        ({"scale": 2}, (640, 360)),
        ({"scale": 6}, (1920, 1080)),
        ({"height": 1080}, (1920, 1080)),
        ({"width": 1280}, (1280, 720)),
        ({"width": 1000}, (1000, 562)),
        ({"fit": "1920x1080"}, (1920, 1080)),
        ({"fit": "1920x300"}, (534, 300)),
        ({"fit": "300x1080"}, (300, 168)),
    ],
)
def test_any_size_may_be_asked_for(asked: dict[str, object], expected: tuple[int, int]) -> None:
    assert size(320, 180, **asked) == expected


def test_a_turned_picture_is_measured_as_it_is_seen() -> None:
    # A phone's portrait video: stored 320x180, seen 180x320.
    for turn in (90, -90, 270):
        assert size(320, 180, turn=turn, height=640) == (640, 360)
        assert size(320, 180, turn=turn, width=90) == (160, 90)
        assert size(320, 180, turn=turn, fit="1920x1080") == (1080, 608)
    assert size(320, 180, turn=180, height=360) == (640, 360)


def test_a_box_holds_the_picture_with_the_shape_of_its_pixels() -> None:
    # PAL in 16:9 is seen as 1024x576; in 5:4 on 720 columns, of narrow pixels, as 720x675.
    assert size(720, 576, aspect="64/45", fit="1024x1000") == (720, 576)
    assert size(720, 576, aspect="64/75", fit="1440x1350") == (1440, 1152)


def test_two_sizes_and_a_tiny_one_are_refused() -> None:
    with pytest.raises(UsageError, match="--height and --width exclude each other"):
        size(320, 180, height=720, width=1280)
    with pytest.raises(RefusedError, match="larger --fit"):
        size(320, 180, fit="20x20")


@needs_ffmpeg
def test_a_larger_size_than_the_network_s_is_made_and_said(tmp_path: Path) -> None:
    source, output = clips.cfr(tmp_path / "in.mp4", frames=2), tmp_path / "out.mp4"
    done = run("enhance", source, "--height", "300", "--preset", "ultrafast", "-o", output)
    assert done.returncode == 0, done.stderr
    assert (
        "enlarges to 256x192; from there to 400x300 the picture is enlarged by bicubic"
        in done.stderr
    )
    video = probe(output, "-show_streams")["streams"][0]
    assert (video["width"], video["height"]) == (400, 300)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:00:00.2", 0.2), ("0.2", 0.2), ("00:0.2", 0.2), ("0:01:30", 90)]
)
def test_a_time_may_be_written_by_the_clock(tmp_path: Path, text: str, seconds: float) -> None:
    source = clips.cfr(tmp_path / "in.mp4", frames=12)
    done = run("plan", source, "--start", text)
    if seconds < 1:
        # 25 frames a second: the first five lie before 0.2 s.
        assert "in.mp4: 7 frames" in done.stdout, done.stderr
    else:
        assert f"--start {seconds:g} s lies behind the last frame, at 0.440 s" in done.stderr


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--fit", "10y20", "such as 1920x1080"),
        ("--fit", "0x20", "such as 1920x1080"),
        ("--start", "1:75", "such as 0:01:30"),
        ("--end", "soon", "such as 0:01:30"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, option: str, text: str, said: str) -> None:
    done = run("plan", clips.cfr(tmp_path / "in.mp4", frames=1), option, text)
    assert done.returncode == 2
    assert f"{option} {text}" in done.stderr
    assert said in done.stderr
