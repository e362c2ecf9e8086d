"""Estimates the memory that a job takes, and warns where there is less."""

from __future__ import annotations

from srstream.media.types import OutputVideo, VideoInfo
from srstream.memory import available_bytes

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


def memory_notes(video: VideoInfo, output: OutputVideo) -> tuple[str, ...]:
    """Warn where a job may take more memory than there is."""
    needed, available = memory_bytes(video, output), available_bytes()
    if available is None or needed <= available:
        return ()
    sizes = f"{needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free"
    return (f"This takes about {sizes}; a smaller output (--height, --scale) takes less.",)
