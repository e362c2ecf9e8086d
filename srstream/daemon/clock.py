"""Notices that the wall clock was set, and says which time it is at least.

Spans are measured with the monotonic clock. The wall clock is for times that people read, and for
ages that outlive the daemon.
"""

from __future__ import annotations

import time

_JUMP_SECONDS = 2.0
"""Difference that no daemon that corrects the clock makes within a second by slowing it down."""


class Clock:
    """Compares the wall clock with the time since the machine started, suspension included."""

    def __init__(self) -> None:
        self._offset = _offset()
        self._first_offset = self._offset

    def jump(self) -> str | None:
        """Say how far the wall clock was set since the last call; None if it was not."""
        offset, before = _offset(), self._offset
        self._offset = offset
        seconds = offset - before
        if abs(seconds) < _JUMP_SECONDS:
            return None
        how = "forward" if seconds > 0 else "back"
        return f"the wall clock was set {how} by {abs(seconds):.0f} s; no job is affected by it"

    def earliest(self) -> float:
        """The wall clock's time, or what it would be had nobody set it, whichever is earlier.

        What is old by this time is old, whether the clock was wrong before or is wrong now.
        """
        return min(time.time(), _boot_seconds() + self._first_offset)


def _offset() -> float:
    return time.time() - _boot_seconds()


def _boot_seconds() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
