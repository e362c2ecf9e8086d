"""CUDA for the ring of slots: streams, events, pinned memory, copies and graphs, by PyTorch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srstream.engines.cuda.half import TileProgram
from srstream.engines.cuda.ring import Array, Prepare, Run

TORCH_DTYPES = {np.dtype(np.uint8): torch.uint8, np.dtype(np.uint16): torch.int16}
"""Tensor types for codes. PyTorch has few operations on uint16, so int16 holds its bits."""

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

    def prepare(self, program: TileProgram) -> Prepare:
        """Return what captures the program in a CUDA graph for each slot."""
        return GraphCapture(program)

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


class GraphCapture:
    """A `Prepare` that captures a program in a CUDA graph for each slot of a ring.

    A replay is one call, whatever the number of kernels, and allocates nothing. The graphs share
    the memory between their kernels, since the compute stream runs one after the other. They read
    the network's parameters where these are, so other values can be copied into them.
    """

    def __init__(self, program: TileProgram) -> None:
        self._program = program
        self._pool: Any = None

    def __call__(self, codes: Tensor, outputs: Sequence[Tensor], stream: torch.cuda.Stream) -> Run:
        graph = torch.cuda.CUDAGraph()
        with _capture_lock:
            if self._pool is None:
                with torch.cuda.stream(stream):
                    for _ in range(NUM_WARM_UPS):
                        self._program(codes, outputs)
                stream.synchronize()
            # Other threads may allocate meanwhile, which the other modes forbid.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                self._program(codes, outputs)
        self._pool = graph.pool()
        return _Replay(graph, stream, self._program)


@dataclass(frozen=True, slots=True)
class _Replay:
    """A `Run` of a captured graph."""

    graph: torch.cuda.CUDAGraph
    stream: torch.cuda.Stream
    program: TileProgram
    """It owns the parameters and constants that the graph reads. The slot owns the buffers."""

    def __call__(self) -> None:
        with torch.cuda.stream(self.stream):
            self.graph.replay()


def queued(program: Callable[[Tensor, Sequence[Tensor]], None]) -> Prepare:
    """Return what queues a program kernel by kernel, for one that cannot be captured."""

    def prepare(codes: Tensor, outputs: Sequence[Tensor], stream: torch.cuda.Stream) -> Run:
        def run() -> None:
            with torch.cuda.stream(stream):
                program(codes, outputs)

        return run

    return prepare


def free_cached_memory() -> None:
    """Return the device memory that PyTorch keeps for later to the device.

    On a broken device nothing happens; whoever uses it next is told.
    """
    with _capture_lock, contextlib.suppress(RuntimeError):
        torch.cuda.empty_cache()


def as_array(pinned: Tensor) -> Array:
    """Return a host tensor of codes as a numpy array of the same memory."""
    array = pinned.numpy()
    return array.view(np.uint16) if pinned.dtype == torch.int16 else array
