"""Every engine is tested against the contract, with a made network and with those that ship."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import product

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from srstream.color import code_range, rgb_to_yuv_matrix
from srstream.config import EngineConfig, ModelConfig
from srstream.engines import table
from srstream.engines.contract import TileFormat
from srstream.engines.cuda.engine import CudaEngine
from srstream.engines.openvino.engine import OpenVinoEngine
from srstream.engines.table import ENGINES, choose_engine, open_engine
from srstream.engines.threads import ThreadSession
from srstream.errors import ConfigError, EngineError, WeightsError
from srstream.models.table import ModelSpec, ResidualGenerator, Stack, model_spec, weights_path
from tests.support.networks import flat_response, made_network, model_network, nearest_network
from tests.support.paths import REPOSITORY

SPEC = model_spec("fast")


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_network(tmp_path_factory.mktemp("network") / "made.onnx", layers=SPEC.halo)


SMALL_SPECS = {
    "luma": SPEC,
    "yuv420": ModelSpec("balanced", "yuv420", Stack((6, 6))),
    "rgb_stack": ModelSpec("rgb_stack", "rgb", Stack((7, 5))),
    "rgb": ModelSpec("srgan", "rgb", ResidualGenerator(channels=8, num_blocks=1)),
}
FORMATS = {
    "limited": TileFormat((24, 33), 8, matrix=1, full_range=False),
    "full": TileFormat((24, 33), 10, matrix=9, full_range=True),
    "deep": TileFormat((17, 12), 16, matrix=2, full_range=False),
}


def engine_for(path, name="openvino", threads=2, spec=SPEC):
    """Open an engine; without a GPU, `cuda` runs its program on the CPU."""
    config, model = EngineConfig(threads=threads), ModelConfig(weights=str(path))
    if name == "cuda" and not torch.cuda.is_available():
        return CudaEngine(config, model, spec, torch.device("cpu"))
    return open_engine(name, config, model, spec)


def luma_session(path, shape, bits, **options):
    return engine_for(path, **options).open_session(TileFormat(shape, bits))


def through(session, tile):
    """Send one luma tile through a session."""
    (plane,) = session.result(session.submit([tile]))
    return plane


def tile_of(shape, bits, seed=0):
    dtype = np.uint8 if bits == 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 1 << bits, shape, dtype=dtype)


def reference(path, tile, bits):
    """The codes that the contract requires, by ONNX's own evaluator in float."""
    unit = 255 << (bits - 8)  # networks are trained on codes of 8 bits in limited range
    values = (tile[None, None] / unit).astype(np.float32)
    (sr,) = ReferenceEvaluator(onnx.load(path)).run(None, {"y": values})
    return np.clip(sr[0, 0].astype(np.float64) * unit, 0, (1 << bits) - 1)


def color_reference(path, planes, tile, spec):
    """See `reference`; this is for RGB, or Y, U, V in limited range, converted by hand."""
    peak = (1 << tile.bits) - 1
    values = np.stack(planes).astype(np.float64)
    luma, chroma = (code_range(tile.bits, tile.full_range, is_chroma=c) for c in (False, True))
    zeros = np.array([luma.zero, chroma.zero, chroma.zero])[:, None, None]
    spans = np.array([luma.span, chroma.span, chroma.span])[:, None, None]
    if spec.color_form == "rgb":
        inverse = np.linalg.inv(rgb_to_yuv_matrix(tile.matrix))
        rgb = np.einsum("oi,ihw->ohw", inverse, (values - zeros) / spans)
        (sr,) = ReferenceEvaluator(onnx.load(path)).run(None, {"rgb": rgb[None].astype("f4")})
        if isinstance(spec.network, ResidualGenerator):
            sr = sr + flatness(path, spec, rgb)
        yuv = np.einsum("oi,ihw->ohw", rgb_to_yuv_matrix(tile.matrix), sr[0].astype(np.float64))
        return list(np.clip(yuv * spans + zeros, 0, peak))
    # Networks are trained on codes of 8 bits in limited range, divided by 255.
    gains = np.array([219.0, 224.0, 224.0])[:, None, None] / spans
    normal = (values - zeros) * gains + np.array([16.0, 128.0, 128.0])[:, None, None]
    feed = {"yuv": (normal[None] / 255).astype("f4")}
    results = ReferenceEvaluator(onnx.load(path)).run(None, feed)
    made = [plane.astype(np.float64) for group in results for plane in group[0]]
    columns = zip(made, (16.0, 128.0, 128.0), gains.ravel(), zeros.ravel(), strict=True)
    return [np.clip((255 * m - n) / g + z, 0, peak) for m, n, g, z in columns]


