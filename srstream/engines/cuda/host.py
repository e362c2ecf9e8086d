"""The CPU as the ring of slots sees a device: what a GPU does at once, it does one after the other.

It shows on a machine without a GPU that the program and the ring's handling of slots are right.
Nobody is offered it as an engine, since OpenVINO is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srstream.engines.cuda.device import TORCH_DTYPES, Recorder, as_array
from srstream.engines.cuda.ring import Array


class HostDevice:
    """A `srstream.engines.cuda.ring.Device` without streams.

    Everything happens at once: a stream is None, an event has always happened, and pinned memory
    is ordinary memory.
    """

    device = torch.device("cpu")

    def stream(self) -> None:
        return None

    def event(self) -> None:
        return None

    def pinned(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Tensor:
        return torch.empty(tuple(shape), dtype=TORCH_DTYPES[dtype])

    buffer = pinned

    def array(self, pinned: Tensor) -> Array:
        return as_array(pinned)

    def recorder(self) -> Recorder:
        """Return what leaves a work as it is; there are no graphs here."""
        return lambda work, stream: work

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

    def synchronize_all(self, streams: Sequence[None]) -> None:
        return None
