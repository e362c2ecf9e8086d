"""Machines on which a recorder stands for TensorRT and CUDA."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from srstream.engines import faults
from srstream.engines.cuda.host import HostDevice
from srstream.engines.tensorrt import build, weights
from srstream.engines.tensorrt import engine as tensorrt_engine
from srstream.engines.tensorrt import engines as tensorrt_engines
from tests.engines.tensorrt.recorder import GIB, Engine, Refitter


@pytest.fixture
def tensorrt(monkeypatch):
    module: Any = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)
    module.TensorIOMode = SimpleNamespace(INPUT="in")
    strategies = SimpleNamespace(USER_MANAGED="user managed")
    module.ExecutionContextAllocationStrategy = strategies
    module.DataType = SimpleNamespace(HALF="half")
    module.Logger = lambda level: level
    module.Logger.ERROR = "error"
    module.Refitter = Refitter
    module.Weights = lambda dtype, address, count: SimpleNamespace(address=address, count=count)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture
def machine(tensorrt, monkeypatch, tmp_path):
    """A machine on which TensorRT "builds" engines; `free` is the device's free memory.

    `error` is raised by all builds, `refit_error` by those of refittable engines; `lost` are the
    tensors that a built engine does not list.
    """
    state = SimpleNamespace(
        free=70 * GIB, built=[], loaded=[], error=None, refit_error=None, lost=set(), extra=[]
    )
    state.folder = tmp_path / "srstream"

    def convert(exported, **options):
        state.built.append(options)
        error = state.error or (None if options["immutable_weights"] else state.refit_error)
        if error is not None:
            raise error
        names = [] if options["immutable_weights"] else exported.graph_signature.parameters
        return json.dumps(list(names)).encode()

    def deserialized(content):
        names = json.loads(content)
        listed = [f"[{name}]" for name in names if name not in state.lost]
        state.loaded.append(Engine(listed=[*listed, *state.extra], refittable=bool(names)))
        return state.loaded[-1]

    def weight_names(network, max_side):
        named = {f"[{name}]": name for name in weights.engine_tensors(network)}
        return {**named, "shape": None}

    dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=convert)
    fake = SimpleNamespace(dynamo=dynamo, Input=lambda **given: given)
    monkeypatch.setattr(build, "import_torch_tensorrt", lambda: fake)
    monkeypatch.setattr(tensorrt_engine, "import_torch_tensorrt", lambda: fake)
    monkeypatch.setattr(tensorrt_engine, "versions", lambda: {"tensorrt": "11.4"})
    monkeypatch.setattr(tensorrt_engine, "check_cuda", lambda name: None)
    monkeypatch.setattr(tensorrt_engine, "CudaDevice", lambda index: HostDevice())
    monkeypatch.setattr(tensorrt_engines, "deserialized", deserialized)
    monkeypatch.setattr(tensorrt_engines, "weight_names", weight_names)
    monkeypatch.setattr(tensorrt_engine, "user_cache_dir", lambda name: str(state.folder))
    monkeypatch.setattr(tensorrt_engine, "queued", HostDevice().recorder())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA Recorder")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *given: (state.free, 80 * GIB))
    monkeypatch.setattr(
        torch.cuda,
        "current_stream",
        lambda *given: SimpleNamespace(cuda_stream=0, synchronize=lambda: None),
        raising=False,
    )
    monkeypatch.setattr(faults, "_fault", None)
    return state
