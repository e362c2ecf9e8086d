"""Parts that did not change are not computed again, and the result is the same."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import srstream
from srstream.config import EngineConfig, JobConfig, ModelConfig, ReuseConfig
from srstream.engines.openvino.engine import OpenVinoEngine
from srstream.engines.tiles import Rectangle
from srstream.enhancer.enhancer import Enhancer
from srstream.enhancer.reuse import RECTANGLE_PIXELS, CellGrid, Memory, ResampledPlane
from srstream.frame import ColorSpec, PlaneLayout
from srstream.models.table import ModelSpec, ResidualGenerator, Stack, model_spec, weights_path
from srstream.resampling import Sampling, resample_plane
from tests.models.test_registry import luma_of
from tests.support import clips
from tests.support.enhancer import YUV420, frame_of, output, video
from tests.support.networks import model_network

WIDTH, HEIGHT = 96, 72
SPECS = {
    "fast": model_spec("fast"),
    "yuv420": ModelSpec("balanced", "yuv420", Stack((6, 8, 6))),
    "rgb": ModelSpec("srgan", "rgb", ResidualGenerator(channels=8, num_blocks=1)),
}


@pytest.fixture(scope="module", params=SPECS)
def engine(request, tmp_path_factory):
    folder, spec = tmp_path_factory.mktemp("reuse"), SPECS[request.param]
    path = weights_path("fast") if request.param == "fast" else folder / "made.onnx"
    if request.param != "fast":
        model_network(path, spec)
    config = EngineConfig(threads=1)
    return OpenVinoEngine(config, ModelConfig(weights=str(path)), spec, cache_dir=folder / "cache")


# --- geometry ------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_cover_holds_every_changed_cell_and_costs_less_than_the_whole(data):
    height, width = data.draw(st.integers(9, 400)), data.draw(st.integers(9, 400))
    grid = CellGrid(height, width, data.draw(st.sampled_from([1, 8, 40])))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    difference = np.zeros((height, width), np.bool_)
    for _ in range(data.draw(st.integers(0, 6))):
        top, left = random.integers(height), random.integers(width)
        difference[top : top + random.integers(1, 60), left : left + random.integers(1, 60)] = True
    changed = grid.changed(difference)
    cover = grid.cover(changed, max_pixels=10**9)
    if cover is None:
        assert changed.any()
        return
    held = np.zeros_like(changed)
    side, cost = grid.side, 0
    for r in cover:
        assert 0 <= r.top < r.bottom <= height
        assert 0 <= r.left < r.right <= width
        held[r.top // side : -(-r.bottom // side), r.left // side : -(-r.right // side)] = True
        cost += r.window(height, width, grid.halo).num_pixels + RECTANGLE_PIXELS
    assert held[changed].all()
    assert cost <= height * width + RECTANGLE_PIXELS


@settings(max_examples=100, deadline=None)
@given(
    st.integers(9, 90),
    st.integers(9, 90),
    st.integers(1, 12),
    st.integers(0, 89),
    st.integers(0, 89),
)
def test_a_pixel_changes_exactly_the_cells_that_see_it(height, width, halo, row, column):
    row, column = row % height, column % width
    grid = CellGrid(height, width, halo)
    difference = np.zeros((height, width), np.bool_)
    difference[row, column] = True
    changed = grid.changed(difference)
    for i, j in np.ndindex(changed.shape):
        top, left = i * grid.side, j * grid.side
        bottom, right = min(top + grid.side, height), min(left + grid.side, width)
        seen = Rectangle(top, left, bottom, right).window(height, width, halo)
        inside = seen.top <= row < seen.bottom and seen.left <= column < seen.right
        # A cell that the edge cuts short reaches no farther than a whole cell would.
        assert changed[i, j] or not inside


def test_large_rectangles_are_split_to_what_an_engine_may_be_given():
    grid = CellGrid(400, 400, 8)
    difference = np.zeros((400, 400), np.bool_)
    difference[40:300, 40:300] = True
    cover = grid.cover(grid.changed(difference), max_pixels=100 * 100)
    assert len(cover) > 4
    assert all(r.window(400, 400, 8).num_pixels <= 100 * 100 for r in cover)
    assert CellGrid(2160, 3840, 8).side > 8


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_plane_whose_rows_changed_is_resampled_to_the_same_bits(data):
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 30))
    factor = data.draw(st.sampled_from([1, 2, 3, 4, 2.5]))
    shape = max(1, int(height * factor)), max(1, int(width * factor))
    shift = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    rows = Sampling.between(2 * height, 2 * shape[0], stride_in=2, shift_in=shift, stride_out=2)
    columns = Sampling.between(2 * width, 2 * shape[1], stride_in=2, shift_in=shift, stride_out=2)
    memory = ResampledPlane()
    random = np.random.default_rng(height * width)
    plane = random.integers(0, 1024, (height, width), dtype=np.uint16)
    for _ in range(4):
        made = memory.resample(plane, shape, rows, columns, 1023)
        assert np.array_equal(made, resample_plane(plane, shape, rows, columns, 1023))
        before = made.copy()
        plane = plane.copy()
        first = data.draw(st.integers(0, height - 1))
        last = min(height, first + data.draw(st.integers(0, 4)))
        plane[first:last] ^= random.integers(0, 2, (last - first, width), dtype=np.uint16)
        memory.resample(plane, shape, rows, columns, 1023)
        assert np.array_equal(made, before), "what was handed out was written to"


def test_a_plane_that_is_the_same_is_not_resampled_again():
    plane = np.arange(40, dtype=np.uint8).reshape(5, 8)
    memory, how = ResampledPlane(), ((10, 16), Sampling(0.5, -0.25), Sampling(0.5, -0.25), 255)
    made = memory.resample(plane, *how)
    assert memory.resample(plane.copy(), *how) is made
    assert memory.resample(plane, (20, 32), *how[1:]).shape == (20, 32)


def test_with_a_threshold_errors_never_add_up():
    grid = CellGrid(32, 32, 4)
    memory = Memory(grid, threshold=2)
    plane = np.full((32, 32), 100, np.uint8)
    assert memory.changed([plane]) is None
    memory.keep([plane], None)
    computed = 0
    for level in range(101, 113):  # a slow fade, with every frame within 1 of the last one
        plane = np.full((32, 32), level, np.uint8)
        changed = memory.changed([plane])
        assert changed.all() == changed.any()
        if changed.all():
            memory.keep([plane], [Rectangle(0, 0, 32, 32)])
            computed += 1
        else:
            memory.keep([plane], [])
    assert computed == 4


# --- frames --------------------------------------------------------------------------------


def scenes(layout=YUV420):
    """Adversarial scenes: changes at cell borders, at the halo's edge, nowhere and everywhere."""
    random = np.random.default_rng(3)

    def new():
        planes = [
            random.integers(0, 1 << layout.bits, layout.plane_shape(i, WIDTH, HEIGHT))
            for i in range(layout.num_planes)
        ]
        return [cv2.GaussianBlur(p.astype(layout.dtype), (5, 5), 0) for p in planes]

    planes = new()
    yield planes
    yield planes  # a duplicate
    for row, column in [(0, 0), (40, 40), (39, 48), (71, 95), (8, 95), (63, 7)]:
        planes = [plane.copy() for plane in planes]
        planes[0][row, column] ^= 1
        yield planes
    planes = [plane.copy() for plane in planes]
    planes[1][10, 10] ^= 3  # a change in chroma alone
    yield planes
    yield new()  # a cut
    planes = new()
    yield planes
    for step in range(3):  # something that moves
        planes = [plane.copy() for plane in planes]
        planes[0][20:36, 8 * step : 8 * step + 20] = 200
        planes[2][10:18, 4 * step : 4 * step + 10] = 90
        yield planes
    yield planes
    yield planes