def flatness(path, spec, planes):
    """The correction that keeps flat pictures flat, for the planes of one group."""
    colors, which = np.unique(planes.reshape(3, -1).T, axis=0, return_inverse=True)
    (made,) = flat_response(path, spec, colors)
    cells = (colors[:, :, None, None] - made)[which.ravel()]
    _, height, width = planes.shape
    cells = cells.reshape(height, width, 3, 4, 4).transpose(2, 0, 3, 1, 4)
    return cells.reshape(1, 3, 4 * height, 4 * width)


HERE = ["openvino", "pytorch", "ncnn"]
EVERYWHERE = [*HERE, "cuda", pytest.param("tensorrt", marks=pytest.mark.needs_cuda)]
HALF_TOLERANCE = 4e-3
"""Largest error of half precision on noise, where errors are largest, as a share of the peak."""


def test_no_engine_is_left_out():
    assert {"tensorrt", "cuda", *HERE} == set(ENGINES)


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("form", ["yuv420", "rgb_stack", "rgb"])
@pytest.mark.parametrize("tile", FORMATS.values(), ids=FORMATS)
def test_models_of_several_planes(name, form, tile, tmp_path):
    """A 4:2:0 model returns Y at 4x and U, V at 2x; one that works in RGB returns Y, U, V at 4x."""
    spec = SMALL_SPECS[form]
    path = model_network(tmp_path / "made.onnx", spec)
    if spec.color_form != "rgb":
        tile = replace(tile, matrix=None)
    planes = [tile_of(tile.shape, tile.bits, seed) for seed in range(3)]
    if form == "rgb":  # the correction for flat pictures is computed sample by sample
        planes = [np.kron(plane[::6, ::6], np.ones((6, 6), plane.dtype)) for plane in planes]
        tile = replace(tile, shape=planes[0].shape)
    session = engine_for(path, name, spec=spec).open_session(tile)
    result = session.result(session.submit(planes))
    expected = color_reference(path, planes, tile, spec)
    scales = (4, 2, 2) if form == "yuv420" else (4, 4, 4)
    tolerance = 0.51 if tile.bits < 16 else 1.5
    if name in ("tensorrt", "cuda") and tile.bits < 16:
        tolerance = HALF_TOLERANCE * (1 << tile.bits)
    for made, true, scale in zip(result, expected, scales, strict=True):
        assert made.shape == (tile.shape[0] * scale, tile.shape[1] * scale)
        assert made.dtype == planes[0].dtype
        assert np.abs(made - true).max() <= tolerance
    with pytest.raises(EngineError, match="tiles of 3 planes was given one of 1"):
        session.submit(planes[:1])


GRAPHS = [("openvino", "made"), ("openvino", "nearest")]
"""Networks for which there is no weight file. Only OpenVINO runs any graph."""


@pytest.mark.parametrize(("name", "weights"), [*product(HERE, ["luma", "fast"]), *GRAPHS])
@pytest.mark.parametrize("bits", [8, 10, 16])
def test_result_is_the_rounded_clamped_network(name, weights, bits, made, tmp_path):
    path = {"made": made}.get(weights)
    if weights == "nearest":
        path = nearest_network(tmp_path / "nearest.onnx")
    if weights == "luma":
        path = model_network(tmp_path / "made.onnx", SPEC)
    path = path or weights_path(weights)
    tile = tile_of((24, 33), bits)
    session = luma_session(path, tile.shape, bits, name=name)
    result = through(session, tile)
    expected = reference(path, tile, bits)
    assert result.dtype == tile.dtype
    assert result.shape == (96, 132)
    assert result.flags.owndata or result.base.flags.owndata
    tolerance = 0.502 if bits < 16 else 0.75
    assert np.abs(result - expected).max() <= tolerance
    session.close()


