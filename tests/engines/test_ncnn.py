"""ncnn beyond the contract: tiles that are not exact, Vulkan, and when `auto` chooses it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

from srstream.cli.bench import Network, rule_checks
from srstream.config import EngineConfig, ModelConfig, ReuseConfig
from srstream.engines import table
from srstream.engines.contract import TileFormat
from srstream.engines.table import choose_engine, engine_name, open_engine
from srstream.models.table import ModelSpec, Stack, model_spec
from tests.enhancer.test_reuse import HEIGHT, WIDTH, frames_of, run, same, scenes
from tests.support.networks import model_network
from tests.support.paths import REPOSITORY

ncnn = pytest.importorskip("ncnn")
SPEC = model_spec("balanced")


def vulkan_is_there() -> bool:
    try:
        ctypes.CDLL("libvulkan.so.1")
    except OSError:
        return False
    return ncnn.get_gpu_count() > 0


needs_vulkan = pytest.mark.skipif(
    not vulkan_is_there(),
    reason="no Vulkan device: apt-get install libvulkan1 mesa-vulkan-drivers brings a software one",
)


def engine_for(name="ncnn", **options):
    config = EngineConfig(threads=options.pop("threads", 1))
    return open_engine(name, config, ModelConfig(name="balanced"), SPEC)


def planes_of(shape, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, shape, np.uint8) for _ in range(3)]


def through(engine, planes):
    session = engine.open_session(TileFormat(planes[0].shape, 8))
    result = session.result(session.submit(planes))
    session.close()
    return result


def test_shipped_weights_agree_with_the_reference():
    """99.9 % of the samples are within one level, and few samples of noise are off by one."""
    planes = planes_of((90, 121))
    reference = through(engine_for("pytorch"), planes)
    for made, true in zip(through(engine_for(), planes), reference, strict=True):
        apart = np.abs(made.astype(int) - true)
        assert apart.max() <= 1
        assert (apart > 0).mean() < 1e-3


def test_a_tile_is_that_part_of_the_whole_but_for_single_codes():
    engine = engine_for()
    assert not engine.capabilities.tiles_are_exact
    planes, halo = planes_of((120, 160)), SPEC.halo
    whole = through(engine, planes)
    part = through(engine, [plane[31:101, 27:130] for plane in planes])
    for made, all_of_it, scale in zip(part, whole, (4, 2, 2), strict=True):
        inner = made[scale * halo : -scale * halo, scale * halo : -scale * halo]
        rows = slice(scale * (31 + halo), scale * (101 - halo))
        columns = slice(scale * (27 + halo), scale * (130 - halo))
        apart = np.abs(inner.astype(int) - all_of_it[rows, columns])
        assert apart.max() <= 1
        assert (apart > 0).mean() < 1e-3


def test_the_number_of_threads_changes_nothing():
    planes = planes_of((60, 80))
    alone = through(engine_for(threads=1), planes)
    engine = engine_for(threads=4)
    session = engine.open_session(TileFormat((60, 80), 8))
    for ticket in [session.submit(planes) for _ in range(8)]:
        assert all(map(np.array_equal, session.result(ticket), alone))


def made_engine(folder):
    spec = ModelSpec("balanced", "yuv420", Stack((6, 8, 6)))
    path = model_network(folder / "made.onnx", spec)
    return open_engine("ncnn", EngineConfig(threads=1), ModelConfig(weights=str(path)), spec)


@pytest.mark.parametrize("tile_pixels", [WIDTH * HEIGHT, 48 * 48])
def test_reuse_gives_the_same_result_to_the_bit(tile_pixels, tmp_path, monkeypatch):
    monkeypatch.setattr("srstream.engines.tiles.PREFERRED_TILE_PIXELS", tile_pixels)
    engine = made_engine(tmp_path)
    frames = frames_of(scenes())
    expected, (_, without) = run(engine, frames, ReuseConfig(enabled=False))
    made, (_, computed) = run(engine, frames, ReuseConfig())
    same(made, expected)
    assert computed < without


def test_with_a_threshold_changed_parts_are_computed_alone(tmp_path):
    engine = made_engine(tmp_path)
    frames = frames_of(scenes())
    _, (_, exactly) = run(engine, frames, ReuseConfig())
    _, (_, nearly) = run(engine, frames, ReuseConfig(threshold=1))
    assert nearly < exactly


def test_auto_takes_it_for_the_models_that_are_faster_in_it(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    engine, reason = choose_engine(EngineConfig(threads=1), ModelConfig(name="balanced"), SPEC)
    assert engine.capabilities.name == "ncnn"
    assert reason.startswith("the fastest engine for this model; ")
    assert engine_name(EngineConfig(), "fast") == "openvino"
    assert engine_name(EngineConfig(precision="int8"), "balanced") == "openvino"
    assert engine_name(EngineConfig(name="openvino"), "balanced") == "openvino"
    monkeypatch.setattr(table, "is_installed", lambda name: name == "openvino")
    assert engine_name(EngineConfig(), "balanced") == "openvino"


def test_bench_holds_the_rule_against_what_it_measured():
    def measured(**fps):
        return [Network(engine, "balanced", each, 1.0, 0.5) for engine, each in fps.items()]

    (right,) = rule_checks(measured(openvino=10.0, ncnn=17.0))
    assert right == "auto takes ncnn for balanced: 1.70 times as fast as openvino here."
    (wrong,) = rule_checks(measured(openvino=10.0, ncnn=8.0))
    assert "use --engine openvino" in wrong
    (missing,) = rule_checks(measured(openvino=10.0))
    assert "-m pip install 'ncnn" in missing


PROGRAM = """
import sys
import numpy as np
from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import TileFormat
from srstream.engines.ncnn.engine import NcnnEngine
from srstream.models.table import model_spec

tile = np.random.default_rng(0).integers(0, 256, (40, 53), np.uint8)
results = []
for software in (False, sys.argv[1] == "vulkan"):
    engine = NcnnEngine(
        EngineConfig(threads=1), ModelConfig(name="fast"), model_spec("fast"),
        software_vulkan=software,
    )
    session = engine.open_session(TileFormat(None, 8))
    results += [session.result(session.submit([tile]))[0] for _ in range(3)]
    session.close()
    print(engine.capabilities.device, flush=True)
    engine.close()
apart = np.abs(results[0].astype(int) - results[-1])
print(apart.max(), (apart > 0).mean() < 1e-3, np.array_equal(results[-1], results[-2]))
assert not {"torch", "onnx", "openvino"} & sys.modules.keys()
"""


def run_program(kind):
    """Run a program in its own process, so that a driver that crashes at its end is noticed."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, kind],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "VK_LOADER_DEBUG": ""},
        check=False,
    )


def test_nothing_is_said_on_standard_error_and_nothing_heavy_is_imported():
    done = run_program("cpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "0 True True"


@needs_vulkan
def test_software_vulkan_gives_what_the_cpu_does():
    done = run_program("vulkan")
    assert (done.returncode, done.stderr) == (0, "")
    first, second, compared = done.stdout.splitlines()
    assert first != second
    largest, is_rare, repeats = compared.split()
    assert int(largest) <= 1
    assert (is_rare, repeats) == ("True", "True")
