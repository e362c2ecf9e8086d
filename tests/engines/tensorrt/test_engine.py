"""TensorRT's engine with a recorder in place of TensorRT and CUDA: what is asked, and when."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from srstream.engines.contract import TileFormat
from srstream.engines.cuda.frames import RingFrames
from srstream.engines.tensorrt import build, weights
from srstream.engines.tensorrt import engine as tensorrt_engine
from srstream.engines.tensorrt.runtime import BuiltNetwork
from srstream.enhancer.enhancer import Enhancer
from srstream.errors import EngineError, EngineMemoryError
from srstream.frame import ColorSpec, Frame, FrameForm, PlaneLayout
from tests.engines.tensorrt.recorder import GIB, MADE, Engine, opened


def test_a_context_works_in_memory_for_its_own_shape(tensorrt):
    engine = Engine()
    BuiltNetwork(engine, (40, 64), torch.device("cpu"))
    assert engine.strategies == ["user managed"]
    assert engine.context.calls == [
        ("shape", (1, 1, 40, 64)),
        ("size",),
        ("memory", 64 * 40 * 64),
    ]


def test_a_shape_that_the_engine_does_not_take_is_an_error(tensorrt):
    with pytest.raises(EngineError, match="does not take tiles of 40x64"):
        BuiltNetwork(Engine(max_side=50), (40, 64), torch.device("cpu"))


def test_a_context_without_memory_is_a_lack_of_memory(tensorrt):
    with pytest.raises(EngineMemoryError):
        BuiltNetwork(Engine(has_memory=False), (40, 64), torch.device("cpu"))


def test_what_tensorrt_measures_stays_in_the_private_cache(machine):
    opened().open_session(TileFormat((40, 64), 8))
    folder = machine.folder / "tensorrt"
    assert machine.built[0]["timing_cache_path"] == str(folder / "timing.cache")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(list(folder.glob("*.engine"))) == 1


def test_a_cache_of_somebody_else_s_is_not_used(machine, monkeypatch, caplog):
    """Neither is TensorRT's; it gets a folder for this time only."""
    (machine.folder / "tensorrt").mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    opened().open_session(TileFormat((40, 64), 8))
    path = Path(machine.built[0]["timing_cache_path"])
    assert machine.folder not in path.parents
    assert not path.parent.exists()
    assert "belongs to another user" in caplog.text
    assert not list(machine.folder.rglob("*.engine"))


def test_an_engine_built_while_memory_is_short_is_not_kept(machine, caplog):
    machine.free = 20 * GIB
    engine = opened()
    engine.open_session(TileFormat((40, 64), 8))
    assert not list(machine.folder.rglob("*.engine"))
    assert "20.0 of 80.0 GiB free" in caplog.text
    engine.open_session(TileFormat((40, 64), 8))
    assert len(machine.built) == 1, "this process goes on with it"
    machine.free = 70 * GIB
    opened().open_session(TileFormat((40, 64), 8))
    opened().open_session(TileFormat((40, 64), 8))
    assert len(machine.built) == 2, "the next one builds it once more, and keeps it"


@pytest.mark.parametrize(
    "error",
    [
        AssertionError(),
        RuntimeError("TensorRT build_serialized_network returned None; engine build failed."),
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[TRT] Error Code 2: OutOfMemory (Requested size was 12884901888 bytes.)"),
    ],
    ids=["assertion", "sentence", "pytorch", "tensorrt"],
)
def test_a_build_without_memory_is_a_lack_of_memory(error, machine):
    machine.error = error
    with pytest.raises(EngineMemoryError, match="no memory for tiles of 40x64"):
        opened().open_session(TileFormat((40, 64), 8))


def test_any_other_failure_of_a_build_is_not(machine):
    machine.error = ValueError("unsupported operator")
    with pytest.raises(EngineError, match="unsupported operator") as caught:
        opened().open_session(TileFormat((40, 64), 8))
    assert type(caught.value) is EngineError


@pytest.mark.parametrize(
    "tile",
    [TileFormat((build.MIN_SIDE - 1, 64), 8), TileFormat((40, 64), 16)],
    ids=["small", "deep"],
)
def test_what_engines_are_not_built_for_pytorch_computes(tile, machine):
    session = opened().open_session(tile)
    (made,) = session.result(session.submit([np.zeros(tile.shape, tile.dtype)]))
    assert made.shape == (4 * tile.shape[0], 256)
    assert not machine.built


def test_tiles_are_not_claimed_to_be_exact(machine):
    assert not opened().capabilities.tiles_are_exact


def test_an_engine_is_built_anew_when_the_graph_s_code_has_changed(machine, monkeypatch):
    opened().open_session(TileFormat((40, 64), 8))
    opened().open_session(TileFormat((40, 64), 8))
    assert len(machine.built) == 1
    monkeypatch.setattr(tensorrt_engine, "graph_sha256", lambda: "another")
    opened().open_session(TileFormat((40, 64), 8))
    assert len(machine.built) == 2
    assert len(weights.graph_sha256()) == 64


def test_whole_frames_run_on_the_built_network_between_graphs(machine):
    """They give what tiles and the composer give; the recorder's network makes one value."""
    engine, layout = opened(), PlaneLayout("yuv", 8, 1, 1)
    form = FrameForm(64, 48, layout, ColorSpec(1, 1, 1, False, 1))
    random = np.random.default_rng(0)
    planes = [
        random.integers(16, 236, layout.plane_shape(index, 64, 48), dtype=np.uint8)
        for index in range(3)
    ]
    planes[0][...] = round(255 * MADE)  # a network that changes the mean is refused
    frame = Frame(tuple(planes), layout, 64, 48, 0, Fraction(1, 25), color=form.color)
    outputs = []
    for whole in (True, False):
        given = engine if whole else SimpleNamespace(
            capabilities=engine.capabilities, open_session=engine.open_session
        )  # fmt: skip
        enhancer = Enhancer(given, form, form.scaled(4))
        outputs.append([*enhancer.push(frame), *enhancer.drain()])
        (session,) = enhancer._sessions._open.values()
        assert isinstance(session, RingFrames) == whole
        enhancer.close()
    (one,), (other,) = outputs
    assert all(map(np.array_equal, one.planes, other.planes))
    assert set(np.unique(one.planes[0])) == {round(255 * MADE)}
