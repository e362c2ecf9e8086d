"""The machine: card, driver, libraries, packages, and the rates that bound everything else."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable
from importlib import metadata, util

import torch

from gpu.stages.report import TREE, Report, has_gpu, run_stage
from srstream.engines.cuda.availability import cuda_fault
from srstream.engines.cuda.half import true_float32

REPEATS = 7


def main(report: Report) -> None:
    packages(report)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    report.figure("machine", f"{cores} cores, {memory:.0f} GiB, Linux {platform.release()}")
    for tool in ("gcc", "nvcc", "compute-sanitizer", "nvidia-smi"):
        report.figure(tool, shutil.which(tool) or "not there")
    if has_gpu():
        card(report)
        rates(report)
        return
    report.not_shown("card and driver")
    report.not_shown("libnvcuvid")
    report.not_shown("copies on the device and to it")
    report.not_shown("float16 matrix product")
    rate = product_rate(torch.device("cpu"), torch.float32, 1024)
    report.figure("float32 matrix product", f"{rate / 1e9:.0f} GFLOP/s on the CPU")


def packages(report: Report) -> None:
    """Note which packages there are: an environment with more would prove less."""
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "av")]
    report.figure("versions", ", ".join([f"Python {platform.python_version()}", *versions]))
    found = {_normal(distribution.name) for distribution in metadata.distributions()}
    others = sorted(found - _named("machine.txt") - _named("carried.txt"))
    report.figure("packages that no list names", ", ".join(others) or "none")
    engines = [name for name in ("openvino", "ncnn", "torch_tensorrt") if util.find_spec(name)]
    report.check("other engines", not engines, ", ".join(engines) or "none is installed")


def _named(name: str) -> set[str]:
    lines = (TREE / "gpu" / name).read_text().splitlines()
    return {_normal(line.partition("#")[0].strip()) for line in lines}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def card(report: Report) -> None:
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    report.figure("card and driver", said.stdout.strip() or torch.cuda.get_device_name())
    major, minor = torch.cuda.get_device_capability()
    fault = cuda_fault()
    report.check("kernels", fault is None, fault or f"for compute capability {major}.{minor}")
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError as error:
        report.check("libnvcuvid", False, f"{error}; NVDEC cannot be used")
    else:
        report.check("libnvcuvid", True, "loads")


def rates(report: Report) -> None:
    report.figure("copies on the device", f"{copy_rate() / 1e12:.2f} TB/s, read and written")
    up, down = bus_rates()
    report.figure("copies from pinned memory", f"{up / 1e9:.1f} GB/s")
    report.figure("copies to pinned memory", f"{down / 1e9:.1f} GB/s")
    device = torch.device("cuda")
    half = product_rate(device, torch.float16, 8192)
    report.figure("float16 matrix product", f"{half / 1e12:.0f} TFLOP/s")
    true_float32()
    single = product_rate(device, torch.float32, 8192)
    # TF32 has half of float16's rate, true float32 less than a tenth.
    value = f"{single / 1e12:.0f} TFLOP/s with TF32 off"
    report.check("float32 matrix product", single < half / 5, value)


def seconds_of(work: Callable[[], object]) -> float:
    """Return the median time of some work on a GPU, by events around each run."""
    for _ in range(3):
        work()
    times = []
    for _ in range(REPEATS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        work()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / 1000)
    return statistics.median(times)


def copy_rate(num_bytes: int = 4 << 30) -> float:
    """Return bytes read and written per second by a copy on the device."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * num_bytes / seconds_of(lambda: target.copy_(source))


def bus_rates(num_bytes: int = 256 << 20) -> tuple[float, float]:
    """Return bytes per second to the device and back, from and to pinned memory."""
    host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
    up = seconds_of(lambda: device.copy_(host, non_blocking=True))
    down = seconds_of(lambda: host.copy_(device, non_blocking=True))
    return num_bytes / up, num_bytes / down


def product_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Return operations per second of a matrix product of random numbers."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    if device.type == "cuda":
        seconds = seconds_of(lambda: left @ right)
    else:
        from torch.utils.benchmark import Timer

        timer = Timer("left @ right", globals={"left": left, "right": right})
        seconds = timer.timeit(REPEATS).median
    return 2 * side**3 / seconds


if __name__ == "__main__":
    run_stage(main)
