"""Mixtures of a network with bicubic interpolation, for every form, depth and shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from srstream.color import code_range, convert_codes
from srstream.config import EngineConfig, ModelConfig
from srstream.engines.bicubic_mix import softened
from srstream.engines.contract import TileFormat
from srstream.engines.openvino.engine import OpenVinoEngine
from srstream.errors import EngineError
from srstream.models.table import ModelSpec, ResidualGenerator, Stack
from tests.support.networks import model_network
from trainer.data.degrade import bicubic_resize

SPECS = {
    "luma": ModelSpec("fast", "luma", Stack((6, 6))),
    "yuv420": ModelSpec("balanced", "yuv420", Stack((6, 6))),
    "rgb": ModelSpec("srgan", "rgb", ResidualGenerator(channels=8, num_blocks=1)),
}
FORMATS = {
    "limited": TileFormat((24, 33), 8, matrix=6),
    "full": TileFormat((24, 33), 8, matrix=6, full_range=True),
    "deep": TileFormat((24, 33), 10, matrix=6),
    "deepest": TileFormat((24, 33), 16, matrix=6, full_range=True),
}
EDGE = 3
"""Input samples next to an edge, where MATLAB's bicubic mirrors and srstream's repeats."""


def results(engine, tile, planes):
    session = engine.open_session(tile)
    try:
        return session.result(session.submit(planes))
    finally:
        session.close()


@pytest.mark.parametrize("form", SPECS)
@pytest.mark.parametrize("tile", FORMATS.values(), ids=FORMATS)
def test_it_is_the_mean_of_the_network_and_of_bicubic(form, tile, tmp_path):
    """Nothing is rounded before mixing, so the result is within half a code of float arithmetic."""
    spec = SPECS[form]
    path = model_network(tmp_path / "made.onnx", spec)
    engine = OpenVinoEngine(
        EngineConfig(threads=1), ModelConfig(weights=str(path)), spec, cache_dir=tmp_path
    )
    if form != "rgb":
        tile = replace(tile, matrix=None)
    unit = 1 << (tile.bits - 8)
    coarse = np.random.default_rng(0).integers(90, 160, (spec.form.num_input_planes, *tile.shape))
    planes = list((coarse * unit).astype(tile.dtype))
    ranges = [
        [code_range(bits, tile.full_range, is_chroma=n > 0) for bits in (tile.bits, 16)]
        for n in range(3)
    ]
    inner = results(
        engine,
        replace(tile, bits=16),
        [convert_codes(p, *codes) for p, codes in zip(planes, ranges, strict=False)],
    )
    made = results(softened(engine, 0.3), tile, planes)
    alone = results(engine, tile, planes)
    assert len(made) == len(inner) == len(alone)
    for plane, network, source, faithful, (own, deep) in zip(
        made, inner, planes, alone, ranges, strict=False
    ):
        scale = plane.shape[0] // source.shape[0]
        bicubic = bicubic_resize(source.astype(np.float64), *plane.shape)
        fine = (network - deep.zero) * own.span / deep.span + own.zero
        expected = 0.3 * fine + 0.7 * bicubic
        inside = (slice(scale * EDGE, -scale * EDGE),) * 2
        error = np.abs(plane[inside] - np.clip(expected, 0, own.peak)[inside])
        assert error.max() <= 0.5 + 0.02 * unit
        assert plane.dtype == tile.dtype
        assert np.abs(plane[inside].astype(float) - faithful[inside]).max() > 2 * unit


def test_all_of_it_is_the_engine_itself(tmp_path):
    spec = SPECS["luma"]
    path = model_network(tmp_path / "made.onnx", spec)
    engine = OpenVinoEngine(
        EngineConfig(threads=1), ModelConfig(weights=str(path)), spec, cache_dir=tmp_path
    )
    assert softened(engine, 1.0) is engine
    shas = [softened(engine, s).capabilities.weights_sha256 for s in (0.25, 0.5, 1.0)]
    assert len(set(shas)) == 3  # a resumed job compares it
    with pytest.raises(EngineError, match="a session for tiles of"):
        results(softened(engine, 0.5), TileFormat((8, 8), 8), [np.zeros((8, 9), np.uint8)])


def test_any_shape_is_the_same_as_one(tmp_path):
    """A changed part of a frame, cut out of it with its halo, goes through such a session."""
    spec = SPECS["luma"]
    path = model_network(tmp_path / "made.onnx", spec)
    engine = softened(
        OpenVinoEngine(
            EngineConfig(threads=1), ModelConfig(weights=str(path)), spec, cache_dir=tmp_path
        ),
        0.4,
    )
    assert engine.capabilities.takes_any_shape
    plane = np.random.default_rng(1).integers(0, 256, (40, 50), np.uint8)
    (whole,) = results(engine, TileFormat(plane.shape, 8), [plane])
    (part,) = results(engine, TileFormat(None, 8), [plane[5:35, 4:44]])
    halo = spec.halo
    rows, columns = slice(4 * (5 + halo), 4 * (35 - halo)), slice(4 * (4 + halo), 4 * (44 - halo))
    inside = (slice(4 * halo, -4 * halo),) * 2
    assert np.array_equal(whole[rows, columns], part[inside])
