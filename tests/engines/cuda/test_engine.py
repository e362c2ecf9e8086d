"""`--engine cuda` on the CPU: the same program and ring, without streams or graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from srstream.config import EngineConfig, ModelConfig, ReuseConfig
from srstream.engines.contract import Refittable, TileFormat
from srstream.engines.cuda import engine as cuda_engine
from srstream.engines.cuda.engine import LARGEST_TILE_PIXELS, CudaEngine
from srstream.engines.cuda.half import in_half_precision
from srstream.engines.table import open_engine
from srstream.engines.tiles import choose_tiles
from srstream.enhancer.enhancer import Enhancer
from srstream.errors import EngineError, EngineMemoryError
from srstream.models.blend import blend_of
from srstream.models.flat_network import FlatNetwork, blended_network
from srstream.models.table import available_models, model_spec
from tests.support.enhancer import HEIGHT, WIDTH, YUV420, noise_frame, output, video
from tests.support.gpu.parity import agreement, picture, through, tile_format

HOST = torch.device("cpu")


def engine_of(model, spec=None, **config):
    return CudaEngine(EngineConfig(**config), model, spec or model_spec(model.name), HOST)


def share_within_one_level(made, true):
    return 1 - agreement(made, true, 8).share_beyond_one


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("restore", [0.0, 0.5])
@pytest.mark.parametrize("name", available_models())
def test_half_precision_is_within_a_level_of_true_float32(name, restore, bits):
    """This is bar 2 of the engine: 99.9 % of the samples of every shipped model."""
    spec, model = model_spec(name), ModelConfig(name=name, restore=restore)
    side = 48 if name == "srgan" else 96  # float16 is slow on a CPU
    tile = tile_format(spec, (side, side + 16), bits)
    planes = picture(tile.shape, spec.form.num_input_planes, bits)
    exact = open_engine("pytorch", EngineConfig(threads=1), model, spec)
    share = share_within_one_level(
        through(engine_of(model), tile, planes), through(exact, tile, planes)
    )
    print(f"{name} restore {restore} {bits} bits: {share:.5f} within one level")
    assert share >= 0.999


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("name", ["fast", "balanced"])
def test_deep_codes_are_computed_in_float32(name, bits):
    """Float16 holds 11 bits."""
    spec, model = model_spec(name), ModelConfig(name=name)
    tile = tile_format(spec, (40, 56), bits)
    planes = picture(tile.shape, spec.form.num_input_planes, bits)
    exact = open_engine("pytorch", EngineConfig(threads=1), model, spec)
    made, true = (through(engine, tile, planes) for engine in (engine_of(model), exact))
    assert share_within_one_level(made, true) == 1.0


def test_bfloat16_is_the_user_s_choice():
    spec, model = model_spec("balanced"), ModelConfig(name="balanced")
    engine = engine_of(model, precision="bfloat16")
    assert engine.capabilities.precision == "bfloat16"
    tile = tile_format(spec, (64, 80), 8)
    planes = picture(tile.shape, 3, 8)
    exact = open_engine("pytorch", EngineConfig(threads=1), model, spec)
    made, true = through(engine, tile, planes), through(exact, tile, planes)
    assert share_within_one_level(made, true) >= 0.99


def test_a_generator_keeps_its_ends_in_float32():
    spec = model_spec("srgan")
    blend = blend_of(ModelConfig(name="srgan"), spec)
    network = in_half_precision(blended_network(blend, spec), torch.float16)
    assert isinstance(network, FlatNetwork)
    assert network.network.head.weight.dtype == torch.float32
    assert network.network.tail.weight.dtype == torch.float16
    dtypes = [layer.weight.dtype for layer in network.layers]
    assert {dtypes[0], dtypes[-2], dtypes[-1]} == {torch.float32}
    assert set(dtypes[1:-2]) == {torch.float16}
    made = network(torch.zeros(1, 3, 8, 8))
    assert made[0].dtype == torch.float32


def test_it_says_on_what_it_runs():
    can = engine_of(ModelConfig(name="fast")).capabilities
    assert (can.name, can.precision) == ("cuda", "float16")
    assert "CPU in place of a GPU" in can.device


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (7, 7)])
def test_small_pictures_are_taken(shape):
    spec = model_spec("fast")
    tile = TileFormat(shape, 8)
    planes = picture((8, 48), 1, 8)[0][: shape[0], : shape[1]]
    exact = open_engine("pytorch", EngineConfig(threads=1), ModelConfig(name="fast"), spec)
    made, true = (
        through(engine, tile, [planes]) for engine in (engine_of(ModelConfig(name="fast")), exact)
    )
    assert share_within_one_level(made, true) == 1.0


@pytest.mark.parametrize(("width", "height"), [(960, 540), (1920, 1080)])
@pytest.mark.parametrize("name", available_models())
def test_a_frame_is_one_tile(name, width, height):
    can = engine_of(ModelConfig(name=name)).capabilities
    grid = choose_tiles(
        width + 2 * can.border,
        height + 2 * can.border,
        can.halo,
        can.activation_bytes_per_pixel,
        preferred_pixels=can.preferred_tile_pixels,
    )
    assert grid.is_whole_picture


def test_tiles_are_sized_by_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 80 << 30))
    assert cuda_engine.largest_tile(torch.device("cuda", 0), 4096) == (1 << 29) // 4096
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 << 30, 80 << 30))
    assert cuda_engine.largest_tile(torch.device("cuda", 0), 4096) == LARGEST_TILE_PIXELS
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 80 << 30))
    assert cuda_engine.largest_tile(torch.device("cuda", 0), 4096) == 1


# --- other weights in the same memory ------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize(
    "name", ["fast", "balanced", pytest.param("srgan", marks=pytest.mark.long)]
)
def test_refitted_weights_give_what_an_engine_of_their_own_gives(name, bits):
    """The blends of a knob share their layers, so a session keeps its graphs."""
    spec = model_spec(name)
    tile = tile_format(spec, (16, 24), bits)
    planes = picture(tile.shape, spec.form.num_input_planes, bits)
    engine = engine_of(ModelConfig(name=name, restore=0.25))
    refittable: Refittable = engine
    assert isinstance(refittable, Refittable)
    session = engine.open_session(tile)
    before = session.result(session.submit(planes))
    network = engine._networks.for_bits(bits)
    addresses = [value.data_ptr() for value in network.state_dict().values()]
    for restore in (0.75, 0.25):
        model = ModelConfig(name=name, restore=restore)
        assert engine.refit(model)
        fresh = engine_of(model)
        assert engine.capabilities == fresh.capabilities
        after = session.result(session.submit(planes))
        assert all(map(np.array_equal, after, through(fresh, tile, planes)))
        assert all(map(np.array_equal, after, before)) == (restore == 0.25)
    assert addresses == [value.data_ptr() for value in network.state_dict().values()]


def test_weights_with_other_layers_are_not_refitted():
    """The correction for flat pictures is missing in `fast` alone, and is there in its blends."""
    engine = engine_of(ModelConfig(name="fast", restore=0.0))
    before = engine.capabilities
    assert not engine.refit(ModelConfig(name="fast", restore=0.5))
    assert engine.capabilities == before


def test_weights_are_not_exchanged_under_tiles_in_flight():
    engine = engine_of(ModelConfig(name="balanced", restore=0.25))
    session = engine.open_session(TileFormat((16, 16), 8))
    ticket = session.submit(picture((16, 16), 3, 8))
    with pytest.raises(EngineError, match="while tiles are in the engine"):
        engine.refit(ModelConfig(name="balanced", restore=0.75))
    session.result(ticket)
    assert engine.refit(ModelConfig(name="balanced", restore=0.75))


def test_a_stream_changes_its_weights_between_two_frames():
    """As `Enhancer.replace_engine` does, but without a second engine and its captures."""
    frames = [noise_frame(YUV420, pts=pts) for pts in range(4)]
    old, new = (ModelConfig(name="balanced", restore=restore) for restore in (0.5, 0.75))
    results = []
    for change in ("weights", "engine"):
        engine = engine_of(old)
        assert engine.capabilities.border == 5, "as that of the new weights"
        stage = Enhancer(engine, video(YUV420), output(YUV420), reuse=ReuseConfig())
        made = [done for frame in frames[:2] for done in stage.push(frame)]
        sessions = set(engine._sessions)
        if change == "weights":
            finished, is_changed = stage.replace_weights(new)
            assert is_changed
            made += finished
        else:
            made += stage.replace_engine(engine_of(new))
        assert len(made) == 2
        made += [done for frame in frames[2:] for done in stage.push(frame)] + stage.drain()
        if change == "weights":
            assert set(engine._sessions) == sessions, "no session was opened"
        stage.close()
        results.append(made)
    for one, other in zip(*results, strict=True):
        assert one.pts == other.pts
        assert all(map(np.array_equal, one.planes, other.planes))


def test_a_stream_keeps_its_weights_where_the_engine_cannot_change_them():
    stage = Enhancer(engine_of(ModelConfig(name="fast")), video(YUV420), output(YUV420))
    finished = stage.push(noise_frame(YUV420))
    more, is_changed = stage.replace_weights(ModelConfig(name="fast", restore=0.5))
    assert not is_changed
    assert len(finished + more) == 1
    stage.close()


# --- too little memory ---------------------------------------------------------------------------


class Cramped:
    """A device that has no memory of one kind for more than so many samples at once."""

    def __init__(self, device, kind, most):
        self._device, self._kind, self._most = device, kind, most

    def __getattr__(self, name):
        return getattr(self._device, name)

    def buffer(self, shape, dtype):
        if self._kind == "buffer" and np.prod(shape) > self._most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self._device.buffer(shape, dtype)

    def pinned(self, shape, dtype):
        if self._kind == "pinned" and np.prod(shape) > self._most:
            raise RuntimeError("CUDA error: out of memory")
        return self._device.pinned(shape, dtype)


@pytest.mark.parametrize("kind", ["buffer", "pinned"])
def test_a_lack_of_memory_halves_the_tiles(kind, caplog):
    """Both kinds are recognized: of the device's memory, and of pinned memory on the host."""
    frames = [noise_frame(YUV420, pts=pts) for pts in range(3)]
    made = []
    for is_cramped in (False, True):
        engine = engine_of(ModelConfig(name="fast"))
        if is_cramped:
            engine._device = Cramped(engine._device, kind, 16 * WIDTH * HEIGHT // 2)
        stage = Enhancer(engine, video(YUV420), output(YUV420))
        made.append([done for frame in frames for done in stage.push(frame)] + stage.drain())
        stage.close()
    assert "tiles are halved" in caplog.text
    for one, other in zip(*made, strict=True):
        assert share_within_one_level(one.planes, other.planes) == 1.0


def test_a_refused_session_leaves_the_others_as_they_are():
    engine = engine_of(ModelConfig(name="fast"))
    planes = picture((24, 24), 1, 8)
    session = engine.open_session(TileFormat((24, 24), 8))
    before = session.result(session.submit(planes))
    engine._device = Cramped(engine._device, "buffer", 1000)
    with pytest.raises(EngineMemoryError, match="no memory for tiles of 64x64"):
        engine.open_session(TileFormat((64, 64), 8))
    assert all(map(np.array_equal, session.result(session.submit(planes)), before))
