"""Whole frames on the device give what tiles and the composer's own arithmetic give."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from srstream.config import EngineConfig, ModelConfig, ReuseConfig
from srstream.engines.cuda import engine as cuda_engine
from srstream.engines.cuda import frames as cuda_frames
from srstream.engines.cuda.engine import CudaEngine
from srstream.engines.whole_frames import FrameEngine
from srstream.enhancer.enhancer import Enhancer
from srstream.errors import EngineError
from srstream.frame import ColorSpec, Frame, FrameForm, PlaneLayout
from srstream.models.table import model_spec

WIDTH, HEIGHT = 48, 36
BT709 = ColorSpec(1, 1, 1, False, 1)
I420, I420_10 = PlaneLayout("yuv", 8, 1, 1), PlaneLayout("yuv", 10, 1, 1)
I422, I444, GRAY = PlaneLayout("yuv", 8, 1, 0), PlaneLayout("yuv", 8), PlaneLayout("gray", 8)


class TilesOnly:
    """The same engine, but for whole frames."""

    def __init__(self, engine):
        self._engine = engine
        self.open_session, self.close = engine.open_session, engine.close

    @property
    def capabilities(self):
        return self._engine.capabilities


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def device(request):
    """The CPU in place of a GPU, and a GPU if there is one."""
    return torch.device(request.param)


@pytest.fixture(scope="module")
def engines(device):
    """Engines in float32, in which a CPU computes ten times as fast as in float16."""
    made = {}

    def engine(name):
        if name not in made:
            made[name] = CudaEngine(
                EngineConfig(), ModelConfig(name=name), model_spec(name), device
            )
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cuda_engine.HALF_DTYPES, "float32", torch.float32)
        yield engine


def frame_of(layout, color=BT709, size=(WIDTH, HEIGHT), seed=0, pts=0):
    """A frame of soft shapes with hard edges and noise, all codes possible."""
    random = np.random.default_rng(seed)
    planes, peak = [], (1 << layout.bits) - 1
    for index in range(layout.num_planes):
        rows, columns = layout.plane_shape(index, *size)
        y, x = np.mgrid[0:rows, 0:columns]
        soft = 0.5 + 0.3 * np.sin(x / 5 + index) * np.cos(y / 7)
        soft[rows // 3 :, columns // 2 :] += 0.2
        noisy = soft + random.normal(0, 0.05, soft.shape)
        planes.append((noisy.clip(0, 1) * peak).round().astype(layout.dtype))
    width, height = size
    return Frame(tuple(planes), layout, width, height, pts, Fraction(1, 25), color=color)


def enhanced(engine, frames, source, output, **options):
    enhancer = Enhancer(engine, source, output, **options)
    made = [done for frame in frames for done in enhancer.push(frame)] + enhancer.drain()
    sessions = list(enhancer._sessions._open.values())
    enhancer.close()
    return made, sessions, enhancer


def compare(engine, frames, source, output, **options):
    """Return the share of equal samples; no sample is off by more than a code."""
    whole, sessions, enhancer = enhanced(engine, frames, source, output, **options)
    assert all(isinstance(session, cuda_frames.RingFrames) for session in sessions)
    tiles, sessions, _ = enhanced(TilesOnly(engine), frames, source, output, **options)
    assert not any(isinstance(session, cuda_frames.RingFrames) for session in sessions)
    assert len(whole) == len(tiles) == len(frames)
    same = []
    for one, other in zip(whole, tiles, strict=True):
        assert (one.pts, one.width, one.layout, one.color) == (
            other.pts, other.width, other.layout, other.color,
        )  # fmt: skip
        for made, true in zip(one.planes, other.planes, strict=True):
            assert (made.shape, made.dtype) == (true.shape, true.dtype)
            assert np.abs(made.astype(int) - true).max() <= 1
            same.append((made == true).mean())
    assert min(same) > 0.99
    return enhancer


def forms(layout, color=BT709, out=None, out_color=None, scale=4):
    source = FrameForm(WIDTH, HEIGHT, layout, color)
    output = replace(source, layout=out or layout, color=out_color or color).scaled(scale)
    return source, output


FULL = replace(BT709, full_range=True)
TOP_LEFT = replace(BT709, chroma_location=3)


CASES = [
    (I420, BT709, None, None),
    (GRAY, ColorSpec(), I420, BT709),
    (I420, FULL, None, BT709),
    (I420_10, BT709, I420, None),
    (I420, BT709, I420_10, None),
    (I420_10, BT709, None, None),
    (I422, BT709, None, None),
    (I422, BT709, I420, None),
    (I444, BT709, I420, None),
    (I420, BT709, None, FULL),
    (I420, TOP_LEFT, None, None),
    (I420, TOP_LEFT, I444, BT709),
    (GRAY, ColorSpec(), None, None),
    (I420, BT709, GRAY, FULL),
    (I420, replace(BT709, matrix=6), None, BT709),
    (replace(I420, has_alpha=True), BT709, I420, None),
]


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *((name, case) for name in ("fast", "balanced") for case in CASES),
        *(("srgan", case) for case in CASES[:4]),  # it takes ten times as long
    ],
)
def test_whole_frames_equal_tiles_to_a_code(name, case, engines):
    layout, color, out, out_color = case
    source, output = forms(layout, color, out, out_color)
    compare(engines(name), [frame_of(layout, color)], source, output)


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("name", ["fast", "balanced"])
def test_other_sizes_are_made_on_the_device_too(name, scale, engines):
    source, output = forms(I420, scale=scale)
    compare(engines(name), [frame_of(I420)], source, output)


@pytest.mark.parametrize("size", [(30, 36), (48, 20), (7, 5), (1, 1)])
@pytest.mark.parametrize("name", ["fast", "balanced"])
def test_frames_of_another_size_are_placed_in_black(name, size, engines):
    source, output = forms(I420)
    frames = [frame_of(I420), frame_of(I420, size=size, pts=1), frame_of(I420, seed=2, pts=2)]
    compare(engines(name), frames, source, output)


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_black_has_every_depth(bits, engines):
    """Half of 16 bits is the first code that a signed one does not hold."""
    layout = PlaneLayout("yuv", bits, 1, 1)
    frames = [frame_of(layout), frame_of(layout, size=(20, 36), pts=1)]
    compare(engines("fast"), frames, *forms(layout))


ODD = [(33, 17), (1, 40), (40, 1), (3, 2)]


@pytest.mark.parametrize("size", ODD)
@pytest.mark.parametrize("chroma", [(1, 1), (2, 0), (2, 2), (0, 1)])
def test_odd_sizes_and_rare_chroma_are_made_on_the_device(size, chroma, engines):
    layout, (width, height) = PlaneLayout("yuv", 8, *chroma), size
    source = FrameForm(width, height, layout, BT709)
    compare(engines("balanced"), [frame_of(layout, size=size)], source, source.scaled(4))


def test_a_size_that_changes_with_each_frame_is_followed(engines):
    frames = [
        frame_of(I420, size=ODD[number % len(ODD)] if number % 2 else (40 + number, 30), pts=number)
        for number in range(12)
    ]
    compare(engines("fast"), frames, *forms(I420), reuse=ReuseConfig(enabled=True))


def test_an_opaque_alpha_plane_is_made_on_the_device(engines):
    layout = replace(I420, has_alpha=True)
    frame = frame_of(layout)
    opaque = replace(frame, planes=(*frame.planes[:3], np.full((HEIGHT, WIDTH), 255, np.uint8)))
    compare(engines("fast"), [opaque], *forms(layout))


def test_alpha_that_shows_and_rgb_go_in_tiles(engines):
    for layout in (replace(I420, has_alpha=True), PlaneLayout("rgb", 8)):
        _, sessions, _ = enhanced(engines("fast"), [frame_of(layout)], *forms(layout))
        assert sessions
        assert not any(isinstance(each, cuda_frames.RingFrames) for each in sessions)


@pytest.mark.parametrize("name", ["fast", "balanced"])
def test_a_frame_of_many_tiles_is_pasted_on_the_device(name, engines, monkeypatch):
    engine = engines(name)
    can = replace(engine.capabilities, preferred_tile_pixels=45 * 45)
    monkeypatch.setattr(engine, "capabilities", can)
    enhancer = compare(engine, [frame_of(I420), frame_of(I420, seed=1, pts=1)], *forms(I420))
    assert enhancer.num_pixels_computed > enhancer.num_pixels


@pytest.mark.parametrize("name", ["fast", "balanced"])
def test_only_tiles_that_changed_are_computed(name, engines, monkeypatch):
    """What is not computed is as it was; the frames are those of a run without reuse."""
    engine = engines(name)
    size = 160, 36
    can = replace(engine.capabilities, preferred_tile_pixels=60 * 60)
    monkeypatch.setattr(engine, "capabilities", can)
    source = FrameForm(*size, I420, BT709)
    still = frame_of(I420, size=size)
    frames = [still]
    for pts, (index, column) in enumerate([(0, 10), (1, 75), (2, 3), (0, 150)], start=1):
        planes = [plane.copy() for plane in frames[-1].planes]
        planes[index][8, column] ^= 64
        frames.append(replace(still, planes=tuple(planes), pts=pts))
    frames.append(replace(frames[-1], pts=len(frames)))  # a repetition
    runs = [
        enhanced(engine, frames, source, source.scaled(4), reuse=ReuseConfig(enabled=enabled))
        for enabled in (True, False)
    ]
    (reused, _, saving), (anew, _, whole) = runs
    for one, other in zip(reused, anew, strict=True):
        assert all(map(np.array_equal, one.planes, other.planes))
    assert saving.num_pixels_computed < 0.6 * whole.num_pixels_computed


def test_without_memory_for_whole_frames_they_are_made_of_tiles(engines, monkeypatch, caplog):
    engine = engines("fast")

    def without_memory(self, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cuda_frames.FrameProgram, "__init__", without_memory)
    frames = [frame_of(I420, pts=pts) for pts in range(3)]
    made, sessions, _ = enhanced(engine, frames, *forms(I420))
    assert len(made) == 3 and len(sessions) == 1
    assert caplog.text.count("no memory for frames of 48x36; they are made of tiles") == 1


def test_a_frame_that_is_too_large_goes_in_tiles(engines, monkeypatch):
    monkeypatch.setattr(CudaEngine, "max_frame_pixels", WIDTH * HEIGHT - 1)
    _, sessions, _ = enhanced(engines("fast"), [frame_of(I420)], *forms(I420))
    assert not any(isinstance(each, cuda_frames.RingFrames) for each in sessions)


def test_planes_of_another_form_are_refused(engines):
    engine = engines("fast")
    assert isinstance(engine, FrameEngine)
    enhancer = Enhancer(engine, *forms(I420))
    enhancer.push(frame_of(I420))
    (session,) = enhancer._sessions._open.values()
    with pytest.raises(EngineError, match="was given one of"):
        session.submit(frame_of(I422).planes)
    enhancer.close()
    with pytest.raises(EngineError, match="closed"):
        session.submit(frame_of(I420).planes)


def test_other_weights_serve_the_next_frame(device):
    """The graphs read the parameters where they are, so an open session takes a blend at once."""
    model = ModelConfig(name="balanced", restore=1.0)
    spec = model_spec("balanced")
    engine = CudaEngine(EngineConfig(), ModelConfig(name="balanced", restore=0.5), spec, device)
    enhancer = Enhancer(engine, *forms(I420), reuse=ReuseConfig(enabled=True))
    frame = frame_of(I420)
    first = enhancer.push(frame)
    finished, taken = enhancer.replace_weights(model)
    first += finished
    assert taken and len(first) == 1
    second = [*enhancer.push(replace(frame, pts=1)), *enhancer.drain()]
    enhancer.close()
    true, _, _ = enhanced(CudaEngine(EngineConfig(), model, spec, device), [frame], *forms(I420))
    assert all(map(np.array_equal, second[0].planes, true[0].planes))
    assert not np.array_equal(first[0].planes[0], second[0].planes[0])
