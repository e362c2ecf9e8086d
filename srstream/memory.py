"""Finds how much memory there is for this process."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def available_bytes(group: Path = _GROUP) -> int | None:
    """Return the memory that is free or can be freed; None where the system does not tell.

    The limit of a control group counts too. Its `memory.current` includes cached files, which the
    kernel gives up before anything fails, so those (`inactive_file`) count as free.
    """
    fields = count_bytes(Path("/proc/meminfo"))
    if "MemAvailable" not in fields:
        return None
    available = fields["MemAvailable"] + fields.get("SwapFree", 0)
    with contextlib.suppress(OSError, ValueError):  # no control group, or none that limits
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.M)
        available = min(available, limit - used + (int(cached[1]) if cached else 0))
    return max(available, 0)


def count_bytes(path: Path) -> dict[str, int]:
    """Return the lines of a file of /proc that count kB, in bytes (proc(5))."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    found = (re.fullmatch(r"(\w+):\s+(\d+) kB", line) for line in lines)
    return {match[1]: int(match[2]) * 1024 for match in found if match}
