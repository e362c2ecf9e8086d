"""For a process of its own: `--engine cuda` on the CPU, as on a GPU that breaks once.

It breaks in a job, not where a daemon warms up, and only if the file that BREAK_ONCE names does not
exist, which is then made. From then on every call fails in this process, as CUDA's do.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srstream.engines.cuda import engine
from srstream.engines.cuda.host import HostDevice

NUM_GOOD_COPIES = 20
MESSAGE = "CUDA error: an illegal memory access was encountered"


class BreakingDevice(HostDevice):
    """The CPU in place of a GPU; `is_broken` is the process's, like a CUDA context."""

    is_broken = False
    num_copies = 0

    def copy(self, target: Tensor, source: Tensor, stream: None) -> None:
        once = Path(os.environ["BREAK_ONCE"])
        BreakingDevice.num_copies += 1
        if BreakingDevice.num_copies > NUM_GOOD_COPIES and not once.exists():
            once.touch()
            BreakingDevice.is_broken = True
        self.synchronize(None)
        super().copy(target, source, stream)

    def synchronize(self, event: None) -> None:
        if BreakingDevice.is_broken:
            raise torch.AcceleratorError(MESSAGE)


def break_engines() -> None:
    """Let every engine that this process opens run on such a device."""
    real_init: Any = engine.CudaEngine.__init__

    def on_the_host(self: engine.CudaEngine, *arguments: Any) -> None:
        real_init(self, *arguments, torch.device("cpu"))
        self._device = BreakingDevice()

    engine.CudaEngine.__init__ = on_the_host  # type: ignore[method-assign]
