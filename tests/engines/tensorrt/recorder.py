"""A recorder in place of TensorRT: what engines and refitters are asked, and the numbers given."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.tensorrt.engine import SIDES, TensorRtEngine
from srstream.models.blend import blend_of
from srstream.models.flat_network import blended_network
from srstream.models.table import model_spec

GIB = 1 << 30


MADE = 0.25
"""What the network of a context makes of everything."""


class Context:
    """An execution context, whose network returns `MADE`."""

    def __init__(self, engine):
        self.engine, self.calls, self.addresses = engine, [], {}

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
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        shape = self.get_tensor_shape("out")
        memory = (ctypes.c_uint16 * int(np.prod(shape))).from_address(self.addresses["out"])
        np.frombuffer(memory, np.float16)[...] = MADE
        return True


class Engine:
    """An engine; `held` are the numbers that it was given, by the names of its weights."""

    def __init__(self, max_side=SIDES[0], has_memory=True, listed=(), refittable=True):
        self.max_side, self.has_memory = max_side, has_memory
        self.num_io_tensors, self.strategies = 2, []
        self.refittable, self.listed = refittable, list(listed)
        self.held, self.num_refits, self.refuses = {}, 0, set()

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


class Refitter:
    """TensorRT's refitter: it reads all numbers in `refit_cuda_engine`, not before."""

    def __init__(self, engine, logger):
        assert engine.refittable
        self.engine, self.given = engine, {}

    def get_all_weights(self):
        return self.engine.listed

    def get_weights_prototype(self, name):
        return SimpleNamespace(dtype="int32" if "shape" in name else "half")

    def set_named_weights(self, name, given):
        if name not in self.engine.listed or "set" in self.engine.refuses:
            return False
        self.given[name] = given
        return True

    def get_missing_weights(self):
        return [n for n in self.engine.listed if n not in self.given and "shape" not in n]

    def refit_cuda_engine(self):
        assert not self.get_missing_weights()
        self.engine.num_refits += 1
        for name, given in self.given.items():
            numbers = (ctypes.c_uint16 * given.count).from_address(given.address)
            self.engine.held[name] = np.array(numbers, np.uint16).view(np.float16)
            if "refit" in self.engine.refuses:
                return False
        return True


def opened(name="fast", restore=0.0):
    model = ModelConfig(name=name, restore=restore)
    return TensorRtEngine(EngineConfig(), model, model_spec(name))


def tensors_of(name, restore):
    """The network's tensors in half precision, by the names of the weights in an engine."""
    spec = model_spec(name)
    network = blended_network(blend_of(ModelConfig(name=name, restore=restore), spec), spec)
    tensors = network.state_dict().items()
    return {f"[{key}]": value.half().flatten().numpy() for key, value in tensors}


def assert_holds(engine, expected):
    assert engine.held.keys() == expected.keys()
    assert all(np.array_equal(engine.held[name], expected[name]) for name in expected)
