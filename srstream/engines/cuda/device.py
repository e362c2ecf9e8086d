"""CUDA for the ring of slots: streams, events, pinned memory, copies and graphs, by PyTorch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srstream.engines.cuda.ring import Array
from srstream.engines.faults import device_errors
from srstream.errors import EngineMemoryError

TORCH_DTYPES = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.uint16): torch.int16,
    np.dtype(np.float32): torch.float32,
}
"""Tensor types by numpy's. PyTorch has few operations on uint16, so int16 holds its bits."""

Work = Callable[[], None]
"""A function that computes on buffers of fixed addresses."""

Recorder = Callable[[Work, Any], Work]
"""Makes of a work a function that queues it in a stream: `CudaDevice.recorder`, `queued`."""

NUM_WARM_UPS = 3
"""Runs before a capture. In the first ones libraries choose algorithms, and they and PyTorch
allocate what they keep."""

_capture_lock = threading.Lock()
"""Held while a graph is captured. `torch.cuda.graph` waits for the whole device before it, which is
an error while another thread captures."""


class CudaDevice:
    """One CUDA device as a `srstream.engines.cuda.ring.Device`."""

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)

    def stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    def event(self) -> torch.cuda.Event:
        # With `blocking`, a waiting thread sleeps; otherwise it would keep a core busy.
        return torch.cuda.Event(blocking=True)

    def pinned(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Tensor:
        return torch.empty(tuple(shape), dtype=TORCH_DTYPES[dtype], pin_memory=True)

    def buffer(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Tensor:
        return torch.empty(tuple(shape), dtype=TORCH_DTYPES[dtype], device=self.device)

    def array(self, pinned: Tensor) -> Array:
        return as_array(pinned)

    def recorder(self) -> Recorder:
        """Return what captures works in CUDA graphs, which share their memory."""
        return GraphRecorder()

    def copy(self, target: Tensor, source: Tensor, stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)

    def record(self, event: torch.cuda.Event, stream: torch.cuda.Stream) -> None:
        event.record(stream)

    def wait(self, stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        stream.wait_event(event)

    def has_happened(self, event: torch.cuda.Event) -> bool:
        return event.query()

    def synchronize(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    def synchronize_all(self, streams: Sequence[torch.cuda.Stream]) -> Exception | None:
        error: Exception | None = None
        for stream in streams:
            try:
                stream.synchronize()
            except RuntimeError as raised:
                error = raised
        return error


class GraphRecorder:
    """A `Recorder` that captures each work in a CUDA graph.

    A replay is one call, whatever the number of kernels, and allocates nothing. The graphs share
    the memory between their kernels, so all must be replayed in one stream. They read a network's
    parameters where these are, so other values can be copied into them.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Work, stream: torch.cuda.Stream) -> Work:
        graph = torch.cuda.CUDAGraph()
        with _capture_lock:
            with torch.cuda.stream(stream):
                for _ in range(NUM_WARM_UPS):
                    work()
            stream.synchronize()
            # Other threads may allocate meanwhile, which the other modes forbid.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                work()
        self._pool = graph.pool()
        return _Replay(graph, stream, work)


@dataclass(frozen=True, slots=True)
class _Replay:
    """A captured graph."""

    graph: torch.cuda.CUDAGraph
    stream: torch.cuda.Stream
    work: Work
    """It owns the parameters, constants and buffers that the graph reads."""

    def __call__(self) -> None:
        with torch.cuda.stream(self.stream):
            self.graph.replay()


def queued(work: Work, stream: torch.cuda.Stream) -> Work:
    """Queue a work kernel by kernel: a `Recorder` for what cannot be captured."""

    def run() -> None:
        with torch.cuda.stream(stream):
            work()

    return run


def free_cached_memory() -> None:
    """Return the device memory that PyTorch keeps for later to the device.

    On a broken device nothing happens; whoever uses it next is told.
    """
    with _capture_lock, contextlib.suppress(RuntimeError):
        torch.cuda.empty_cache()


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Sort the errors of opening a session; after a lack of memory, free what is only cached."""
    try:
        with device_errors(f"the GPU cannot compute {what}"):
            yield
    except EngineMemoryError as error:
        free_cached_memory()
        raise EngineMemoryError(f"the GPU has no memory for {what}") from error


def as_array(pinned: Tensor) -> Array:
    """Return a host tensor of codes as a numpy array of the same memory."""
    array = pinned.numpy()
    return array.view(np.uint16) if pinned.dtype == torch.int16 else array
