"""Flat pictures stay flat, with every model, mixture of weights, level, range, depth and engine."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch

from srstream.config import EngineConfig, ModelConfig, ReuseConfig
from srstream.engines.contract import TileFormat
from srstream.engines.table import open_engine
from srstream.enhancer import enhancer as module
from srstream.enhancer.enhancer import Enhancer
from srstream.errors import EngineError
from srstream.frame import ColorSpec, Frame, FrameForm, PlaneLayout
from srstream.models.checkpoint import load_weights
from srstream.models.edges import border_of
from srstream.models.flat_correction import KNOT_ERROR, correction_of
from srstream.models.flat_network import FlatNetwork
from srstream.models.networks import network_from_weights
from srstream.models.table import (
    ModelSpec,
    ResidualGenerator,
    Stack,
    available_models,
    available_sets,
    model_spec,
)
from tests.support.networks import flat_response, model_network

SPECS = {
    "luma": ModelSpec("fast", "luma", Stack((6, 6))),
    "yuv420": ModelSpec("balanced", "yuv420", Stack((6, 6))),
    "rgb_stack": ModelSpec("rgb_stack", "rgb", Stack((7, 5))),
    "rgb": ModelSpec("srgan", "rgb", ResidualGenerator(channels=8, num_blocks=1)),
}
ENGINES = ["openvino", "pytorch", "ncnn"]
FORMATS = [
    TileFormat(None, bits, matrix=1, full_range=full_range)
    for bits, full_range in product((8, 10), (False, True))
]


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("form", SPECS)
def test_the_correction_is_what_a_network_makes_of_flat_pictures(form, tmp_path):
    """The correction equals the response that PyTorch computes, picture by picture."""
    spec = SPECS[form]
    path = model_network(tmp_path / "made.onnx", spec, flat=False)
    colors = np.random.default_rng(0).random((40, spec.form.num_input_planes))
    correction = correction_of(load_weights(path.with_suffix(".safetensors"), spec))
    assert correction is not None
    made = flat_response(path, spec, colors)
    response = np.concatenate([cells.reshape(len(colors), -1) for cells in made], axis=1)
    wanted = colors[:, spec.form.anchor_planes] - response
    assert np.abs(wanted).max() > 0.02
    tolerance = 1e-5 if form != "luma" else 1.5 * KNOT_ERROR
    assert np.abs(correction.values(colors) - wanted).max() < tolerance


@pytest.mark.parametrize("multiple", [16, 64])
def test_lines_that_only_fill_up_add_nothing(multiple, tmp_path):
    path = model_network(tmp_path / "made.onnx", SPECS["luma"], flat=False)
    weights = load_weights(path.with_suffix(".safetensors"), SPECS["luma"])
    colors = np.linspace(0.0, 1.0, 40)[:, None]
    plain, filled = (correction_of(weights, lines_multiple=m) for m in (1, multiple))
    assert plain is not None and filled is not None
    assert np.array_equal(plain.values(colors), filled.values(colors))
    layers = FlatNetwork(network_from_weights(weights), filled).layers
    assert layers[0].weight.shape[0] % multiple == 0


@pytest.mark.parametrize("form", ["luma", "yuv420", "rgb_stack"])
def test_a_network_that_is_flat_by_itself_has_none(form, tmp_path):
    spec = SPECS[form]
    path = model_network(tmp_path / "made.onnx", spec)
    assert correction_of(load_weights(path.with_suffix(".safetensors"), spec)) is None


def off_by(engine, colors, tile, halo):
    """The largest difference in codes between results and flat tiles of these codes.

    It counts all samples of a cell in the planes that the network makes, beyond the halo of the
    edges.
    """
    side = 2 * halo + 2
    session = engine.open_session(TileFormat((side, side), tile.bits, tile.matrix, tile.full_range))
    worst = 0
    dtype = np.uint8 if tile.bits == 8 else np.uint16
    for color in colors:
        planes = [np.full((side, side), code, dtype) for code in color]
        results = session.result(session.submit(planes))
        for made, code in zip(results, color, strict=True):
            scale = len(made) // side
            inside = slice(scale * halo, -scale * halo)
            worst = max(worst, int(np.abs(made[inside, inside].astype(int) - int(code)).max()))
    session.close()
    return worst


def grays(tile, num_planes, count):
    unit, peak = 1 << (tile.bits - 8), (1 << tile.bits) - 1
    least, largest = (0, peak) if tile.full_range else (16 * unit, 235 * unit)
    levels = np.linspace(least, largest, count).round().astype(int)
    return [[level, 128 * unit, 128 * unit][:num_planes] for level in levels]


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("form", SPECS)
def test_every_engine_keeps_flat_pictures_flat(form, name, tmp_path):
    spec = SPECS[form]
    path = model_network(tmp_path / "made.onnx", spec, flat=False)
    engine = open_engine(name, EngineConfig(threads=1), ModelConfig(weights=str(path)), spec)
    for tile in FORMATS:
        colors = grays(tile, spec.form.num_input_planes, 9)
        if spec.form.num_input_planes == 3:
            unit = 1 << (tile.bits - 8)
            colors += [[81 * unit, 90 * unit, 200 * unit], [120 * unit, 150 * unit, 100 * unit]]
        assert off_by(engine, colors, tile, spec.halo) == 0


def knobs_of(name, steps):
    """Positions of the knobs that the model has."""
    knobs = {"restore": "restore", "detail": "crisp"}
    turned = [
        {knob: step / steps}
        for knob, weights in knobs.items()
        if weights in available_sets(name)
        for step in range(1, steps + 1)
    ]
    return [{}, *turned]


QUICK = [name for name in available_models() if model_spec(name).kmac_per_pixel < 1000]


@pytest.mark.parametrize("name", QUICK)
def test_shipped_models_keep_grays(name):
    for knobs in knobs_of(name, 4):
        hold_grays(name, knobs, 5)


@pytest.mark.parametrize("name", QUICK)
def test_shipped_models_keep_grays_in_bfloat16(name):
    """They are exact in 8 bits and within one code, a quarter of a level, in 10 bits."""
    spec = model_spec(name)
    for knobs in knobs_of(name, 2):
        model = ModelConfig(name=name, **knobs)
        try:
            engine = open_engine("openvino", EngineConfig(precision="bfloat16"), model, spec)
        except EngineError as error:
            pytest.skip(str(error))
        for tile in FORMATS:
            colors = grays(tile, spec.form.num_input_planes, 11)
            assert off_by(engine, colors, tile, spec.halo) <= (tile.bits - 8) // 2, (knobs, tile)


@pytest.mark.long
@pytest.mark.parametrize("name", available_models())
def test_shipped_models_keep_grays_wherever_the_knobs_are(name):
    for knobs in knobs_of(name, 10):
        hold_grays(name, knobs, 11 if name in QUICK else 2)


def hold_grays(name, knobs, count):
    spec = model_spec(name)
    engine = open_engine("openvino", EngineConfig(), ModelConfig(name=name, **knobs), spec)
    for tile in FORMATS:
        colors = grays(tile, spec.form.num_input_planes, count)
        assert off_by(engine, colors, tile, spec.halo) == 0, (knobs, tile)


@pytest.mark.parametrize("form", SPECS)
def test_edges_are_cut_off_as_far_as_they_show(form, tmp_path):
    """PyTorch enlarges a flat picture padded with zeros; the edges are compared with the middle."""
    spec = SPECS[form]
    path = model_network(tmp_path / "made.onnx", spec, flat=False)
    weights = load_weights(path.with_suffix(".safetensors"), spec)
    border = border_of(weights)
    assert 0 < border <= spec.halo
    network = network_from_weights(weights)
    side = 2 * spec.halo + 1
    grays_of = [[level, 128, 128][: spec.form.num_input_planes] for level in (16, 126, 235)]
    if spec.color_form == "rgb":
        grays_of = [[level] * 3 for level in (0, 128, 255)]
    left, outermost = [], []
    for color in np.array(grays_of, np.float32) / 255:
        flat = torch.from_numpy(color)[None, :, None, None].expand(-1, -1, side, side)
        for made, group in zip(network(flat), spec.form.outputs, strict=True):
            cells = made[0].numpy().reshape(-1, side, group.scale, side, group.scale)
            cells = cells.transpose(1, 3, 0, 2, 4)
            apart = np.abs(cells - cells[spec.halo, spec.halo]).max(axis=(2, 3, 4)) * 255
            left.append(apart[border : side - border, border : side - border].max())
            outermost += [apart[border - 1, spec.halo], apart[spec.halo, border - 1]]
            outermost += [apart[-border, spec.halo], apart[spec.halo, -border]]
    assert max(left) < 0.5
    assert max(outermost) > 0.14


def frame_of(planes, layout, color, pts=0):
    height, width = planes[0].shape
    return Frame(tuple(planes), layout, width, height, pts, Fraction(1, 25), color=color)


def enlarged(engine, frames, *, max_memory_bytes=None, reuse=None):
    """Enlarge frames by an enhancer."""
    first = frames[0]
    source = FrameForm(first.width, first.height, first.layout, first.color)
    options = {} if reuse is None else {"reuse": reuse}
    enhancer = Enhancer(
        engine, source, source.scaled(4), max_memory_bytes=max_memory_bytes, **options
    )
    made = [done for frame in frames for done in enhancer.push(frame)] + enhancer.drain()
    enhancer.close()
    return made


@pytest.mark.parametrize("form", SPECS)
def test_tiles_and_reuse_see_no_difference_at_the_edges(form, tmp_path, monkeypatch):
    """Pictures that are extended at their edges give the same bits in tiles and in parts."""
    spec = SPECS[form]
    path = model_network(tmp_path / "made.onnx", spec, flat=False)
    engine = open_engine("openvino", EngineConfig(threads=2), ModelConfig(weights=str(path)), spec)
    assert engine.capabilities.border
    random = np.random.default_rng(0)
    layout, color = PlaneLayout("yuv", 8, 1, 1), ColorSpec(1, 1, 1, False, 1)
    first = [random.integers(16, 236, shape, np.uint8) for shape in ((73, 101), (37, 51), (37, 51))]
    frames = [frame_of(first, layout, color)]
    for pts in (1, 2):
        luma = frames[-1].planes[0].copy()
        luma[:9, 5 * pts : 5 * pts + 9] ^= 3  # a change at an edge
        frames.append(frame_of([luma, *first[1:]], layout, color, pts))
    whole = enlarged(engine, frames)
    reused = enlarged(engine, frames, reuse=ReuseConfig())
    monkeypatch.setattr(module, "RESERVED_BYTES", 0)
    budget = 4 * layout.frame_bytes(4 * 101, 4 * 73)
    budget += 2 * engine.capabilities.activation_bytes_per_pixel * 3000
    tiled = enlarged(engine, frames, max_memory_bytes=budget)
    exact = spec.color_form != "rgb"  # tiles of RGB models may round differently
    for results in (reused, tiled):
        for one, other in zip(whole, results, strict=True):
            for a, b in zip(one.planes, other.planes, strict=True):
                assert np.abs(a.astype(int) - b).max() <= (0 if exact else 1)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("bits", [8, 10])
def test_flat_frames_are_flat_up_to_their_edges(name, bits):
    """They are exact in 8 bits, and no code of 10 bits is off by half a level of 8 bits."""
    whole_frames_are_flat(name, bits, knobs_of(name, 2), 5)


@pytest.mark.long
@pytest.mark.parametrize("name", available_models())
@pytest.mark.parametrize("bits", [8, 10])
def test_flat_frames_are_flat_wherever_the_knobs_are(name, bits):
    if name in QUICK:
        whole_frames_are_flat(name, bits, knobs_of(name, 10), 9)
    else:
        whole_frames_are_flat(name, bits, knobs_of(name, 2), 3)


def whole_frames_are_flat(name, bits, knobs, count):
    spec = model_spec(name)
    layout = PlaneLayout("yuv", bits, 1, 1)
    shapes = ((36, 44), (18, 22), (18, 22))
    for turned in knobs:
        engine = open_engine("openvino", EngineConfig(), ModelConfig(name=name, **turned), spec)
        for full_range in (False, True):
            color = ColorSpec(1, 1, 1, full_range, 1)
            tile = TileFormat(None, bits, full_range=full_range)
            for colors in grays(tile, 3, count):
                planes = [
                    np.full(shape, code, layout.dtype)
                    for shape, code in zip(shapes, colors, strict=True)
                ]
                (made,) = enlarged(engine, [frame_of(planes, layout, color)])
                for plane, code in zip(made.planes, colors, strict=True):
                    off = int(np.abs(plane.astype(int) - code).max())
                    assert off <= (0 if bits == 8 else 1), (turned, full_range, colors)
