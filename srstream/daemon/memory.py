"""Memory of this process, and how what it no longer needs goes back to the system."""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress
from pathlib import Path


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def return_memory() -> None:
    """Give back to the system what glibc keeps for later; other C libraries have no such call."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