@pytest.mark.parametrize("name", EVERYWHERE)
def test_many_tiles_in_flight_come_back_each_as_its_own(name, tmp_path):
    made = model_network(tmp_path / "made.onnx", SPEC)
    session = luma_session(made, (20, 30), 8, name=name)
    tiles = [tile_of((20, 30), 8, seed) for seed in range(4 * session.num_in_flight)]
    alone = [through(session, tile) for tile in tiles]
    tickets = [session.submit([tile]) for tile in tiles]
    backwards = [session.result(ticket)[0] for ticket in reversed(tickets)][::-1]
    for one, other in zip(alone, backwards, strict=True):
        assert np.array_equal(one, other)
    with pytest.raises(EngineError, match="collected before"):
        session.result(tickets[0])


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_finished_tile_notifies(name, tmp_path):
    """The call comes once for each tile, without anybody waiting, and the tile is done by then."""
    engine = engine_for(model_network(tmp_path / "made.onnx", SPEC), name)
    told = threading.Semaphore(0)
    session = engine.open_session(TileFormat((20, 30), 8), told.release)
    while told.acquire(timeout=0.2):
        pass  # opening may have computed a tile
    for first in (0, 100):
        tiles = [tile_of((20, 30), 8, first + n) for n in range(session.num_in_flight)]
        tickets = [session.submit([tile]) for tile in tiles]
        for _ in tickets:
            assert told.acquire(timeout=60)
        assert all(ticket.is_done() for ticket in tickets)
        assert not told.acquire(timeout=0.05)
        for tile, ticket in zip(tiles, tickets, strict=True):
            (made,) = session.result(ticket)
            (alone,) = session.result(session.submit([tile]))
            assert told.acquire(timeout=60) and np.array_equal(made, alone)
    session.submit([tiles[0]])
    session.close()


def test_a_tile_that_failed_notifies(tmp_path):
    """This is for engines that compute in threads; the ring's is in cuda/test_ring.py."""

    def run(codes, tile):
        raise RuntimeError("no memory")

    can = engine_for(model_network(tmp_path / "made.onnx", SPEC), "pytorch").capabilities
    told = threading.Semaphore(0)
    session = ThreadSession(run, TileFormat((20, 30), 8), can, told.release)
    ticket = session.submit([tile_of((20, 30), 8)])
    assert told.acquire(timeout=60) and ticket.is_done()
    with pytest.raises(EngineError, match="no memory"):
        session.result(ticket)
    session.close()


