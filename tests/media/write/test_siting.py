"""Where chroma lies: kept where a codec can state it, announced where not, never a reason to fail.

What an output says is read by ffprobe.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from srstream.config import EncodeConfig, JobConfig
from srstream.frame import PlaneLayout
from srstream.media.siting import same_siting
from srstream.media.verify import verify
from tests.support import clips, jobs
from tests.support.outputs import make_output

YUV420, YUV422 = PlaneLayout("yuv", 8, 1, 1), PlaneLayout("yuv", 8, 1, 0)


def stated(path: Path) -> str:
    """What ffprobe says of the first video's chroma."""
    return subprocess.run(
        ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries",
         "stream=chroma_location", "-of", "csv=p=0", path],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip


def source_with(path: Path, location: str, pix_fmt: str) -> Path:
    """FFV1 in Matroska, whose ChromaSiting elements state the place."""
    options = {"chroma_sample_location": location}
    return clips.write_clip(path, 4, codec="ffv1", pix_fmt=pix_fmt, options=options)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("location", ["left", "center", "topleft", "top"])
def test_siting_of_420_is_kept(tmp_path: Path, codec: str, location: str) -> None:
    source = source_with(tmp_path / "in.mkv", location, "yuv420p")
    config = JobConfig(encode=EncodeConfig(codec=codec))
    made = make_output(source, tmp_path / "out.mp4", config=config)
    assert stated(made.path) == location
    assert not [loss for loss in made.plan.losses if "chroma" in loss]
    assert verify(source, made.path).ok


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("pix_fmt", ["yuv422p", "yuv444p", "yuv411p", "yuv422p10le"])
@pytest.mark.parametrize("location", ["left", "center", "topleft"])
def test_other_formats_are_verified_whatever_they_state(
    tmp_path: Path, ending: str, pix_fmt: str, location: str
) -> None:
    source = source_with(tmp_path / "in.mkv", location, pix_fmt)
    config = JobConfig(encode=EncodeConfig(chroma="keep"))
    made = make_output(source, tmp_path / f"out{ending}", config=config)
    # Left is what players take 4:2:2 for; 4:4:4 has no place to speak of.
    moved = location == "center" and pix_fmt != "yuv444p"
    said = [note for note in made.plan.notes if "chroma is moved from center to left" in note]
    assert bool(said) == moved
    if not moved:  # The nearest neighbor of `make_output` moves nothing.
        assert verify(source, made.path).problems == []


@pytest.mark.parametrize("scale", ["1", "2"])
def test_chroma_is_moved_where_its_place_cannot_be_stated(tmp_path: Path, scale: str) -> None:
    """By the real enhancer, measured by the witness, which would find it moved by 0.25 columns."""
    source = source_with(tmp_path / "in.mkv", "center", "yuv422p")
    options = ["--scale", scale, "--chroma", "keep"]
    done = jobs.run("enhance", source, "-o", tmp_path / "out.mp4", *options)
    assert done.returncode == 0, done.stderr
    assert "4:2:2 chroma is moved from center to left" in " ".join(done.stderr.split())
    assert stated(tmp_path / "out.mp4") == "left"


def test_camera_files(tmp_path: Path) -> None:
    """MJPEG with 4:2:2, whose chroma JFIF puts in the middle, and MPEG-2 4:2:2."""
    for name, codec, pix_fmt in (
        ("in.avi", "mjpeg", "yuvj422p"),
        ("in.ts", "mpeg2video", "yuv422p"),
    ):
        source = clips.write_clip(tmp_path / name, 4, codec=codec, pix_fmt=pix_fmt)
        done = jobs.run("enhance", source, "-o", tmp_path / f"{name}.mp4", "--scale", "1")
        assert done.returncode == 0, done.stderr


def test_an_encoder_that_cannot_state_it_is_announced(tmp_path: Path) -> None:
    source = source_with(tmp_path / "in.mkv", "center", "yuv420p")
    config = JobConfig(encode=EncodeConfig(codec="ffv1"))
    made = make_output(source, tmp_path / "out.mkv", config=config)
    assert made.plan.video.color.chroma_location == 1
    assert any("chroma is moved from center to left" in note for note in made.plan.notes)


def test_rows_do_not_count_where_only_columns_are_halved() -> None:
    assert same_siting(3, 1, YUV422)
    assert not same_siting(3, 1, YUV420)
    assert not same_siting(2, 1, YUV422)
    assert same_siting(2, 1, PlaneLayout("yuv", 8, 0, 0))
    assert same_siting(0, 1, YUV420)
    assert not same_siting(1, 0, YUV420)
