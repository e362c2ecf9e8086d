"""A device for TensorRT's ring of slots on machines without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srstream.engines.tensorrt.cuda import TORCH_DTYPES
from srstream.engines.tensorrt.ring import Array


class HostDevice:
    """The CPU as the ring of slots sees a device.

    Everything happens at once: a stream is None, an event has always happened, and pinned memory
    is ordinary memory.
    """

    def stream(self) -> None:
        return None

    def event(self) -> None:
        return None

    def pinned(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Tensor:
        return torch.empty(tuple(shape), dtype=TORCH_DTYPES[dtype])

    buffer = pinned

    def array(self, pinned: Tensor) -> Array:
        array = pinned.numpy()
        return array.view(np.uint16) if pinned.dtype == torch.int16 else array

    def copy(self, target: Tensor, source: Tensor, stream: None) -> None:
        target.copy_(source)

    def record(self, event: None, stream: None) -> None:
        return None

    def wait(self, stream: None, event: None) -> None:
        return None

    def has_happened(self, event: None) -> bool:
        return True

    def synchronize(self, event: None) -> None:
        return None

    def synchronize_all(self) -> None:
        return None