@pytest.mark.parametrize("weights", ["made", "fast"])
def test_result_does_not_depend_on_the_number_of_streams(weights, made):
    path = made if weights == "made" else weights_path(weights)
    tile = tile_of((90, 160), 8)
    results = []
    for threads in (1, 2, 4):
        session = luma_session(path, tile.shape, 8, threads=threads)
        tickets = [session.submit([tile]) for _ in range(6)]
        results += [session.result(ticket)[0] for ticket in tickets]
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_submitted_tile_may_be_changed_at_once_and_be_any_view(name, tmp_path):
    made = model_network(tmp_path / "made.onnx", SPEC)
    session = luma_session(made, (16, 16), 8, name=name)
    picture = tile_of((40, 40), 8)
    picture.flags.writeable = False
    expected = through(session, picture[5:21, 7:23].copy())
    assert np.array_equal(through(session, picture[5:21, 7:23]), expected)
    tile = picture[5:21, 7:23].copy()
    ticket = session.submit([tile])
    tile[:] = 0
    assert np.array_equal(session.result(ticket)[0], expected)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_tile_of_another_shape_or_dtype_is_refused(name, tmp_path):
    made = model_network(tmp_path / "made.onnx", SPEC)
    session = luma_session(made, (16, 16), 8, name=name)
    with pytest.raises(EngineError, match=r"\(16, 17\)"):
        session.submit([np.zeros((16, 17), np.uint8)])
    with pytest.raises(EngineError, match="uint16"):
        session.submit([np.zeros((16, 16), np.uint16)])
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.submit([np.zeros((16, 16), np.uint8)])


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_cache_is_rebuilt(damage, made, tmp_path, caplog):
    cache = tmp_path / "blobs"
    tile = tile_of((16, 24), 8)

    def enhance():
        engine = OpenVinoEngine(
            EngineConfig(threads=1), ModelConfig(weights=str(made)), SPEC, cache_dir=cache
        )
        return through(engine.open_session(TileFormat(tile.shape, 8)), tile)

    first = enhance()
    (blob,) = cache.iterdir()
    good = blob.read_bytes()
    assert np.array_equal(enhance(), first)
    assert not caplog.records
    middle = len(good) // 2
    flipped = good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :]
    blob.write_bytes({"flipped": flipped, "cut": good[:middle], "empty": b""}[damage])
    assert np.array_equal(enhance(), first)
    assert "damaged" in caplog.text
    assert [path.name for path in cache.iterdir()] == [blob.name]
    assert np.array_equal(enhance(), first)


def test_an_unwritable_cache_costs_nothing_but_time(made, tmp_path):
    (tmp_path / "file").write_text("in the way")
    engine = OpenVinoEngine(
        EngineConfig(), ModelConfig(weights=str(made)), SPEC, cache_dir=tmp_path / "file" / "sub"
    )
    session = engine.open_session(TileFormat((16, 16), 8))
    assert through(session, np.zeros((16, 16), np.uint8)).shape == (64, 64)


@pytest.mark.parametrize("model", ["luma", "yuv420", "rgb_stack", "rgb"])
def test_every_engine_agrees_with_the_reference(model, tmp_path):
    """99.9 % of the samples are within one level of PyTorch's float32."""
    spec = SMALL_SPECS[model]
    path = model_network(tmp_path / "made.onnx", spec)
    tile = TileFormat((40, 56), 8, matrix=1 if spec.color_form == "rgb" else None)
    planes = [tile_of(tile.shape, 8, seed) for seed in range(spec.form.num_input_planes)]
    made = {}
    for name in (*HERE, "cuda"):
        session = engine_for(path, name, spec=spec).open_session(tile)
        made[name] = session.result(session.submit(planes))
        session.close()
    for name, results in made.items():
        for one, reference_plane in zip(results, made["pytorch"], strict=True):
            apart = np.abs(one.astype(int) - reference_plane)
            assert (apart > 1).mean() <= 0.001, name


def test_tiles_of_any_shape_are_the_same_bits_as_of_a_fixed_one():
    for name in HERE:
        engine = engine_for(weights_path("fast"), name)
        if not engine.capabilities.takes_any_shape:
            continue
        anything = engine.open_session(TileFormat(None, 8))
        for shape in [(1, 1), (9, 40), (33, 17), (64, 64)]:
            tile = tile_of(shape, 8)
            fixed = engine.open_session(TileFormat(shape, 8))
            assert np.array_equal(through(anything, tile), through(fixed, tile))
        with pytest.raises(EngineError):
            anything.submit([np.zeros((3, 4, 5), np.uint8)])


