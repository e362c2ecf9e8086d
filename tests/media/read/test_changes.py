"""Videos whose second part is described otherwise: shape and colors stay those that were recorded.

The parts are flat patches, made into codes here after ITU-T H.273 and encoded without loss; what
comes out is read back by the same equations, with the description of the output.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext

import srstream
from srstream.config import EngineConfig, ModelConfig, ReuseConfig, SourceConfig
from srstream.engines.contract import Engine
from srstream.engines.openvino.engine import OpenVinoEngine
from srstream.enhancer.enhancer import Enhancer
from srstream.errors import MediaError
from srstream.frame import ColorSpec, Frame, FrameForm, PlaneLayout, decode_frame, encode_frame
from srstream.media.read.decode import Decoder
from srstream.media.read.decode_report import MAX_NOTES
from srstream.media.read.probe import probe
from srstream.media.types import VideoInfo
from srstream.models.table import ModelSpec, Stack, model_spec
from tests.support.networks import nearest_network, repeating_network

SOURCE = SourceConfig()
RATE = Fraction(1, 25)
WIDTH, HEIGHT, SIDE = 64, 48, 16
NUM_FRAMES = 10
"""Of each part."""

WEIGHTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""KR and KB of H.273's table 4."""

PATCHES = np.random.default_rng(1).integers(40, 216, (HEIGHT // SIDE, WIDTH // SIDE, 3))


@dataclass(frozen=True)
class Part:
    """How a part of a video is encoded."""

    aspect: Fraction = Fraction(1)
    matrix: int = 1
    full: bool = False
    pix_fmt: str = "yuv420p"
    primaries: int = 1


def _to_yuv(rgb: npt.NDArray[Any], matrix: int, full: bool) -> npt.NDArray[Any]:
    kr, kb = WEIGHTS[matrix]
    red, green, blue = (rgb[..., n] / 255 for n in range(3))
    y = kr * red + (1 - kr - kb) * green + kb * blue
    u, v = (blue - y) / (2 - 2 * kb), (red - y) / (2 - 2 * kr)
    if full:
        return np.stack([255 * y, 255 * u + 128, 255 * v + 128])
    return np.stack([219 * y + 16, 224 * u + 128, 224 * v + 128])


def _to_rgb(codes: npt.NDArray[Any], matrix: int, full: bool) -> npt.NDArray[Any]:
    kr, kb = WEIGHTS[matrix]
    y, u, v = codes.astype(float)
    y, u, v = (
        (y / 255, (u - 128) / 255, (v - 128) / 255)
        if full
        else ((y - 16) / 219, (u - 128) / 224, (v - 128) / 224)
    )
    red, blue = y + (2 - 2 * kr) * v, y + (2 - 2 * kb) * u
    return 255 * np.stack([red, (y - kr * red - kb * blue) / (1 - kr - kb), blue], axis=-1)


def _encoded(part: Part, first: int, codec: str) -> list[Packet[Stream]]:
    context = cast(VideoCodecContext, av.CodecContext.create(codec, "w"))
    context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, part.pix_fmt
    context.time_base, context.framerate = RATE, Fraction(25)
    context.sample_aspect_ratio = part.aspect
    context.color_primaries, context.colorspace = part.primaries, part.matrix
    context.color_range = 2 if part.full else 1
    context.gop_size, context.thread_count = 5, 1
    context.options = {"x264-params": "qp=0:bframes=2"} if codec == "libx264" else {"qscale": "1"}
    if codec == "mpeg2video":
        context.max_b_frames = 2
    codes = np.rint(_to_yuv(PATCHES, part.matrix, part.full)).astype(np.uint8)
    packets = []
    for n in range(NUM_FRAMES):
        frame = av.VideoFrame(WIDTH, HEIGHT, part.pix_fmt)
        for plane, values in zip(frame.planes, codes, strict=True):
            side_x, side_y = SIDE * plane.width // WIDTH, SIDE * plane.height // HEIGHT
            rows = np.zeros((plane.height, plane.line_size), np.uint8)
            rows[:, : plane.width] = values.repeat(side_y, axis=0).repeat(side_x, axis=1)
            plane.update(rows)
        frame.pts, frame.time_base = first + n, RATE
        frame.color_range, frame.colorspace = 2 if part.full else 1, part.matrix
        frame.color_primaries = part.primaries
        packets += context.encode(frame)
    return packets + context.encode(None)


def _write(path: Path, parts: Sequence[Part], codec: str = "libx264") -> Path:
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_mux_stream({"libx264": "h264"}.get(codec, codec))
        stream.time_base = RATE
        for number, part in enumerate(parts):
            for packet in _encoded(part, number * NUM_FRAMES, codec):
                packet.stream = stream
                container.mux(packet)
    return path


def _decoded(path: Path, start_pts: int | None = None) -> tuple[VideoInfo, list[Frame], list[str]]:
    video = probe(path, SOURCE).video
    decoder = Decoder(path, video, SOURCE, start_pts=start_pts)
    frames = list(decoder.frames())
    decoder.close()
    return video, frames, decoder.report.notes


@pytest.fixture(scope="module", params=["luma", "yuv420", "rgb"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Of each color form a network that repeats its input."""
    folder, path = tmp_path_factory.mktemp(request.param), "made.onnx"
    if request.param == "luma":
        weights, spec = nearest_network(folder / path), model_spec("fast")
    else:
        spec = ModelSpec("made", request.param, Stack((6, 6)))
        weights = repeating_network(folder / path, spec)
    return OpenVinoEngine(
        EngineConfig(threads=1), ModelConfig(weights=str(weights)), spec, cache_dir=folder / "cache"
    )


def _enhanced(engine: Engine, video: VideoInfo, frames: Sequence[Frame]) -> list[Frame]:
    output = FrameForm(4 * WIDTH, 4 * HEIGHT, PlaneLayout("yuv", 8, 1, 1), video.color)
    enhancer = Enhancer(engine, video.form, output, reuse=ReuseConfig())
    made = [done for frame in frames for done in enhancer.push(frame)] + enhancer.drain()
    enhancer.close()
    assert all(frame.color == video.color for frame in made)
    assert all(frame.sample_aspect_ratio is None for frame in made)
    return made


def _patch_colors(frame: Frame, part: Part, area: tuple[int, int, int, int]) -> npt.NDArray[Any]:
    """RGB in the middle of each patch of a picture that fills `area` (left, top, width, height)."""
    left, top, width, height = area
    rows = [round(top + (n + 0.5) * height / PATCHES.shape[0]) for n in range(PATCHES.shape[0])]
    columns = [round(left + (n + 0.5) * width / PATCHES.shape[1]) for n in range(PATCHES.shape[1])]
    codes = np.stack(
        [
            plane[
                np.ix_(
                    [r * plane.shape[0] // frame.height for r in rows],
                    [c * plane.shape[1] // frame.width for c in columns],
                )
            ]
            for plane in frame.planes
        ]
    )
    return _to_rgb(codes, part.matrix, part.full)


WHOLE = (0, 0, 4 * WIDTH, 4 * HEIGHT)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Part(), Part(full=True)),
        (Part(full=True), Part()),
        (Part(matrix=1), Part(matrix=6)),
        (Part(matrix=6), Part(matrix=1, full=True)),
        (Part(matrix=9, full=True), Part(matrix=6)),
        (Part(matrix=1), Part(matrix=6, pix_fmt="yuv444p")),
        (Part(), Part(pix_fmt="yuv422p")),
    ],
)
def test_colours_stay(tmp_path: Path, engine: Engine, first: Part, second: Part) -> None:
    video, frames, notes = _decoded(_write(tmp_path / "in.ts", [first, second, first]))
    assert len(frames) == 3 * NUM_FRAMES
    for number, frame in enumerate(_enhanced(engine, video, frames)):
        error = np.abs(_patch_colors(frame, first, WHOLE) - PATCHES)
        assert error.max() <= 3.5, number  # the codes are rounded on both sides
    seconds = [frames[n].pts_seconds for n in (NUM_FRAMES, 2 * NUM_FRAMES)]
    said = {"range": first.full != second.full, "matrix": first.matrix != second.matrix}
    said["picture"] = first.pix_fmt != second.pix_fmt
    for word, is_said in said.items():
        about = [note for note in notes if word in note]
        assert len(about) == 2 * is_said
        for note, moment in zip(about, seconds, strict=False):
            assert f"at {moment:.3f} s" in note
            assert word == "picture" or ("converted" in note) == (moment == seconds[0])


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize(
    ("shapes", "area"),
    [
        # 16:9 in 4:3: three quarters of the height, in the middle; and the other way round.
        ((Fraction(12, 11), Fraction(16, 11)), (0, 24, 256, 144)),
        ((Fraction(16, 11), Fraction(12, 11)), (32, 0, 192, 192)),
    ],
)
def test_shapes_stay(
    tmp_path: Path,
    engine: Engine,
    codec: str,
    shapes: tuple[Fraction, Fraction],
    area: tuple[int, int, int, int],
) -> None:
    if codec == "mpeg2video":  # which says the picture's shape: 4:3 and 16:9 (H.262, table 6-3)
        shapes = (shapes[0] * Fraction(11, 12), shapes[1] * Fraction(11, 12))
    parts = [Part(aspect=shape) for shape in (*shapes, shapes[0])]
    video, frames, notes = _decoded(_write(tmp_path / "in.ts", parts, codec))
    assert video.sample_aspect_ratio == shapes[0]
    aspects = [frame.sample_aspect_ratio for frame in frames]
    assert aspects == [None] * NUM_FRAMES + [shapes[1]] * NUM_FRAMES + [None] * NUM_FRAMES
    left, top, width, height = area
    for number, frame in enumerate(_enhanced(engine, video, frames)):
        is_other = number // NUM_FRAMES == 1
        colors = _patch_colors(frame, parts[0], area if is_other else WHOLE)
        assert np.abs(colors - PATCHES).max() <= (3.5 if codec == "libx264" else 8)
        if is_other:
            outside = np.ones(frame.planes[0].shape, bool)
            outside[top : top + height, left : left + width] = False
            assert (frame.planes[0][outside] == 16).all()
            assert (frame.planes[1][outside[::2, ::2]] == 128).all()
    about = [note for note in notes if "pixel aspect" in note]
    for note, first in zip(about, (NUM_FRAMES, 2 * NUM_FRAMES), strict=True):
        assert f"at {frames[first].pts_seconds:.3f} s" in note
    assert "black around" in about[0] and "black around" not in about[1]


@pytest.mark.parametrize(
    "parts",
    [
        (Part(full=True), Part()),
        (Part(matrix=6), Part(matrix=1, full=True)),
        (Part(aspect=Fraction(16, 11)), Part(aspect=Fraction(12, 11), matrix=6)),
    ],
)
def test_the_receipt_of_a_job_agrees(tmp_path: Path, parts: tuple[Part, Part]) -> None:
    path = _write(tmp_path / "in.ts", parts)
    result = srstream.enhance(path, tmp_path / "out.mp4")
    assert result.receipt is not None
    assert result.receipt.problems == []
    assert result.exit_code == 0


def test_an_excerpt_of_the_second_part_says_how_it_differs(tmp_path: Path) -> None:
    parts = [Part(), Part(aspect=Fraction(4, 3), matrix=6, full=True, primaries=6)]
    path = _write(tmp_path / "in.ts", parts)
    _, whole, _ = _decoded(path)
    start = whole[17].pts
    _, late, notes = _decoded(path, start)
    assert [(f.pts, f.color, f.sample_aspect_ratio) for f in late] == [
        (f.pts, f.color, f.sample_aspect_ratio) for f in whole[17:]
    ]
    moment = f"At {late[0].pts_seconds:.3f} s the "
    assert len(notes) == 4
    assert all(note.startswith(moment) for note in notes)
    assert any("primaries" in note and "not converted" in note for note in notes)


def test_what_the_container_says_holds_for_all(tmp_path: Path) -> None:
    """Matroska has one display size; players do not ask the pictures."""
    path = _write(
        tmp_path / "in.ts", [Part(aspect=Fraction(12, 11)), Part(aspect=Fraction(16, 11))]
    )
    with av.open(str(path)) as source, av.open(str(tmp_path / "in.mkv"), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    video, frames, _ = _decoded(tmp_path / "in.mkv")
    assert video.sample_aspect_ratio == Fraction(12, 11)
    assert all(frame.sample_aspect_ratio is None for frame in frames)


def test_notes_end(tmp_path: Path) -> None:
    """A recording that changes with every picture doesn't fill the log."""
    video, frames, _ = _decoded(_write(tmp_path / "in.ts", [Part()]))
    decoder = Decoder(tmp_path / "in.ts", video, SOURCE)
    for number in range(3 * MAX_NOTES):
        frame = replace(
            frames[0],
            pts=90000 * number,
            color=replace(frames[0].color, full_range=bool(number % 2)),
        )
        for note in decoder._descriptions.push(frame):
            decoder._say(note)
    decoder.close()
    assert len(decoder.report.notes) == MAX_NOTES + 1
    assert "not listed" in decoder.report.notes[-1]


def test_the_aspect_travels_with_the_frame() -> None:
    planes = (np.zeros((2, 2), np.uint8),)
    frame = Frame(
        planes, PlaneLayout("gray", 8), 2, 2, 0, RATE, sample_aspect_ratio=Fraction(16, 11)
    )
    again = decode_frame([bytes(part) for part in encode_frame(frame)])
    assert again.sample_aspect_ratio == Fraction(16, 11)
    assert again.color == ColorSpec()
    header, *rest = [bytes(part) for part in encode_frame(frame)]
    for wrong in ([0, 1], [1, 0], [1], "1:1", [1.5, 1], [1 << 40, 1], [-1, 1], None):
        fields = json.loads(header) | {"aspect": wrong}
        with pytest.raises(MediaError, match="header"):
            decode_frame([json.dumps(fields).encode(), *rest])
