"""The engines on a real GPU: parity, overlap, memory, graphs and a swap (docs/gpu-checklist.md)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from srstream.config import EngineConfig, ModelConfig, SourceConfig
from srstream.engines.contract import TileFormat
from srstream.engines.table import can_run, choose_engine, is_installed, open_engine
from srstream.errors import EngineError, EngineMemoryError
from srstream.media.read.decode import Decoder
from srstream.media.read.probe import probe
from srstream.models.table import MODELS, available_models, model_spec
from tests.support.gpu.device_errors import DEVICE_ERRORS, sorted_error
from tests.support.gpu.parity import (
    agreement,
    noise,
    picture,
    through,
    tile_format,
    tiles_against_whole,
)
from tests.support.gpu.ring import overlap_on_gpu, stress_gpu
from tests.support.networks import model_network

needs_tensorrt = pytest.mark.skipif(not is_installed("tensorrt"), reason="needs torch-tensorrt")
GPU_ENGINES = ["cuda", pytest.param("tensorrt", marks=needs_tensorrt)]

pytestmark = [pytest.mark.needs_cuda, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "cuda_cache"  # one for all tests, as building is slow
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def engine_of(name, model, spec=None):
    return open_engine(name, EngineConfig(), model, spec or model_spec(model.name))


def made_model(tmp_path, name):
    return ModelConfig(weights=str(model_network(tmp_path / "made.onnx", MODELS[name])))


@pytest.mark.parametrize("bits", [8, 10, 16])
@pytest.mark.parametrize("name", available_models())
@pytest.mark.parametrize("shape", [(5, 7), (8, 8), (180, 320), (270, 480)])
@pytest.mark.parametrize("engine", GPU_ENGINES)
def test_parity_with_the_reference(engine, name, shape, bits):
    spec, model = model_spec(name), ModelConfig(name=name)
    tile, planes = tile_format(spec, shape, bits), picture(shape, spec.form.num_input_planes, bits)
    made, true = (through(engine_of(e, model), tile, planes) for e in (engine, "pytorch"))
    assert agreement(made, true, bits).is_close


def test_auto_takes_the_gpu():
    engine, reason = choose_engine(EngineConfig(), ModelConfig(name="fast"), model_spec("fast"))
    assert engine.capabilities.name == ("tensorrt" if can_run("tensorrt") else "cuda")
    assert "NVIDIA" in reason


@pytest.mark.parametrize("name", available_models())
@pytest.mark.parametrize("engine", GPU_ENGINES)
def test_tiles_are_within_a_level_of_the_whole(engine, name):
    """It prints how many samples are the same; only all of them would allow `tiles_are_exact`."""
    opened = engine_of(engine, ModelConfig(name=name))
    same, wrong = tiles_against_whole(opened, model_spec(name), (200, 320))
    print(f"{engine} {name}: {same:.6f} of the samples are the same in tiles")
    assert wrong == 0


def test_random_schedules_with_sleeping_streams_and_poisoned_buffers():
    outcome = stress_gpu(500)
    assert (outcome.num_wrong, outcome.num_refused) == (0, 0)
    assert outcome.most_under_way == 4


@pytest.mark.parametrize("forgets", [1, 2])
def test_these_schedules_find_a_stream_that_does_not_wait(forgets):
    assert stress_gpu(200, forgets=forgets).num_wrong > 0


def test_copies_and_computing_overlap():
    """While one tile is computed, the next is uploaded and the last one downloaded.

    Shown by events on each stream: the time for which at least two streams work at once.
    """
    overlapping, total = overlap_on_gpu()
    print(f"{overlapping} of {total} pieces of work overlap another stream's")
    assert overlapping >= 0.8 * total


@pytest.mark.parametrize("name", available_models())
def test_a_graph_allocates_nothing_and_repeats_itself(name):
    spec = model_spec(name)
    tile = tile_format(spec, (180, 320))
    planes = noise(tile.shape, spec.form.num_input_planes)
    session = engine_of("cuda", ModelConfig(name=name)).open_session(tile)
    first = session.result(session.submit(planes))
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(100):
        assert all(map(np.array_equal, session.result(session.submit(planes)), first))
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_sessions_are_opened_while_others_run():
    """A capture in one thread, and tiles and captures in others, as in the daemon's worker."""
    engine = engine_of("cuda", ModelConfig(name="balanced"))
    sides = range(40, 72, 4)

    def work(side):
        session = engine.open_session(TileFormat((side, side), 8))
        planes = noise((side, side), 3)
        results = [session.result(session.submit(planes)) for _ in range(50)]
        assert all(np.array_equal(results[0][0], other[0]) for other in results)
        session.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, sides))