def area(engine):
    """Pixels that the engine receives for a whole frame, which is extended at its edges."""
    border = engine.capabilities.border
    return (WIDTH + 2 * border) * (HEIGHT + 2 * border)


def run(engine, frames, reuse, layout=YUV420, **options):
    enhancer = Enhancer(engine, video(layout, width=WIDTH, height=HEIGHT),
                        output(layout, width=4 * WIDTH, height=4 * HEIGHT),
                        reuse=reuse, **options)  # fmt: skip
    made = []
    for frame in frames:
        made += enhancer.push(frame)
    made += enhancer.drain()
    counts = enhancer.num_pixels, enhancer.num_pixels_computed
    enhancer.close()
    return made, counts


def frames_of(planes_of_frames, layout=YUV420):
    return [frame_of(planes, layout, pts=n) for n, planes in enumerate(planes_of_frames)]


def same(made, expected):
    assert [frame.pts for frame in made] == [frame.pts for frame in expected]
    for a, b in zip(made, expected, strict=True):
        assert a.color == b.color
        assert all(map(np.array_equal, a.planes, b.planes))


@pytest.mark.parametrize(
    "layout",
    [YUV420, PlaneLayout("yuv", 10, 1, 1), PlaneLayout("yuv", 8, 1, 1, has_alpha=True)],
    ids=["8 bits", "10 bits", "alpha"],
)
def test_the_result_is_the_same_as_without(engine, layout):
    frames = frames_of(scenes(layout), layout)
    expected, (whole, computed) = run(engine, frames, ReuseConfig(enabled=False), layout)
    assert computed >= whole
    made, (whole, computed) = run(engine, frames, ReuseConfig(), layout)
    same(made, expected)
    share = 0.75 if engine.capabilities.takes_any_shape else 0.95
    assert computed < share * whole


