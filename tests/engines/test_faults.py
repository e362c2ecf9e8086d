"""Errors of CUDA by class and by text: too little memory, a broken device, or another."""

from __future__ import annotations

import pytest
import torch

from srstream.engines import faults
from srstream.engines.faults import device_errors, device_fault, engine_error
from srstream.errors import (
    DeviceFaultError,
    EngineError,
    EngineMemoryError,
    UsageError,
    WeightsError,
)
from tests.support.gpu.device_errors import DEVICE_ERRORS, sorted_error


@pytest.fixture(autouse=True)
def clean_record(monkeypatch):
    """Nothing that a test breaks is recorded as broken in this process."""
    monkeypatch.setattr(faults, "_fault", None)


ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be late"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"),
            EngineMemoryError,
        ),
        (torch.AcceleratorError("CUDA error: out of memory"), EngineMemoryError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), EngineMemoryError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), EngineMemoryError),
        (MemoryError(), EngineMemoryError),
        (AssertionError(), EngineMemoryError),
        (torch.AcceleratorError(ILLEGAL), DeviceFaultError),
        (torch.AcceleratorError("a text of a version to come"), DeviceFaultError),
        (RuntimeError(ILLEGAL), DeviceFaultError),
        (RuntimeError("CUDA driver error: device not ready"), DeviceFaultError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), DeviceFaultError),
        (RuntimeError("The size of tensor a (3) must match"), EngineError),
        (AssertionError("a text"), EngineError),
    ],
    ids=lambda value: str(value).split("\n")[0][:40] if isinstance(value, Exception) else "",
)
def test_errors_are_sorted_into_one_sentence(error, kind):
    with (
        pytest.raises(EngineError, match=r"^the device failed \(") as caught,
        device_errors("the device failed"),
    ):
        raise error
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error
    assert (device_fault() is not None) == (kind is DeviceFaultError)


def test_the_cause_of_an_error_counts():
    outer = EngineError("TensorRT cannot build")
    outer.__cause__ = torch.cuda.OutOfMemoryError("CUDA out of memory")
    assert isinstance(engine_error("it failed", outer), EngineMemoryError)


def test_the_first_fault_is_the_one_that_is_told():
    """The later ones only say that the context is broken."""
    engine_error("tile 1", RuntimeError(ILLEGAL))
    engine_error("tile 2", RuntimeError("CUDA error: context is destroyed"))
    assert "tile 1" in device_fault()


@pytest.mark.parametrize("error", [WeightsError("w.onnx"), UsageError("--restore")])
def test_errors_of_srstream_pass(error):
    with pytest.raises(type(error)), device_errors("the device failed"):
        raise error


@pytest.mark.parametrize("kind", ["python", "memory"])
def test_an_error_of_a_tile_is_the_same_on_the_cpu(kind):
    """As on a GPU (tests/engines/test_cuda.py), but for the device assert, which a CPU has not."""
    assert sorted_error(kind, "cpu") == DEVICE_ERRORS[kind]
