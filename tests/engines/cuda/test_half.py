"""TensorRT's half-precision path without TensorRT: the same ring, codes and colors on the CPU.

PyTorch runs the network in float16, in the form that TensorRT would be given.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import TileFormat
from srstream.engines.cuda.half import TileProgram
from srstream.engines.cuda.host import HostDevice
from srstream.engines.cuda.ring import NUM_SLOTS
from srstream.engines.cuda.session import RingSession
from srstream.engines.table import open_engine
from srstream.engines.tensorrt.engine import SIDES, longest_side
from srstream.errors import EngineError
from srstream.models.blend import blend_of
from srstream.models.flat_network import blended_network
from srstream.models.table import ModelSpec, ResidualGenerator, Stack, available_models, model_spec
from srstream.quality import psnr
from tests.support.gpu.parity import picture
from tests.support.networks import model_network

SPECS = {
    "luma": ModelSpec("fast", "luma", Stack((16,) * 3)),
    "yuv420": ModelSpec("balanced", "yuv420", Stack((6, 6))),
    "rgb": ModelSpec("srgan", "rgb", ResidualGenerator(channels=8, num_blocks=1)),
}
FORMATS = {8: (1, False), 10: (9, True), 16: (1, False)}
MIN_DB = 50.0


def half_session(model, spec, tile):
    network = blended_network(blend_of(model, spec), spec).half()
    device = HostDevice()
    program = TileProgram(lambda x: network(x.half()), tile, spec.color_form, device.device)
    return RingSession(tile, spec.form, device, program, device.recorder())


def both(model, spec, tile, planes):
    half = half_session(model, spec, tile)
    engine = open_engine("pytorch", EngineConfig(threads=1), model, spec)
    exact = engine.open_session(tile)
    results = half.result(half.submit(planes)), exact.result(exact.submit(planes))
    half.close()
    exact.close()
    return results


@pytest.mark.parametrize("bits", FORMATS)
@pytest.mark.parametrize("name", SPECS)
def test_half_precision_is_close_to_the_reference(name, bits, tmp_path):
    spec = SPECS[name]
    model = ModelConfig(weights=str(model_network(tmp_path / "made.onnx", spec)))
    matrix, full = FORMATS[bits]
    tile = TileFormat((40, 56), bits, matrix if spec.color_form == "rgb" else None, full)
    planes = picture(tile.shape, spec.form.num_input_planes, bits)
    for made, true in zip(*both(model, spec, tile, planes), strict=True):
        assert made.shape == true.shape
        assert made.dtype == true.dtype
        scale = 255 / ((1 << bits) - 1)
        assert psnr(made * scale, true * scale, 0) >= MIN_DB
        assert np.abs(made.astype(int) - true).max() * scale <= 2


@pytest.mark.parametrize("name", available_models())
def test_shipped_weights_in_half_precision(name):
    spec = model_spec(name)
    side = 48 if isinstance(spec.network, Stack) else 20  # float16 is slow on a CPU
    tile = TileFormat((side, side + 16), 8, 1 if spec.color_form == "rgb" else None)
    planes = picture(tile.shape, spec.form.num_input_planes, 8)
    for made, true in zip(*both(ModelConfig(name=name), spec, tile, planes), strict=True):
        assert psnr(made.astype(float), true.astype(float), 0) >= MIN_DB


def test_tiles_in_flight_keep_their_own_results(tmp_path):
    spec = SPECS["yuv420"]
    model = ModelConfig(weights=str(model_network(tmp_path / "made.onnx", spec)))
    session = half_session(model, spec, TileFormat((16, 24), 16))
    assert session.num_in_flight == NUM_SLOTS
    tiles = [picture((16, 24), 3, 16, seed) for seed in range(3 * NUM_SLOTS)]
    alone = [session.result(session.submit(tile)) for tile in tiles]
    tickets = [session.submit(tile) for tile in tiles]
    for ticket, expected in reversed(list(zip(tickets, alone, strict=True))):
        assert all(map(np.array_equal, session.result(ticket), expected))
    with pytest.raises(EngineError, match="collected before"):
        session.result(tickets[0])
    with pytest.raises(EngineError, match=r"\(16, 23\)"):
        session.submit([plane[:, :23] for plane in tiles[0]])
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.submit(tiles[0])


def test_tiles_are_sized_by_free_memory():
    per_pixel = 4096
    assert longest_side(80 << 30, per_pixel) == SIDES[0]
    assert longest_side(2 << 30, per_pixel) in SIDES[1:]
    assert longest_side(1, per_pixel) == SIDES[-1]
    for larger, smaller in pairwise(SIDES):
        assert 0.45 < (smaller / larger) ** 2 < 0.55
        assert larger % 8 == smaller % 8 == 0