def test_bad_weights_are_one_sentence(tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.onnx: cannot be read"):
        engine_for(tmp_path / "absent.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"no graph at all")
    with pytest.raises(WeightsError, match=r"junk\.onnx") as caught:
        luma_session(tmp_path / "junk.onnx", (16, 16), 8)
    assert "\n" not in str(caught.value)


def test_table_names_what_there_is(monkeypatch):
    with pytest.raises(ConfigError, match="there are: openvino, pytorch, tensorrt, cuda, ncnn"):
        open_engine("abacus", EngineConfig(), ModelConfig(), SPEC)
    monkeypatch.setattr(table.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="pip install openvino"):
        choose_engine(EngineConfig(), ModelConfig(), SPEC)


@pytest.mark.parametrize(
    ("name", "package"), [("tensorrt", "torch-tensorrt"), ("cuda", r"(torch.*>=2\.11|\[cuda\])")]
)
def test_a_gpu_s_engine_without_its_package_or_a_gpu_is_one_sentence(name, package, monkeypatch):
    monkeypatch.setattr(table, "is_installed", lambda name: False)
    with pytest.raises(EngineError, match=rf"-m pip install .*{package}"):
        open_engine(name, EngineConfig(), ModelConfig(), SPEC)
    monkeypatch.setattr(table, "is_installed", lambda name: name != "ncnn")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(EngineError, match=f"engine '{name}' needs an NVIDIA.*--engine openvino"):
        open_engine(name, EngineConfig(), ModelConfig(), SPEC)
    engine, _ = choose_engine(EngineConfig(), ModelConfig(), SPEC)
    assert engine.capabilities.name == "openvino"


@pytest.mark.parametrize(
    ("installed", "has_gpu", "precision", "chosen"),
    [
        ({"tensorrt", "cuda", "ncnn"}, True, "float32", "tensorrt"),
        ({"tensorrt", "cuda"}, True, "bfloat16", "cuda"),
        ({"tensorrt", "cuda"}, True, "int8", "openvino"),
        ({"cuda", "ncnn"}, True, "float32", "cuda"),
        ({"ncnn"}, True, "float32", "ncnn"),
        ({"tensorrt", "cuda", "ncnn"}, False, "float32", "ncnn"),
    ],
)
def test_auto_prefers_tensorrt_then_cuda_then_the_cpu(
    installed, has_gpu, precision, chosen, monkeypatch
):
    monkeypatch.setattr(table, "is_installed", lambda name: name in installed)
    monkeypatch.setattr(table, "has_nvidia_driver", lambda: True)
    fault = None if has_gpu else "PyTorch sees none"
    monkeypatch.setattr("srstream.engines.cuda.availability.cuda_fault", lambda: fault)
    assert table.engine_name(EngineConfig(precision=precision), "balanced") == chosen


def test_pytorch_is_not_imported_to_find_out_that_there_is_no_driver():
    """Its import takes seconds, and every command on a machine without a GPU would pay them."""
    if table.has_nvidia_driver():
        pytest.skip("there is a driver")
    script = "import sys; from srstream.engines.table import can_run; "
    script += "assert not can_run('cuda'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)


def test_choice_is_explained(made):
    engine, reason = choose_engine(EngineConfig(threads=2), ModelConfig(weights=str(made)), SPEC)
    assert engine.capabilities.name == "openvino"
    assert engine.capabilities.weights == made
    assert reason.startswith("the engine for CPUs")
    assert "2 threads in 2 streams" in reason


def test_nothing_is_sent_by_importing_or_using_openvino(made, tmp_path):
    """Any name lookup and any connection of a fresh process fails the test."""
    script = f"""
import socket, sys
def refuse(*arguments, **named):
    print("CONNECTION", arguments, flush=True)
    raise OSError
socket.socket.connect = socket.getaddrinfo = refuse
import numpy as np
from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import TileFormat
from srstream.engines.table import choose_engine
from srstream.models.table import model_spec
engine, _ = choose_engine(EngineConfig(), ModelConfig(weights={str(made)!r}), model_spec("fast"))
session = engine.open_session(TileFormat((16, 16), 8))
session.result(session.submit([np.zeros((16, 16), np.uint8)]))
assert "openvino_telemetry" not in sys.modules
"""
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "CONNECTION" not in ran.stdout
    assert not (tmp_path / "intel").exists(), "openvino-telemetry left its client id"
