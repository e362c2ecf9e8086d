"""TensorRT on a real GPU: parity, overlap, memory, the cache and a swap (docs/gpu-checklist.md)."""

from __future__ import annotations

import time

import numpy as np
import pytest

from srstream.config import EngineConfig, ModelConfig, SourceConfig
from srstream.engines.contract import TileFormat
from srstream.engines.table import choose_engine, open_engine
from srstream.errors import EngineMemoryError
from srstream.media.read.decode import Decoder
from srstream.media.read.probe import probe
from srstream.models.table import MODELS, available_models, model_spec
from srstream.quality import psnr
from tests.support.networks import model_network

pytestmark = [pytest.mark.needs_cuda, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "cuda_cache"  # one for all tests, as building is slow
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def engine_of(name, model, spec=None):
    return open_engine(name, EngineConfig(), model, spec or model_spec(model.name))


def picture(shape, planes, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(16, 236, shape, dtype=np.uint8) for _ in range(planes)]


def made_model(tmp_path, name):
    return ModelConfig(weights=str(model_network(tmp_path / "made.onnx", MODELS[name])))


@pytest.mark.parametrize("name", available_models())
@pytest.mark.parametrize("shape", [(8, 8), (180, 320), (270, 480)])
def test_parity_with_the_reference(name, shape):
    spec, model = model_spec(name), ModelConfig(name=name)
    tile = TileFormat(shape, 8, 1 if spec.color_form == "rgb" else None)
    planes = picture(shape, spec.form.num_input_planes)
    made, true = (
        session.result(session.submit(planes))
        for session in (engine_of(e, model).open_session(tile) for e in ("tensorrt", "pytorch"))
    )
    for one, other in zip(made, true, strict=True):
        assert psnr(one.astype(float), other.astype(float), 0) >= 50.0
        assert (np.abs(one.astype(int) - other) > 1).mean() <= 0.001


def test_auto_takes_the_gpu():
    engine, reason = choose_engine(EngineConfig(), ModelConfig(name="fast"), model_spec("fast"))
    assert engine.capabilities.name == "tensorrt"
    assert "NVIDIA" in reason


def test_copies_and_computing_overlap():
    """Tiles in a full ring take less time than the same tiles one by one."""
    spec = model_spec("balanced")
    shape = (540, 720)
    session = engine_of("tensorrt", ModelConfig(name="balanced")).open_session(TileFormat(shape, 8))
    planes = picture(shape, spec.form.num_input_planes)

    def seconds(in_flight):
        began, tickets = time.perf_counter(), []
        for _ in range(60):
            if len(tickets) == in_flight:
                session.result(tickets.pop(0))
            tickets.append(session.submit(planes))
        for ticket in tickets:
            session.result(ticket)
        return time.perf_counter() - began

    seconds(3)
    alone, together = (min(seconds(n) for _ in range(3)) for n in (1, session.num_in_flight))
    print(f"60 tiles: {alone:.3f} s one by one, {together:.3f} s in a ring")
    assert together < 0.9 * alone


def test_no_memory_is_said_and_leaves_the_engine_usable(tmp_path):
    import torch

    spec, model = MODELS["srgan"], made_model(tmp_path, "srgan")
    engine = engine_of("tensorrt", model, spec)
    small = TileFormat((64, 64), 8, 1)
    session = engine.open_session(small)
    expected = session.result(session.submit(picture((64, 64), 3)))
    free, _ = torch.cuda.mem_get_info()
    hoard = torch.empty(free - (256 << 20), dtype=torch.uint8, device="cuda")
    with pytest.raises(EngineMemoryError, match="768x768"):
        engine.open_session(TileFormat((768, 768), 8, 1))
    del hoard
    torch.cuda.empty_cache()
    again = session.result(session.submit(picture((64, 64), 3)))
    assert all(map(np.array_equal, again, expected))


def test_an_engine_is_built_once_and_a_damaged_one_again(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tile, planes = TileFormat((64, 96), 8), picture((64, 96), 1)

    def enhance():
        session = engine_of("tensorrt", ModelConfig(name="fast")).open_session(tile)
        return session.result(session.submit(planes))

    first = enhance()
    (kept,) = tmp_path.rglob("*.engine")
    written = kept.stat().st_mtime_ns
    assert np.array_equal(enhance()[0], first[0])
    assert kept.stat().st_mtime_ns == written
    kept.write_bytes(kept.read_bytes()[:-100])
    assert np.array_equal(enhance()[0], first[0])
    assert "cut short" in caplog.text


def test_two_engines_side_by_side_for_a_swap():
    """The engine of the new weights is built and run while the old engine's session is open."""
    tile, planes = TileFormat((90, 160), 8), picture((90, 160), 1)
    old = engine_of("tensorrt", ModelConfig(name="fast", restore=0.0)).open_session(tile)
    before = old.result(old.submit(planes))
    new = engine_of("tensorrt", ModelConfig(name="fast", restore=1.0)).open_session(tile)
    tickets = [old.submit(planes), new.submit(planes)]
    (from_old,), (from_new,) = old.result(tickets[0]), new.result(tickets[1])
    assert np.array_equal(from_old, before[0])
    assert not np.array_equal(from_new, before[0])


def test_nvdec_decodes_the_same_samples(sample_clip):
    config = SourceConfig()
    video = probe(sample_clip, config).video
    decoders = [
        Decoder(sample_clip, video, config.model_copy(update={"decoder": name}))
        for name in ("cpu", "nvdec")
    ]
    count = 0
    for one, other in zip(*(decoder.frames() for decoder in decoders), strict=True):
        assert (one.pts, one.layout) == (other.pts, other.layout)
        assert all(map(np.array_equal, one.planes, other.planes))
        count += 1
    assert count == 325
