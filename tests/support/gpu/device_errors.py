"""For a process of its own: lets a tile fail on a device in one way, and prints what the ring says.

    python -m tests.support.gpu.device_errors python|memory|assert cuda|cpu

It prints the class of the error, whether the device counts as broken, and whether the tile after it
came out right. A device assert breaks the process's context, so no other process may share it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from srstream.engines.cuda.device import CudaDevice, queued
from srstream.engines.cuda.host import HostDevice
from srstream.engines.cuda.ring import Ring
from srstream.engines.faults import device_fault
from srstream.errors import EngineError
from tests.support.gpu.ring import FORM_IN, FORMS_OUT, TorchNetwork, is_right, prepared_by, tile
from tests.support.paths import REPOSITORY

TOO_MUCH = 1 << 50
"""Bytes that no device has."""

DEVICE_ERRORS = {
    "python": "EngineError False True",
    "memory": "EngineMemoryError False True",
    "assert": "DeviceFaultError True False",
}
"""What is printed for each kind on a GPU. The CPU has no device assert."""


def sorted_error(kind: str, on: str) -> str:
    """Run this module in a process of its own and return what it prints."""
    command = [sys.executable, "-m", "tests.support.gpu.device_errors", kind, on]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return ran.stdout.strip() or ran.stderr[-500:]


def fail(kind: str, device: torch.device) -> None:
    """Fail in a stream, or while work is queued in one."""
    if kind == "python":
        raise RuntimeError("no fault of the device")
    if kind == "memory":
        torch.empty(TOO_MUCH, dtype=torch.uint8, device=device)
    elif kind == "assert":
        torch.zeros(3, device=device)[torch.tensor([5], device=device)]
    else:
        raise ValueError(kind)


def main() -> None:
    kind, on = sys.argv[1:]
    device: Any = HostDevice() if on == "cpu" else CudaDevice(torch.cuda.current_device())
    network = TorchNetwork(device.device)
    failures = [kind]

    def program(codes: Tensor, outputs: Sequence[Tensor]) -> None:
        if failures:
            fail(failures.pop(), device.device)
        network(codes, outputs)

    record = device.recorder() if on == "cpu" else queued
    ring = Ring(device, [FORM_IN], FORMS_OUT, prepared_by(record, program))
    said = "none"
    try:
        ring.result(ring.submit(list(tile(0))))
    except EngineError as error:
        said = type(error).__name__
    try:
        is_next_right = is_right(ring.result(ring.submit(list(tile(1)))), 1)
    except EngineError:
        is_next_right = False
    print(said, device_fault() is not None, is_next_right)


if __name__ == "__main__":
    main()
