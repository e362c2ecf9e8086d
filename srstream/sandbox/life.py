"""Signs that another process, or a thread of this one, makes progress: reads and CPU time."""

from __future__ import annotations

import os
import time
from pathlib import Path


def cpu_seconds(process: int | str) -> float:
    """Return the processor time of a process or thread ("self/task/ID"); 0 if it is not visible."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def bytes_read(pid: int) -> int:
    """Return how many bytes a process has read so far; 0 if that is not visible."""
    try:
        return int(Path(f"/proc/{pid}/io").read_text().split("rchar: ")[1].split()[0])
    except (OSError, IndexError, ValueError):
        return 0


class SignsOfLife:
    """Tells whether a process makes progress: whether it reads or computes.

    Computing alone counts for a limited time, since an endless loop computes too.

    Args:
        computing_seconds: how long a process may compute without reading.
    """

    def __init__(self, pid: int, computing_seconds: float = 600.0) -> None:
        self._pid, self._computing_seconds = pid, computing_seconds
        self._position, self._used_seconds = bytes_read(pid), cpu_seconds(pid)
        self._read_at = time.monotonic()

    def are_new(self) -> bool:
        """Return whether there was a sign of life since the last call."""
        position, used = bytes_read(self._pid), cpu_seconds(self._pid)
        has_read, has_computed = position != self._position, used > self._used_seconds
        self._position, self._used_seconds = position, used
        if has_read:
            self._read_at = time.monotonic()
        return has_read or (
            has_computed and time.monotonic() - self._read_at < self._computing_seconds
        )