def test_tiles_of_a_large_frame_are_reused_one_by_one(engine, monkeypatch):
    monkeypatch.setattr("srstream.engines.tiles.PREFERRED_TILE_PIXELS", 48 * 48)
    frames = frames_of(scenes())
    expected, _ = run(engine, frames, ReuseConfig(enabled=False))
    made, (whole, computed) = run(engine, frames, ReuseConfig())
    same(made, expected)
    assert computed < 1.1 * whole


def test_a_change_of_size_and_of_layout_forgets(engine):
    first = list(scenes())[:3]
    small = [[plane[: len(plane) // 2].copy() for plane in planes] for planes in first]
    frames = frames_of([*first, *small, *first])
    expected, _ = run(engine, frames, ReuseConfig(enabled=False))
    made, _ = run(engine, frames, ReuseConfig())
    same(made, expected)


def test_rgb_frames_and_color_changes_are_told_apart(engine):
    layout = PlaneLayout("rgb", 8)
    random = np.random.default_rng(0)
    planes = [random.integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8) for _ in range(3)]
    color = ColorSpec(1, 1, 0, True, None)
    frames = [frame_of(planes, layout, color, pts=n) for n in range(3)]
    planes = [plane.copy() for plane in planes]
    planes[2][50, 50] ^= 64
    frames.append(frame_of(planes, layout, color, pts=3))
    expected, _ = run(engine, frames, ReuseConfig(enabled=False), layout)
    made, _ = run(engine, frames, ReuseConfig(), layout)
    same(made, expected)
    yuv = frames_of(list(scenes())[:1] * 2)
    full = replace(yuv[1], color=replace(yuv[1].color, full_range=True))
    expected, _ = run(engine, [yuv[0], full], ReuseConfig(enabled=False))
    same(run(engine, [yuv[0], full], ReuseConfig())[0], expected)


def test_nothing_is_computed_of_duplicates(engine):
    frames = frames_of([next(scenes())] * 20)
    _, (whole, computed) = run(engine, frames, ReuseConfig())
    assert whole == 20 * area(engine)
    assert computed == area(engine)


def test_forgetting_makes_the_next_frame_whole(engine):
    planes = next(scenes())
    enhancer = Enhancer(engine, video(YUV420, width=WIDTH, height=HEIGHT),
                        output(YUV420, width=4 * WIDTH, height=4 * HEIGHT),
                        reuse=ReuseConfig())  # fmt: skip
    for n in range(4):
        enhancer.push(frame_of(planes, YUV420, pts=n))
        enhancer.forget()
    assert len(enhancer.drain()) <= 4
    assert enhancer.num_pixels_computed == 4 * area(engine)
    enhancer.close()


def test_a_threshold_bounds_the_error_and_saves_work(engine):
    random = np.random.default_rng(5)
    still = next(scenes())
    noisy = [
        [np.clip(p.astype(int) + random.integers(0, 2, p.shape), 0, 255).astype(np.uint8)
         for p in still]
        for _ in range(6)
    ]  # fmt: skip
    frames = frames_of(noisy)
    exact, (whole, computed) = run(engine, frames, ReuseConfig())
    assert computed >= 0.9 * whole
    coarse, (_, computed) = run(engine, frames, ReuseConfig(threshold=2))
    assert computed <= 0.3 * whole
    apart = np.abs(np.stack([f.planes[0] for f in exact]).astype(int)
                   - np.stack([f.planes[0] for f in coarse]))  # fmt: skip
    assert apart.mean() < 2.0


# --- whole jobs ----------------------------------------------------------------------------


def test_a_job_makes_the_same_video_with_and_without(tmp_path):
    source = clips.cfr(tmp_path / "in.mp4", frames=10)
    made = {}
    for enabled in (True, False):
        config = JobConfig(encode={"codec": "ffv1"}, reuse={"enabled": enabled})
        path = tmp_path / f"{enabled}.mkv"
        srstream.enhance(source, path, config=config)
        made[enabled] = luma_of(path)
    assert np.array_equal(made[True], made[False])
    assert Fraction(len(made[True])) == 10
