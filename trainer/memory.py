"""Memory as something that runs out with a sentence: a bound for this process, and the words."""

from __future__ import annotations

import contextlib
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import cv2
import torch

from srstream.errors import SrstreamError
from srstream.memory import available_bytes, count_bytes

KEPT_FREE_BYTES = 256 << 20
"""Of what is available, so that the kernel need not look for a process to kill."""

OUT_OF_MEMORY = re.compile(
    "out of memory|can't allocate memory|not enough memory|bad_alloc|ALLOC_FAILED"
    "|could not create a (primitive|memory)",
    re.IGNORECASE,
)
"""What PyTorch and its libraries say of it, all as a RuntimeError."""


class OutOfMemoryError(SrstreamError):
    """The work takes more memory than the machine or the GPU has."""


def bound_memory() -> None:
    """Let this process take no more memory than is available now.

    Linux grants more than there is, and kills a process once it uses it. Below this bound the
    allocation fails instead, and can be put in words. With CUDA there is none, since its driver
    maps far more than it uses.
    """
    if torch.cuda.is_available():
        return
    available, taken = available_bytes(), _data_bytes()
    if available is None or taken is None:
        return
    bound = taken + max(available - KEPT_FREE_BYTES, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        bound = min(bound, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


@contextlib.contextmanager
def memory_in_words(advice: str) -> Iterator[None]:
    """Turn a failed allocation of PyTorch, NumPy or OpenCV into an `OutOfMemoryError`."""
    try:
        yield
    except (MemoryError, RuntimeError, cv2.error) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory: {_asked_for(error)}. {advice}. Where a checkpoint was written, "
            "--resume goes on from it."
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.StsNoMem
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def _asked_for(error: BaseException) -> str:
    """How much was asked for, as far as the error says it."""
    text = str(error)
    where = "the GPU" if "CUDA" in text else "this machine"
    counted = re.search(r"allocate (\d+) bytes", text)
    if counted:
        return f"{int(counted[1]) / (1 << 30):.1f} GiB beside what is in use did not fit {where}"
    named = re.search(r"allocate ([\d.]+ [KMGT]iB)", text)
    amount = named[1] if named else "what comes next"
    return f"{amount} beside what is in use did not fit {where}"


def _data_bytes() -> int | None:
    return count_bytes(Path("/proc/self/status")).get("VmData")