@pytest.mark.parametrize("kind", DEVICE_ERRORS)
def test_errors_are_sorted(kind):
    """In a process of its own, since a device assert breaks this process's context."""
    assert sorted_error(kind, "cuda") == DEVICE_ERRORS[kind]


@pytest.mark.parametrize("name", GPU_ENGINES)
def test_no_memory_is_said_and_leaves_the_engine_usable(name, tmp_path):
    spec, model = MODELS["srgan"], made_model(tmp_path, "srgan")
    engine = engine_of(name, model, spec)
    small = TileFormat((64, 64), 8, 1)
    session = engine.open_session(small)
    expected = session.result(session.submit(noise((64, 64), 3)))
    free, _ = torch.cuda.mem_get_info()
    hoard = torch.empty(free - (256 << 20), dtype=torch.uint8, device="cuda")
    with pytest.raises(EngineMemoryError, match="768x768"):
        engine.open_session(TileFormat((768, 768), 8, 1))
    del hoard
    torch.cuda.empty_cache()
    again = session.result(session.submit(noise((64, 64), 3)))
    assert all(map(np.array_equal, again, expected))


@needs_tensorrt
def test_an_engine_is_built_once_and_a_damaged_one_again(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tile, planes = TileFormat((64, 96), 8), noise((64, 96), 1)

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


@pytest.mark.parametrize("name", GPU_ENGINES)
def test_two_engines_side_by_side_for_a_swap(name):
    """The engine of the new weights is built and run while the old engine's session is open."""
    tile, planes = TileFormat((90, 160), 8), noise((90, 160), 1)
    old = engine_of(name, ModelConfig(name="fast", restore=0.0)).open_session(tile)
    before = old.result(old.submit(planes))
    new = engine_of(name, ModelConfig(name="fast", restore=1.0)).open_session(tile)
    tickets = [old.submit(planes), new.submit(planes)]
    (from_old,), (from_new,) = old.result(tickets[0]), new.result(tickets[1])
    assert np.array_equal(from_old, before[0])
    assert not np.array_equal(from_new, before[0])


def test_other_weights_in_the_same_graphs():
    tile, planes = TileFormat((90, 160), 8), noise((90, 160), 3)
    engine = engine_of("cuda", ModelConfig(name="balanced", restore=0.25))
    session = engine.open_session(tile)
    before = session.result(session.submit(planes))
    changed = ModelConfig(name="balanced", restore=0.75)
    assert engine.refit(changed)
    after = session.result(session.submit(planes))
    fresh = engine_of("cuda", changed).open_session(tile)
    assert all(map(np.array_equal, after, fresh.result(fresh.submit(planes))))
    assert not np.array_equal(after[0], before[0])


@needs_tensorrt
@pytest.mark.parametrize("name", available_models())
def test_a_refitted_engine_gives_what_one_of_its_own_gives(name, tmp_path, monkeypatch):
    """Its own is built to be fast, not to be refitted; what that gains is printed."""
    spec, changed = model_spec(name), ModelConfig(name=name, restore=0.75)
    tile = tile_format(spec, (540, 720))
    planes = picture(tile.shape, spec.form.num_input_planes)
    engine = engine_of("tensorrt", ModelConfig(name=name, restore=0.25))
    sessions = [engine.open_session(tile)]
    before = sessions[0].result(sessions[0].submit(planes))
    assert engine.refit(changed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def no_names(network, max_side):
        raise EngineError("this test wants an engine that is not refittable")

    monkeypatch.setattr("srstream.engines.tensorrt.engines.weight_names", no_names)
    sessions.append(engine_of("tensorrt", changed).open_session(tile))
    refitted, own = (session.result(session.submit(planes)) for session in sessions)
    for one, other, old in zip(refitted, own, before, strict=True):
        assert (np.abs(one.astype(int) - other) > 1).mean() <= 0.001
        assert not np.array_equal(one, old)
    milliseconds = []
    for session in sessions:
        began = time.perf_counter()
        for _ in range(20):
            session.result(session.submit(planes))
        milliseconds.append((time.perf_counter() - began) * 50)
    print(f"{name}: {milliseconds[0]:.2f} ms a tile refittable, {milliseconds[1]:.2f} ms if not")


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
