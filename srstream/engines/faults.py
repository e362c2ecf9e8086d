"""Sorts the errors of PyTorch, CUDA and TensorRT: too little memory, a broken device, or any other.

After most CUDA errors the process's context on the device is broken, and every later call fails
with the same error ("sticky"). Only a new process gets a new context. A lack of memory breaks
nothing. Which errors are sticky depends on the driver, so every CUDA error counts as one that is
not about memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from srstream.errors import (
    DeviceFaultError,
    EngineError,
    EngineMemoryError,
    SrstreamError,
    first_line,
)

MEMORY_ERRORS = {"OutOfMemoryError", "MemoryError"}
"""Names of exception classes. PyTorch need not be imported to recognize its own."""

MEMORY_TEXTS = (
    "out of memory",
    "outofmemory",
    "not enough memory",
    "allocate memory",
    "cudaerrormemoryallocation",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "build_serialized_network returned none",
)
FAULT_ERRORS = {"AcceleratorError"}
FAULT_TEXTS = ("cuda error", "cuda driver error", "cudaerror", "cudnn_status", "cublas_status")

_lock = threading.Lock()
_fault: str | None = None


def device_fault() -> str | None:
    """Return how this process's device broke; None if it works as far as is known.

    The record is the process's, as the CUDA context is. Who owns the process ends it.
    """
    return _fault


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, is a lack of memory.

    torch-tensorrt reports an engine that could not be built by an assertion without a text, or by
    one sentence without a cause. The networks here are such as TensorRT can build, so it means that
    there was no memory.
    """
    return any(
        _is_of(cause, MEMORY_ERRORS, MEMORY_TEXTS)
        or (isinstance(cause, AssertionError) and not str(cause).strip())
        for cause in _causes(error)
    )


def is_device_fault(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, is one of CUDA that is not about memory."""
    return not is_out_of_memory(error) and any(
        isinstance(cause, DeviceFaultError) or _is_of(cause, FAULT_ERRORS, FAULT_TEXTS)
        for cause in _causes(error)
    )


def engine_error(what: str, *errors: BaseException | None) -> EngineError:
    """Return the error for what failed, and record a broken device (`device_fault`).

    Args:
        what: what failed, the beginning of a sentence.
        errors: the error, and those that the device gave when it was asked again.
    """
    found = [error for error in errors if error is not None]
    for error in found:
        if is_device_fault(error):
            return _broken(what, error)
    text = f"{what} ({first_line(found[0])})"
    return EngineMemoryError(text) if is_out_of_memory(found[0]) else EngineError(text)


@contextmanager
def device_errors(what: str) -> Iterator[None]:
    """Raise what PyTorch and CUDA raise as an error of srstream.

    Raises:
        EngineMemoryError: the device, or the host for pinned memory, has too little memory.
        DeviceFaultError: the device is broken for this process.
        EngineError: anything else.
    """
    try:
        yield
    except SrstreamError:
        raise
    except (RuntimeError, MemoryError, AssertionError) as error:
        raise engine_error(what, error) from error


def _broken(what: str, error: BaseException) -> DeviceFaultError:
    global _fault
    text = (
        f"{what} ({first_line(error)}). The GPU cannot be used any more by this process; start it "
        "again. If it happens again, see the kernel's log for NVIDIA's messages (Xid)."
    )
    with _lock:
        _fault = _fault or text
    return DeviceFaultError(text)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_of(error: BaseException, names: set[str], texts: tuple[str, ...]) -> bool:
    if any(kind.__name__ in names for kind in type(error).__mro__):
        return True
    said = str(error).lower()
    return any(text in said for text in texts)
