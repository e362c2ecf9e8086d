"""TensorRT's engine with a recorder in place of TensorRT and CUDA: what is asked, and when."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import TileFormat
from srstream.engines.cuda.host import HostDevice
from srstream.engines.tensorrt import build
from srstream.engines.tensorrt import engine as tensorrt_engine
from srstream.engines.tensorrt.engine import SIDES, TensorRtEngine
from srstream.engines.tensorrt.runtime import BuiltNetwork
from srstream.errors import EngineError, EngineMemoryError
from srstream.models.table import model_spec

GIB = 1 << 30


class Context:
    """An execution context, which computes nothing."""

    def __init__(self, engine):
        self.engine, self.calls = engine, []

    def set_input_shape(self, name, shape):
        self.calls.append(("shape", shape))
        self.shape = shape
        return max(shape[2:]) <= self.engine.max_side

    def update_device_memory_size_for_shapes(self):
        self.calls.append(("size",))
        return 64 * self.shape[2] * self.shape[3]

    def set_device_memory(self, address, num_bytes):
        self.calls.append(("memory", num_bytes))

    def get_tensor_shape(self, name):
        return (1, 1, 4 * self.shape[2], 4 * self.shape[3])

    def set_tensor_address(self, name, address):
        return True

    def execute_async_v3(self, stream):
        return True


class Engine:
    def __init__(self, max_side=SIDES[0], has_memory=True):
        self.max_side, self.has_memory = max_side, has_memory
        self.num_io_tensors, self.strategies = 2, []

    def get_tensor_name(self, index):
        return ("in", "out")[index]

    def get_tensor_mode(self, name):
        return name

    def get_tensor_shape(self, name):
        return (1, 1, -1, -1)

    def create_execution_context(self, strategy):
        self.strategies.append(strategy)
        self.context = Context(self)
        return self.context if self.has_memory else None


@pytest.fixture
def tensorrt(monkeypatch):
    module: Any = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)
    module.TensorIOMode = SimpleNamespace(INPUT="in")
    strategies = SimpleNamespace(USER_MANAGED="user managed")
    module.ExecutionContextAllocationStrategy = strategies
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture
def machine(tensorrt, monkeypatch, tmp_path):
    """A machine on which TensorRT "builds" engines; `free` is the device's free memory."""
    state = SimpleNamespace(free=70 * GIB, built=[], error=None, folder=tmp_path / "srstream")

    def convert(exported, **options):
        state.built.append(options)
        if state.error is not None:
            raise state.error
        return b"an engine"

    dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=convert)
    fake = SimpleNamespace(dynamo=dynamo, Input=lambda **given: given)
    monkeypatch.setattr(build, "import_torch_tensorrt", lambda: fake)
    monkeypatch.setattr(tensorrt_engine, "import_torch_tensorrt", lambda: fake)
    monkeypatch.setattr(tensorrt_engine, "versions", lambda: {"tensorrt": "11.4"})
    monkeypatch.setattr(tensorrt_engine, "check_cuda", lambda name: None)
    monkeypatch.setattr(tensorrt_engine, "CudaDevice", lambda index: HostDevice())
    monkeypatch.setattr(tensorrt_engine, "deserialized", lambda content: Engine())
    monkeypatch.setattr(tensorrt_engine, "user_cache_dir", lambda name: str(state.folder))
    monkeypatch.setattr(tensorrt_engine, "queued", lambda program: HostDevice().prepare(program))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA Recorder")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (state.free, 80 * GIB))
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0), raising=False
    )
    return state


def opened():
    return TensorRtEngine(EngineConfig(), ModelConfig(name="fast"), model_spec("fast"))


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
    assert len(build.graph_sha256()) == 64
