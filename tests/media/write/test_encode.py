"""The encoding of segments: times, bytes, pixels and color; and NVENC where there is one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from srstream.config import EncodeConfig, JobConfig, SourceConfig
from srstream.errors import EncodeError, RefusedError
from srstream.frame import ColorSpec, Frame, PlaneLayout
from srstream.media.layouts import extract_planes
from srstream.media.read.probe import probe
from srstream.media.types import HdrMetadata, OutputVideo, SegmentFile
from srstream.media.write import codecs, encoder_choice
from srstream.media.write.encode import SegmentEncoder, plan_output
from tests.support.encode import YUV420, moving_frame, output_video, plan, source_info

MASTERING = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"


def encode(path: Path, video: OutputVideo, pts: list[int]) -> SegmentFile:
    encoder = SegmentEncoder(path, video, threads=2, deterministic=True)
    for number, moment in enumerate(pts):
        encoder.push(moving_frame(video, number, moment))
    return encoder.close()


# Times


@pytest.mark.parametrize(
    "time_base",
    [
        Fraction(1, 1000),
        Fraction(1, 90000),
        Fraction(1, 12800),
        Fraction(1001, 30000),
        Fraction(1, 1_000_000),
    ],
)
@pytest.mark.parametrize("codec", ["libx264", "libx265", "ffv1"])
def test_times_are_exact_in_any_time_base(tmp_path: Path, codec: str, time_base: Fraction) -> None:
    rng = np.random.default_rng(3)
    step = max(int(Fraction(1, 25) / time_base), 1)
    pts = list(np.cumsum(rng.integers(1, 3 * step, size=14)))
    pts = [int(p) - 10**6 for p in pts]
    config = JobConfig(encode=EncodeConfig(codec=codec))
    video = replace(
        plan(source_info(time_base=time_base), Path("o.mkv"), config).video, width=64, height=48
    )
    segment = encode(tmp_path / "s.part", video, pts)
    assert segment.pts == tuple(pts)
    with av.open(str(segment.path)) as container:
        stream = container.streams.video[0]
        packets = [p for p in container.demux(stream) if p.size]
        found = sorted(p.pts * Fraction(p.time_base) for p in packets)
        assert found == [(p - pts[0]) * time_base for p in pts]
    with av.open(str(segment.path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(pts)


def test_b_frames_are_on(tmp_path: Path) -> None:
    segment = encode(tmp_path / "s.part", output_video(), list(range(0, 512 * 12, 512)))
    with av.open(str(segment.path)) as container:
        order = [p.pts for p in container.demux(video=0) if p.size]
    assert order != sorted(order)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "ffv1"])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 5])
def test_short_segments(tmp_path: Path, codec: str, num_frames: int) -> None:
    """x265 leaves the decode times of so few frames uninitialised."""
    config = JobConfig(encode=EncodeConfig(codec=codec))
    video = replace(plan(source_info(), Path("o.mkv"), config).video, width=64, height=64)
    for attempt in range(3):
        pts = [512 * n for n in range(num_frames)]
        segment = encode(tmp_path / f"{attempt}.part", video, pts)
        with av.open(str(segment.path)) as container:
            assert [f.pts * Fraction(f.time_base) for f in container.decode(video=0)] == [
                p * video.time_base for p in pts
            ]


def test_one_frame(tmp_path: Path) -> None:
    segment = encode(tmp_path / "s.part", output_video(), [77])
    assert segment.pts == (77,)
    assert segment.last_duration == 512


# Bytes and errors


@pytest.mark.parametrize("codec", ["libx264", "libx265", "ffv1"])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, codec: str) -> None:
    config = JobConfig(encode=EncodeConfig(codec=codec))
    video = replace(plan(source_info(), Path("o.mkv"), config).video, width=64, height=48)
    digests = {
        hashlib.sha256(
            encode(
                tmp_path / f"{n}.part", video, [start + 512 * i for i in range(8)]
            ).path.read_bytes()
        ).hexdigest()
        for n, start in enumerate((0, 0, 10**9))
    }
    assert len(digests) == 1


def test_abandon_leaves_nothing(tmp_path: Path) -> None:
    encoder = SegmentEncoder(tmp_path / "s.part", output_video())
    encoder.push(moving_frame(output_video(), 0, 0))
    encoder.abandon()
    encoder.abandon()
    assert list(tmp_path.iterdir()) == []


def test_frames_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    video = output_video()
    encoder = SegmentEncoder(tmp_path / "s.part", video)
    encoder.push(moving_frame(video, 0, 100))
    with pytest.raises(EncodeError, match="came after"):
        encoder.push(moving_frame(video, 1, 100))
    with pytest.raises(EncodeError, match="32x48"):
        encoder.push(moving_frame(replace(video, width=32), 1, 200))
    encoder.abandon()
    with pytest.raises(EncodeError, match="without a frame"):
        SegmentEncoder(tmp_path / "t.part", video).close()


# Pixels and color

LAYOUTS = [
    PlaneLayout("yuv", 8, 1, 1),
    PlaneLayout("yuv", 8, 1, 0),
    PlaneLayout("yuv", 8, 0, 0),
    PlaneLayout("yuv", 10, 1, 1),
    PlaneLayout("yuv", 10, 0, 0),
    PlaneLayout("yuv", 12, 1, 1),
    PlaneLayout("yuv", 12, 0, 0),
    PlaneLayout("rgb", 12),
    PlaneLayout("yuv", 16, 0, 0),
    PlaneLayout("gray", 8),
    PlaneLayout("gray", 10),
    PlaneLayout("gray", 16),
    PlaneLayout("rgb", 8),
    PlaneLayout("rgb", 10),
    PlaneLayout("rgb", 16),
    PlaneLayout("yuv", 8, 1, 1, has_alpha=True),
    PlaneLayout("yuv", 10, 0, 0, has_alpha=True),
    PlaneLayout("rgb", 8, has_alpha=True),
    PlaneLayout("gray", 8, has_alpha=True),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_pixels_of_every_layout_come_back(tmp_path: Path, layout: PlaneLayout) -> None:
    """Within 1 level of 8 bits on average, at the defaults, after 4x downscaling."""
    config = JobConfig(encode=EncodeConfig(chroma="keep"))
    output = plan(source_info("in.mkv", "matroska,webm", layout), config=config)
    assert output.losses == ()
    video = replace(output.video, width=128, height=96)
    assert video.layout == layout
    segment = encode(tmp_path / "s.part", video, [0, 512, 1024])
    with av.open(str(segment.path)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 3
    for number, picture in enumerate(frames):
        found, planes = extract_planes(picture, with_alpha=True)
        assert found.bits == layout.bits
        wanted = moving_frame(video, number, 0).planes
        for index, plane in enumerate(wanted):
            difference = planes[index].astype(np.float32) - plane.astype(np.float32)
            rows, columns = difference.shape
            small = cv2.resize(difference, (columns // 4, rows // 4), interpolation=cv2.INTER_AREA)
            error = np.abs(small).mean()
            assert error / (1 << (layout.bits - 8)) <= 1.0, (index, error)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "ffv1"])
def test_colour_is_marked(tmp_path: Path, codec: str) -> None:
    color = ColorSpec(primaries=6, transfer=6, matrix=6, full_range=True, chroma_location=3)
    config = JobConfig(encode=EncodeConfig(codec=codec))
    info = source_info("in.mkv", "matroska,webm", color=color, sample_aspect_ratio=Fraction(4, 3))
    video = replace(plan(info, config=config).video, width=64, height=64)
    segment = encode(tmp_path / "s.mp4", video, [0, 512])
    found = probe(segment.path, SourceConfig()).video
    assert replace(found.color, chroma_location=3) == color
    if codec in ("libx264", "libx265"):
        assert found.color.chroma_location == 3
    assert found.sample_aspect_ratio == Fraction(4, 3)


def test_hdr10_metadata_is_in_the_stream(tmp_path: Path) -> None:
    hdr = HdrMetadata(MASTERING, (1000, 400))
    info = source_info(
        layout=PlaneLayout("yuv", 10, 1, 1), color=ColorSpec(9, 16, 9, False, 1), hdr=hdr
    )
    output = plan(info)
    assert output.video.codec == "libx265"
    video = replace(output.video, width=64, height=48)
    segment = encode(tmp_path / "s.part", video, [0, 512, 1024])
    found = probe(segment.path, SourceConfig()).video
    assert found.hdr == hdr
    assert (found.color.primaries, found.color.transfer, found.color.matrix) == (9, 16, 9)
    assert found.layout.bits == 10


NO_NVENC = "h264_nvenc cannot be opened on this machine (no NVIDIA driver or no GPU with NVENC)"


@pytest.fixture
def has_no_nvenc() -> None:
    if codecs.nvenc_fault("h264_nvenc") is None:
        pytest.skip("NVENC works here")


@pytest.mark.usefixtures("has_no_nvenc")
def test_nvenc_without_a_driver_is_refused_where_it_was_asked_for() -> None:
    config = JobConfig(encode=EncodeConfig(codec="h264_nvenc"))
    with pytest.raises(RefusedError) as caught:
        plan_output(source_info(), config, Path("/nowhere/out.mp4"), (640, 480))
    assert str(caught.value) == f"{NO_NVENC}; use --codec auto or libx264."


@pytest.mark.usefixtures("has_no_nvenc")
def test_auto_on_a_gpu_without_nvenc_falls_back_and_says_so() -> None:
    """A100 and H100 have none."""
    plan = plan_output(source_info(), JobConfig(), Path("/x/out.mp4"), (640, 480), on_gpu=True)
    assert plan.video.codec == "libx264"
    assert f"Encoded with libx264: {NO_NVENC}." in plan.notes
    plan = plan_output(source_info(), JobConfig(), Path("/x/out.mp4"), (640, 480))
    assert not any("nvenc" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("layout", "codec", "pix_fmt"),
    [
        (YUV420, "h264_nvenc", "yuv420p"),
        (PlaneLayout("yuv", 10, 1, 1), "libx265", "yuv420p10le"),
    ],
)
def test_auto_on_a_gpu_takes_nvenc_where_it_loses_nothing(
    layout: PlaneLayout, codec: str, pix_fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_choice, "nvenc_fault", lambda name: None)
    video = replace(source_info().video, layout=layout)
    choice = encoder_choice.choose_encoder(video, EncodeConfig(), None, (1920, 1080), on_gpu=True)
    assert (choice.codec, choice.pix_fmt, choice.layout) == (codec, pix_fmt, layout)
    assert not choice.losses
    config = EncodeConfig(crf=22)
    options = codecs.encoder_options(choice.codec, choice.layout, config, HdrMetadata())
    assert options.get("cq", options.get("crf")) == "22"


@pytest.mark.needs_cuda
def test_nvenc_encodes_where_it_opens(tmp_path: Path) -> None:
    fault = codecs.nvenc_fault("h264_nvenc")
    if fault is not None:
        pytest.skip(fault)
    plan = plan_output(source_info(), JobConfig(), tmp_path / "out.mp4", (640, 480), on_gpu=True)
    encoder = SegmentEncoder(tmp_path / "a.mp4", plan.video)
    planes = [np.full(s, 90, np.uint8) for s in ((480, 640), (240, 320), (240, 320))]
    time_base = plan.video.time_base
    for pts in range(5):
        encoder.push(Frame(tuple(planes), YUV420, 640, 480, 512 * pts, time_base))
    encoder.close()
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 5
    assert abs(extract_planes(frames[2])[1][0].astype(int) - 90).max() <= 2
