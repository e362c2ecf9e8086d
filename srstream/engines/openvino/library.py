"""The `openvino` package, imported without its telemetry, and its messages on one line."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import threading
from collections.abc import Iterator
from typing import Any


def import_openvino() -> Any:
    """Import the `openvino` module without its model converter, and so without its telemetry.

    The converter, `openvino.tools.ovc`, reports the import to Google Analytics unless a consent
    file in the home directory forbids it, and is half of the time that the import takes. OpenVINO
    does without where it cannot be imported. `import openvino.tools.ovc` works later on.
    """
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    with _hidden_module("openvino.tools.ovc"):
        return importlib.import_module("openvino")


def openvino_core() -> Any:
    """Return the process's only `openvino.Core`, which lives as long as the process.

    Its CPU plugin gives the thread a signal stack of its own (`sigaltstack`). Of two whose lives
    overlap, the second restores the first's when it ends, which is freed by then: the next signal,
    as a Ctrl-C, is the end of the process.

    Raises:
        ImportError, RuntimeError: OpenVINO cannot be loaded.
    """
    with _core_lock:
        return _only_core()


_core_lock = threading.Lock()


@functools.cache
def _only_core() -> Any:
    return import_openvino().Core()


@contextlib.contextmanager
def _hidden_module(name: str) -> Iterator[None]:
    loaded = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # makes the import fail
    try:
        yield
    finally:
        if loaded is None:
            del sys.modules[name]
        else:
            sys.modules[name] = loaded


def last_line(error: BaseException) -> str:
    """Return the last nonblank line of an OpenVINO message, which states the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
