"""CUDA for the ring of slots: streams, events, pinned memory and copies, through PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srstream.engines.tensorrt.ring import Array

TORCH_DTYPES = {np.dtype(np.uint8): torch.uint8, np.dtype(np.uint16): torch.int16}
"""Tensor types for codes. PyTorch has few operations on uint16, so int16 holds its bits."""


class CudaDevice:
    """One CUDA device as a `srstream.engines.tensorrt.ring.Device`."""

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
        array = pinned.numpy()
        return array.view(np.uint16) if pinned.dtype == torch.int16 else array

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

    def synchronize_all(self) -> None:
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            return  # `result` raises the error for its tile
