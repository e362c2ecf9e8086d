"""What the CUDA device asks of PyTorch, in what order, on a recorder in place of `torch.cuda`."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import TileFormat
from srstream.engines.cuda import device as cuda_device
from srstream.engines.cuda.device import NUM_WARM_UPS, CudaDevice
from srstream.engines.cuda.engine import CudaEngine
from srstream.engines.cuda.ring import NUM_SLOTS
from srstream.engines.cuda.session import RingSession
from srstream.engines.table import open_engine
from srstream.models.table import COLOR_FORMS, model_spec

TILE = TileFormat((8, 8), 8)


class Recorder:
    """Takes the place of `torch.cuda` in the device's module, on the CPU."""

    def __init__(self):
        self.calls, self.now = [], "default"
        self.capturing = None

    def say(self, *what):
        self.calls.append(what)

    def Stream(self, device):
        stream = SimpleNamespace(name=f"stream {sum(c[0] == 'new stream' for c in self.calls)}")
        stream.synchronize = lambda: self.say("synchronize", stream.name)
        stream.wait_event = lambda event: self.say("wait", stream.name)
        self.say("new stream", stream.name)
        return stream

    def Event(self, **options):
        self.say("new event", options)
        return SimpleNamespace(
            record=lambda stream: self.say("record", stream.name),
            synchronize=lambda: None,
            query=lambda: True,
        )

    @contextlib.contextmanager
    def stream(self, stream):
        self.now, before = stream.name, self.now
        yield
        self.now = before

    def CUDAGraph(self):
        graph = SimpleNamespace(pool=lambda: "the pool")
        graph.replay = lambda: self.say("replay", self.now)
        return graph

    @contextlib.contextmanager
    def graph(self, graph, **options):
        assert cuda_device._capture_lock.locked()
        self.say("capture", {**options, "stream": options["stream"].name})
        self.capturing = graph
        yield
        self.capturing = None

    def empty_cache(self):
        assert cuda_device._capture_lock.locked()


@pytest.fixture
def cuda(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(torch, "cuda", recorder)
    return recorder


class HostMemory(CudaDevice):
    """The CUDA device with memory on the host."""

    def __init__(self):
        super().__init__(0)

    def pinned(self, shape, dtype):
        return torch.zeros(tuple(shape), dtype=cuda_device.TORCH_DTYPES[dtype])

    buffer = pinned


def session_on(cuda):
    runs = []

    def program(codes, outputs):
        runs.append((codes.data_ptr(), cuda.capturing is not None))

    device = HostMemory()
    form = COLOR_FORMS["luma"]
    return RingSession(TILE, form, device, program, device.recorder()), runs


def test_a_graph_is_captured_for_each_slot_after_warming_up(cuda):
    _, runs = session_on(cuda)
    assert [captured for _, captured in runs] == ([False] * NUM_WARM_UPS + [True]) * NUM_SLOTS
    assert len({address for address, captured in runs if captured}) == NUM_SLOTS
    captures = [options for name, options, *_ in cuda.calls if name == "capture"]
    compute = captures[0]["stream"]
    assert [each["pool"] for each in captures] == [None, "the pool", "the pool"]
    assert {each["stream"] for each in captures} == {compute}
    assert {each["capture_error_mode"] for each in captures} == {"thread_local"}
    first = [call[0] for call in cuda.calls].index("capture")
    assert ("synchronize", compute) in cuda.calls[:first], "the warm-up has ended"


def test_tiles_are_replayed_on_the_stream_of_the_capture(cuda):
    session, runs = session_on(cuda)
    num_runs = len(runs)
    compute = next(c[1]["stream"] for c in cuda.calls if c[0] == "capture")
    for _ in range(5):
        session.result(session.submit([np.zeros(TILE.shape, np.uint8)]))
    assert len(runs) == num_runs, "nothing but the graphs computes"
    assert [call for call in cuda.calls if call[0] == "replay"] == [("replay", compute)] * 5


def test_threads_that_wait_for_an_event_sleep(cuda):
    session_on(cuda)
    events = [call[1] for call in cuda.calls if call[0] == "new event"]
    assert events == [{"blocking": True}] * (3 * NUM_SLOTS)


def test_an_error_of_a_stream_is_returned_and_the_others_are_waited_for(cuda):
    device = HostMemory()
    streams = [device.stream() for _ in range(3)]

    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    streams[1].synchronize = broken
    assert "illegal memory access" in str(device.synchronize_all(streams))
    assert ("synchronize", "stream 2") in cuda.calls
    streams[1].synchronize = lambda: None
    assert device.synchronize_all(streams) is None


@pytest.mark.parametrize("name", ["pytorch", "cuda"])
def test_float32_is_not_tf32(name):
    """By default, convolutions of cuDNN round their factors to 11 bits."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    spec, model = model_spec("fast"), ModelConfig(name="fast")
    if name == "cuda":
        CudaEngine(EngineConfig(), model, spec, torch.device("cpu"))
    else:
        open_engine(name, EngineConfig(threads=1), model, spec)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
