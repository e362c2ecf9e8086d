"""The table of engines by name. Each is imported only when it is used."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from srstream.config import EngineConfig, ModelConfig, Precision
from srstream.errors import ConfigError, EngineError
from srstream.installing import install_command
from srstream.models.table import ModelSpec

if TYPE_CHECKING:
    from srstream.engines.contract import Engine


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """The location of an engine's class, the package it needs, and how to install that."""

    target: str
    """Module and class, joined by a colon. The class takes what `open_engine` takes but `name`."""
    package: str
    """The import name that must be installed."""
    extra: str | None = None
    """The extra that installs the package; None: the base package needs it."""
    precisions: tuple[Precision, ...] = ("float32",)
    """Values of `EngineConfig.precision` that it takes. The first one is the default, with which
    an engine for GPUs computes in float16."""
    needs_cuda: bool = False
    """Whether it runs on NVIDIA GPUs only."""

    @property
    def install(self) -> str:
        """Return the command that installs the package."""
        return install_command(self.extra) if self.extra else f"pip install {self.package}"


ENGINES: dict[str, EngineEntry] = {
    "openvino": EngineEntry(
        target="srstream.engines.openvino.engine:OpenVinoEngine",
        package="openvino",
        precisions=("float32", "bfloat16", "int8"),
    ),
    "pytorch": EngineEntry(
        target="srstream.engines.pytorch:PyTorchEngine",
        package="torch",
        extra="train",
    ),
    "tensorrt": EngineEntry(
        target="srstream.engines.tensorrt.engine:TensorRtEngine",
        package="torch_tensorrt",
        extra="tensorrt",
        needs_cuda=True,
    ),
    "cuda": EngineEntry(
        target="srstream.engines.cuda.engine:CudaEngine",
        package="torch",
        extra="cuda",
        precisions=("float32", "bfloat16"),
        needs_cuda=True,
    ),
    "ncnn": EngineEntry(
        target="srstream.engines.ncnn.engine:NcnnEngine",
        package="ncnn",
        extra="ncnn",
    ),
}

FASTER_IN_NCNN: dict[str, float] = {"balanced": 1.4}
"""Models for which `auto` prefers an installed ncnn on a CPU, with the measured speedup.

Measured in float32 at 320x180 on one core with AVX-512, where everything moves (docs/speed.md);
`srstream bench` repeats the measurement. `fast` was slower. `srgan` was 1.2 times as fast, which
is not worth more than twice the memory.
"""

WHY_CHOSEN = {
    "openvino": "the engine for CPUs",
    "ncnn": "the fastest engine for this model",
    "tensorrt": "the engine for NVIDIA GPUs",
    "cuda": "the engine for NVIDIA GPUs without TensorRT",
}

GPU_ENGINES = ("tensorrt", "cuda")
"""The engines that `auto` takes where there is an NVIDIA GPU, the preferred one first."""


def is_installed(name: str) -> bool:
    """Return whether the package that an engine needs is installed."""
    return importlib.util.find_spec(ENGINES[name].package) is not None


def check_engine(name: str, config: EngineConfig) -> None:
    """Check that the engine of this name is installed and computes in the precision asked for.

    Raises:
        ConfigError: no engine has this name.
        EngineError: its package is missing, or it does not.
    """
    if name not in ENGINES:
        raise ConfigError(f"no engine is called {name!r}; there are: {', '.join(ENGINES)}")
    if not is_installed(name):
        install = ENGINES[name].install
        raise EngineError(f"engine {name!r} needs a package that is missing: {install}")
    if config.precision not in ENGINES[name].precisions:
        takers = " and ".join(n for n, e in ENGINES.items() if config.precision in e.precisions)
        raise EngineError(
            f"--precision {config.precision} works with {takers} only; leave it out with {name}"
        )


def open_engine(name: str, config: EngineConfig, model: ModelConfig, spec: ModelSpec) -> Engine:
    """Open the engine of this name with the model's weights.

    Raises:
        ConfigError: no engine has this name.
        EngineError: its package is missing, or it cannot start.
        WeightsError: the weights are missing or damaged.
    """
    check_engine(name, config)
    module_name, class_name = ENGINES[name].target.split(":")
    engine_class = getattr(importlib.import_module(module_name), class_name)
    engine: Engine = engine_class(config, model, spec)
    return engine


def engine_name(config: EngineConfig, model: str) -> str:
    """Return the name of the engine to use; for `auto`, the fastest for the model here."""
    if config.name != "auto":
        return config.name
    return gpu_engine_name(config) or cpu_engine_name(config, model)


def gpu_engine_name(config: EngineConfig) -> str | None:
    """Return the name of the engine that `auto` means on an NVIDIA GPU; None if none can run.

    An engine that does not compute in the precision asked for is passed over.
    """
    able = (name for name in GPU_ENGINES if config.precision in ENGINES[name].precisions)
    return next((name for name in able if can_run(name)), None)


def cpu_engine_name(config: EngineConfig, model: str) -> str:
    """Return the name of the engine that `auto` means on a CPU."""
    faster = model in FASTER_IN_NCNN and config.precision == "float32"
    return "ncnn" if faster and can_run("ncnn") else "openvino"


def choose_engine(config: EngineConfig, model: ModelConfig, spec: ModelSpec) -> tuple[Engine, str]:
    """Open the engine that the settings request; return it with the reason and its device.

    With an NVIDIA GPU, `auto` means TensorRT if it is installed, or else `cuda` if PyTorch is.
    Otherwise it means ncnn if that is installed and faster for the model (`FASTER_IN_NCNN`), or
    else OpenVINO on the CPU. PyTorch is the reference and must be requested by name. If a named
    engine is not available, that is an error; no other replaces it.
    """
    name = engine_name(config, spec.name)
    engine = open_engine(name, config, model, spec)
    why = WHY_CHOSEN[name] if config.name == "auto" else "as asked"
    can = engine.capabilities
    precision = "" if can.precision == "float32" else f", in {can.precision}"
    return engine, (
        f"{why}; {can.device}, {_count(can.num_threads, 'thread')} in "
        f"{_count(can.num_streams, 'stream')}{precision}"
    )


def can_run(name: str) -> bool:
    """Return whether an engine's package is installed and its device is present.

    PyTorch, whose import takes seconds, is imported only where NVIDIA's driver is installed.
    """
    if not is_installed(name):
        return False
    if not ENGINES[name].needs_cuda:
        return True
    if not has_nvidia_driver():
        return False
    from srstream.engines.cuda.availability import cuda_fault

    return cuda_fault() is None


def has_nvidia_driver() -> bool:
    """Return whether the library of NVIDIA's driver can be loaded; nothing in it is called."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
