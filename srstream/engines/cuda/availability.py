"""Whether PyTorch can use the GPU that it sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from srstream.errors import EngineError


def cuda_fault() -> str | None:
    """Return why PyTorch cannot compute on the current CUDA device; None if it can."""
    if not torch.cuda.is_available():
        return "PyTorch sees none"
    major, minor = torch.cuda.get_device_capability()
    if has_kernels((major, minor), torch.cuda.get_arch_list()):
        return None
    return (
        f"PyTorch {torch.__version__} has no kernels for {torch.cuda.get_device_name()} "
        f"(compute capability {major}.{minor})"
    )


def has_kernels(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Return whether PyTorch was built for a device, by its list such as `sm_80`, `compute_90`.

    Machine code (`sm`) runs on devices of the same major version and at least the same minor one;
    the driver translates the other kind (`compute`) for all that are newer.
    """
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        digits = "".join(filter(str.isdigit, number))
        if len(digits) < 2:
            continue
        built = int(digits[:-1]), int(digits[-1])
        is_same = built[0] == capability[0]
        if built <= capability and (is_same or kind == "compute"):
            return True
    return False


def check_cuda(engine: str) -> None:
    """Raise `EngineError` unless PyTorch can compute on a GPU."""
    fault = cuda_fault()
    if fault is not None:
        raise EngineError(
            f"engine {engine!r} needs an NVIDIA GPU with its driver, and {fault}; "
            "use --engine openvino on a CPU"
        )
