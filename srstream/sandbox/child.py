"""What every child process has in common that reads what nobody trusts."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

_PR_SET_PDEATHSIG = 1
_END_SECONDS = 10.0


def start_child(
    module: str, *, inherited: Sequence[int], stdout: int, log: BinaryIO
) -> subprocess.Popen[bytes]:
    """Start a module of srstream that confines itself; it is told on standard input what to do.

    Args:
        inherited: descriptors that the child shares.
        stdout: as `subprocess` has it.
        log: takes what the child and libav say on standard error.
    """
    return subprocess.Popen(
        # -P: a file of the user's called av.py in the current folder must not be imported.
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=log,
        pass_fds=inherited,
        # NumPy's threads would start before the child confines itself, and stay free.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        # Ctrl-C is the parent's to handle: a group of its own keeps the terminal's signal away.
        process_group=0,
    )


def end_child(child: subprocess.Popen[bytes]) -> None:
    """Kill a child and wait for its end; not for ever, should the kernel not let it go."""
    child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_END_SECONDS)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(1)


def cpu_seconds(process: int | str) -> float:
    """What a process, or one thread ("self/task/ID"), has used; 0 if that cannot be seen."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def bytes_read(pid: int) -> int:
    """How many bytes a process has read so far: whether it gets on; 0 if that cannot be seen."""
    try:
        return int(Path(f"/proc/{pid}/io").read_text().split("rchar: ")[1].split()[0])
    except (OSError, IndexError, ValueError):
        return 0


class SignsOfLife:
    """Whether a process gets on: it reads, or it computes.

    Computing alone counts for a while only, since what loops for ever computes too.

    Args:
        computing_seconds: how long a process may compute without reading.
    """

    def __init__(self, pid: int, computing_seconds: float = 600.0) -> None:
        self._pid, self._computing_seconds = pid, computing_seconds
        self._position, self._used_seconds = bytes_read(pid), cpu_seconds(pid)
        self._read_at = time.monotonic()

    def are_new(self) -> bool:
        """Whether there were any since this was last asked."""
        position, used = bytes_read(self._pid), cpu_seconds(self._pid)
        has_read, has_computed = position != self._position, used > self._used_seconds
        self._position, self._used_seconds = position, used
        if has_read:
            self._read_at = time.monotonic()
        return has_read or (
            has_computed and time.monotonic() - self._read_at < self._computing_seconds
        )
