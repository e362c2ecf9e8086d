"""Encoders by every name that people give them, with the options and the metadata they need."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from srstream.config import EncodeConfig, JobConfig
from srstream.errors import RefusedError
from srstream.frame import PlaneLayout
from srstream.media.types import HdrMetadata
from srstream.media.verify import verify
from tests.support import clips, nasty_clips
from tests.support.encode import plan, source_info
from tests.support.jobs import run
from tests.support.outputs import make_output


@pytest.mark.parametrize(
    ("called", "encoder"),
    [
        *[(name, "libx264") for name in ("h264", "AVC", "x264", "libx264", " H.264 ")],
        *[(name, "libx265") for name in ("hevc", "h265", "HEVC", "x265")],
        *[(name, "libsvtav1") for name in ("av1", "AV1", "svtav1")],
        ("vp9", "libvpx-vp9"),
        ("prores", "prores_ks"),
        ("FFV1", "ffv1"),
    ],
)
def test_an_encoder_has_one_set_of_options_whatever_it_is_called(called: str, encoder: str) -> None:
    """And one name in the fingerprint of a job, so that either name resumes it."""
    hdr = HdrMetadata("G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)")
    source = source_info(layout=PlaneLayout("yuv", 10, 1, 1), hdr=hdr)
    plans = [
        plan(source, config=JobConfig(encode=EncodeConfig(codec=name)), output=Path("o.mkv"))
        for name in (called, encoder)
    ]
    assert plans[0].video == plans[1].video
    assert plans[0].video.codec == encoder
    assert EncodeConfig(codec=called) == EncodeConfig(codec=encoder)


def test_rgb_that_is_kept_goes_to_the_encoder_that_takes_it() -> None:
    source = source_info(layout=PlaneLayout("rgb", 8))
    made = plan(source, config=JobConfig(encode=EncodeConfig(codec="h264", chroma="keep")))
    assert (made.video.codec, made.video.options["crf"]) == ("libx264rgb", "12")


COLORS = [(190, 190, 190), (190, 190, 0), (0, 190, 190), (0, 190, 0), (190, 0, 0), (0, 0, 190)]


def rgb_bars(path: Path) -> Path:
    """Bars of `COLORS`, 16 columns each, in H.264 without loss and without YUV."""
    bars = np.repeat(np.array([COLORS] * 64, np.uint8), 16, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "rgb24"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(bars, "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_rgb_becomes_what_devices_play_in_the_same_colors(tmp_path: Path, suffix: str) -> None:
    source, output = rgb_bars(tmp_path / "in.mp4"), tmp_path / f"out{suffix}"
    done = run("enhance", source, "-o", output, "--verbose")
    assert done.returncode == 0, done.stderr
    assert "RGB becomes YUV 4:2:0, which devices play" in done.stderr
    with av.open(str(output)) as container:
        frame = next(container.decode(video=0))
    assert (frame.format.name, frame.colorspace, frame.color_range) == ("yuv420p", 1, 1)
    shown = frame.to_ndarray(format="rgb24").astype(int)
    for number, color in enumerate(COLORS):
        assert np.abs(shown[128, 64 * number + 32] - color).max() <= 6, color


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("video_full_range_flag=1", "has its range squeezed"),
        ("matrix_coefficients=6", "has the colors of another matrix"),
        ("matrix_coefficients=9", "color matrix 9 does not go with primaries 2"),
        ("matrix_coefficients=2", "the output does not say its matrix"),
    ],
)
def test_yuv_of_rgb_that_is_labeled_otherwise_is_found_out(
    tmp_path: Path, label: str, said: str
) -> None:
    source, output, other = rgb_bars(tmp_path / "in.mp4"), tmp_path / "o.mp4", tmp_path / "x.mp4"
    assert run("enhance", source, "-o", output).returncode == 0
    with av.open(str(output)) as made, av.open(str(other), "w") as container:
        video = made.streams.video[0]
        stream = container.add_stream_from_template(video)
        relabel = BitStreamFilterContext(f"h264_metadata={label}", video, stream)
        for packet in made.demux(video):
            for changed in relabel.filter(packet if packet.size else None):
                changed.stream = stream
                container.mux(changed)
    receipt = verify(source, other)
    assert any(said in problem for problem in receipt.problems), receipt.problems
    assert verify(source, output).problems == []


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_every_encoder_that_can_hold_hdr_metadata_is_given_it(tmp_path: Path, codec: str) -> None:
    source = nasty_clips.hdr10(tmp_path / "in.mp4")
    config = JobConfig(encode=EncodeConfig(codec=codec))
    made = make_output(source, tmp_path / "out.mkv", config=config)
    found = first_frame_of(made.path)
    # As `HDR10_X265` says; AV1 stores them in units of 1/65536 (6.7.4 of its specification).
    exactness = 1e-4
    display, light = found["Mastering display metadata"], found["Content light level metadata"]
    wanted = {"red_x": 0.68, "green_y": 0.69, "white_point_x": 0.3127, "max_luminance": 1000.0}
    for name, value in wanted.items():
        assert float(Fraction(display[name])) == pytest.approx(value, abs=exactness)
    assert float(Fraction(display["min_luminance"])) == pytest.approx(0.005, abs=exactness)
    assert (light["max_content"], light["max_average"]) == (1000, 400)
    assert verify(source, made.path).ok


def first_frame_of(path: Path) -> dict[str, dict[str, Any]]:
    """The side data of the first frame by its type, as ffprobe has it."""
    shown = subprocess.run(
        ["ffprobe", "-v", "error", "-read_intervals", "%+#1", "-select_streams", "v",
         "-show_frames", "-of", "json", path],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return {
        data["side_data_type"]: data for data in json.loads(shown)["frames"][0]["side_data_list"]
    }


@pytest.mark.parametrize("codec", ["mpeg4", "vp8"])
def test_encoders_without_a_quality_of_their_own_are_given_one(tmp_path: Path, codec: str) -> None:
    source = clips.write_clip(tmp_path / "in.mkv", 6, noise=30, time_base=Fraction(1, 25))
    config = JobConfig(encode=EncodeConfig(codec=codec))
    made = make_output(source, tmp_path / "out.mkv", config=config)
    receipt = verify(source, made.path)
    assert receipt.ok, receipt.problems
    assert receipt.color.mean_error < 3


@pytest.mark.parametrize("codec", ["av1", "vp9", "vp8"])
def test_what_mov_takes_on_paper_only_is_refused_at_once(codec: str) -> None:
    with pytest.raises(RefusedError, match="MOV cannot carry"):
        plan(
            source_info(), config=JobConfig(encode=EncodeConfig(codec=codec)), output=Path("o.mov")
        )
