"""Estimates the memory that a job takes, and finds how much there is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from srstream.media.types import OutputVideo, VideoInfo

_LIBRARY_BYTES = 160 << 20
"""Resident size of the interpreter with all libraries loaded."""
_WINDOW_FRAMES = 24
_OUTPUT_FRAMES = 66
"""Frames of the output in queues (16) and in the encoder's look-ahead (50)."""


def memory_bytes(video: VideoInfo, output: OutputVideo) -> int:
    """Return the peak memory of a job: libraries, queues in both processes, look-ahead."""
    frame_in = video.layout.frame_bytes(video.width, video.height)
    frame_out = output.layout.frame_bytes(output.width, output.height)
    return _LIBRARY_BYTES + 2 * _WINDOW_FRAMES * frame_in + _OUTPUT_FRAMES * frame_out


def available_bytes() -> int:
    """Return the memory that is free or can be freed, within the limit of a container."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        available = min(available, max(limit - used, 0))
    return available


def memory_notes(video: VideoInfo, output: OutputVideo) -> tuple[str, ...]:
    """Warn where a job may take more memory than there is."""
    needed, available = memory_bytes(video, output), available_bytes()
    if needed <= available:
        return ()
    sizes = f"{needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free"
    return (f"This takes about {sizes}; a smaller output (--height, --scale) takes less.",)
