"""For a process of its own: the command line, with `--engine cuda` on the CPU.

python -m tests.support.gpu.host_gpu enhance clip.mp4 --engine cuda
"""

from __future__ import annotations

from typing import Any

import torch

from srstream.cli.main import main
from srstream.engines.cuda.engine import CudaEngine


def use_host_device() -> None:
    """Let every `cuda` engine that this process opens run on the CPU."""
    real_init: Any = CudaEngine.__init__

    def on_the_host(self: CudaEngine, *arguments: Any) -> None:
        real_init(self, *arguments, torch.device("cpu"))

    CudaEngine.__init__ = on_the_host  # type: ignore[method-assign]


if __name__ == "__main__":
    use_host_device()
    main()
