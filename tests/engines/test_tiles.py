"""Tiles cover a picture once, and their results equal that of the whole picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import TileFormat
from srstream.engines.openvino.engine import OpenVinoEngine
from srstream.engines.tiles import PREFERRED_TILE_PIXELS, TileGrid, choose_tiles
from srstream.models.table import ModelSpec, ResidualGenerator, Stack, model_spec, weights_path
from tests.support.networks import made_network, model_network

SIDES = st.integers(1, 300)


@st.composite
def grids(draw):
    halo = draw(st.integers(0, 12))
    sides = st.integers(2 * halo + 1, 100)
    return TileGrid(draw(SIDES), draw(SIDES), draw(sides), draw(sides), halo)


@given(grids())
def test_every_pixel_is_kept_once_with_its_halo(grid):
    times_kept = np.zeros((grid.height, grid.width), int)
    for tile in grid.tiles():
        assert 0 <= tile.top <= grid.height - grid.tile_rows
        assert 0 <= tile.left <= grid.width - grid.tile_cols
        times_kept[tile.kept_in_picture(1)] += 1
        assert tile.keep_top in (0, *range(tile.top + grid.halo, grid.height))
        assert tile.keep_left in (0, *range(tile.left + grid.halo, grid.width))
        assert tile.keep_bottom == grid.height or tile.keep_bottom <= (
            tile.top + grid.tile_rows - grid.halo
        )
        assert tile.keep_right == grid.width or tile.keep_right <= (
            tile.left + grid.tile_cols - grid.halo
        )
        in_picture, in_result = tile.kept_in_picture(4), tile.kept_in_result(4)
        for there, here in zip(in_picture, in_result, strict=True):
            assert there.stop - there.start == here.stop - here.start > 0
    assert (times_kept == 1).all()


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(0, 16))
def test_chosen_tiles_are_few_and_of_bounded_size(width, height, halo):
    grid = choose_tiles(width, height, halo, 4096)
    pixels = grid.tile_rows * grid.tile_cols
    assert pixels <= max(PREFERRED_TILE_PIXELS, (4 * halo + 1) ** 2)
    if width * height <= PREFERRED_TILE_PIXELS:
        assert grid.is_whole_picture
    computed = len(grid.tiles()) * pixels
    if min(width, height) > 200:
        assert computed <= 1.35 * width * height


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(4, 44), st.integers(1, 800))
def test_a_longest_side_is_kept(width, height, halo, max_side):
    grid = choose_tiles(width, height, halo, 64, max_side=max_side)
    assert max(grid.tile_shape) <= max(max_side, 4 * halo + 1)
    if max(width, height) <= max_side:
        assert grid == choose_tiles(width, height, halo, 64)


def test_common_sizes():
    assert choose_tiles(320, 180, 8, 4096).tile_shape == (180, 320)
    assert len(choose_tiles(1920, 1080, 8, 4096).tiles()) <= 6
    small = choose_tiles(1920, 1080, 8, 4096, max_memory_bytes=64 << 20)
    assert small.tile_rows * small.tile_cols * 4096 <= 64 << 20
    assert choose_tiles(1920, 1080, 8, 4096, max_memory_bytes=1).tile_shape == (33, 33)
    with pytest.raises(ValueError, match="halo"):
        TileGrid(100, 100, 16, 16, 8)


SPECS = {
    "made": model_spec("fast"),
    "fast": model_spec("fast"),
    "yuv420": ModelSpec("balanced", "yuv420", Stack((6, 8, 6))),
    "rgb": ModelSpec("srgan", "rgb", ResidualGenerator(channels=8, num_blocks=1)),
}


@pytest.fixture(scope="module", params=SPECS)
def engine(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    path, spec = folder / "made.onnx", SPECS[request.param]
    if request.param == "made":
        made_network(path, layers=spec.halo)
    elif request.param == "fast":
        path = weights_path("fast")
    else:
        model_network(path, spec)
    config = EngineConfig(threads=2)
    return OpenVinoEngine(config, ModelConfig(weights=str(path)), spec, cache_dir=folder / "cache")


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_tiled_is_the_whole_picture(engine, data):
    width, height = data.draw(st.integers(3, 120)), data.draw(st.integers(3, 90))
    halo, form = engine.capabilities.halo, engine.capabilities.form
    sides = st.integers(2 * halo + 1, 60)
    rows, cols = data.draw(sides), data.draw(sides)
    bits, matrix = (16, 1) if engine.capabilities.color_form == "rgb" else (8, None)
    dtype = TileFormat(None, bits).dtype
    picture = np.random.default_rng(width).integers(
        0, 1 << bits, (form.num_input_planes, height, width), dtype=dtype
    )
    grid = TileGrid(width, height, rows, cols, halo)
    whole_session = engine.open_session(TileFormat((height, width), bits, matrix))
    whole = whole_session.result(whole_session.submit(picture))
    session = engine.open_session(TileFormat(grid.tile_shape, bits, matrix))
    tiled = [np.zeros_like(plane) for plane in whole]
    scales = [group.scale for group in form.outputs for _ in range(group.num_planes)]
    for tile in grid.tiles():
        window = picture[
            :, tile.top : tile.top + grid.tile_rows, tile.left : tile.left + grid.tile_cols
        ]
        for plane, part, scale in zip(
            tiled, session.result(session.submit(window)), scales, strict=True
        ):
            plane[tile.kept_in_picture(scale)] = part[tile.kept_in_result(scale)]
    if engine.capabilities.color_form != "rgb":
        for made, true in zip(tiled, whole, strict=True):
            assert np.array_equal(made, true)
        return
    # The order in which the wide 9x9 convolutions add up depends on the tile's width, so a value
    # halfway between two codes may round to either side. How many do depends on the processor; by
    # how much they are apart does not, and 16 bits show it: a code there is 1/257 of one of 8 bits.
    apart = np.abs(np.stack(tiled).astype(int) - np.stack(whole))
    assert apart.max() <= 1
    assert (apart > 0).mean() <= 0.01
