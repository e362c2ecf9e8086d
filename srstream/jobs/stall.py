"""Distinguishes a job that makes progress, however slowly, from one that hangs.

A tile of a large network on a busy machine takes minutes, and so may a slow encoder; unlike a hang,
both use the processor. A job is therefore stalled when for a minute no message arrived, no tile was
completed, no frame was encoded, the decoder read nothing, and no stage with work to do used the
processor.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from srstream.sandbox.life import bytes_read, cpu_seconds

STALL_SECONDS = 60.0

WORKING_THREADS = "srstream-"
"""The prefix of the names of Python threads that compute or encode."""

_LOOK_SECONDS = 1.0
_SHARE = 0.01
"""Share of a core; a stage that uses less over the whole time is not working."""
_TIMES_LONGER = 10
"""A decoder may compute this many times as long without reading or sending anything."""


@dataclass(frozen=True, slots=True)
class Stages:
    """What each stage of the loop holds while nothing moves."""

    decoder_has_ended: bool
    credit_bytes: int
    """Bytes that the decoder may send; it may exceed them by one frame."""
    num_received: int
    """Frames that wait for the engine."""
    num_in_engine: int
    num_finished: int
    """Frames that wait for the encoder."""
    num_at_encoder: int

    @property
    def is_decoder_due(self) -> bool:
        """Whether the decoder must act next: send a frame, or the end."""
        return not self.decoder_has_ended and self.credit_bytes > 0

    @property
    def is_working(self) -> bool:
        """Whether the engine or the encoder has work to do."""
        return bool(self.num_received or self.num_in_engine or self.num_at_encoder)

    def __str__(self) -> str:
        engine = f"the engine holds {_frames(self.num_in_engine)} and finishes none"
        if not self.num_in_engine:
            engine = "the engine holds none"
        encoder = f"the encoder holds {_frames(self.num_at_encoder)} and takes no other"
        if not self.num_at_encoder:
            encoder = "the encoder waits for one"
        waiting = f"{_frames(self.num_received)} wait for the engine, {engine}; "
        waiting += f"{_frames(self.num_finished)} wait for the encoder, {encoder}"
        return f"{self._decoder()}; {waiting}"

    def _decoder(self) -> str:
        if self.decoder_has_ended:
            return "the decoder has ended"
        if self.credit_bytes > 0:
            return f"the decoder may send {self.credit_bytes} bytes and sends nothing"
        return "the decoder waits for credit (none is left)"


def _frames(number: int) -> str:
    return f"{number} frame" if number == 1 else f"{number} frames"


class StallWatch:
    """Counts the time that the loop spends waiting while nothing moves.

    Args:
        pid: the decoder's process.
        on_alive: called about once a second while there is a sign of life.
    """

    def __init__(
        self,
        pid: int,
        limit_seconds: float = STALL_SECONDS,
        on_alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._pid, self._limit_seconds, self._on_alive = pid, limit_seconds, on_alive
        self._look_seconds = min(_LOOK_SECONDS, limit_seconds / 10)
        self._position = bytes_read(pid)
        self._decoder_seconds = cpu_seconds(pid)
        self._threads = _working_threads()
        self._waited_seconds = self._unlooked_seconds = self._used_seconds = 0.0
        self._silent_seconds = 0.0
        """Time since the decoder last sent or read something."""

    @property
    def limit_seconds(self) -> float:
        return self._limit_seconds

    def moved(self) -> None:
        """Note that a message arrived, a tile was completed or a frame moved on."""
        self._waited_seconds = self._silent_seconds = self._used_seconds = 0.0
        self._on_alive()

    def is_stalled_after(self, seconds: float, stages: Stages) -> bool:
        """Add waiting time, in which `moved` was not called; return whether it is now too long."""
        self._waited_seconds += seconds
        self._silent_seconds += seconds
        self._unlooked_seconds += seconds
        if self._unlooked_seconds >= self._look_seconds:
            self._unlooked_seconds = 0.0
            self._look(stages)
        is_alone = stages.is_decoder_due and not stages.is_working
        return self._waited_seconds > self._limit_seconds or (
            is_alone and self._silent_seconds > _TIMES_LONGER * self._limit_seconds
        )

    def _look(self, stages: Stages) -> None:
        """Look for signs of life in the stages that have work to do."""
        position, before = bytes_read(self._pid), self._position
        self._position = position
        if position != before:
            self._silent_seconds = 0.0
        used = self._used_since_last_look(stages)
        self._used_seconds += used
        if position != before or self._used_seconds >= _SHARE * self._limit_seconds:
            self._waited_seconds = self._used_seconds = 0.0
            self._on_alive()

    def _used_since_last_look(self, stages: Stages) -> float:
        """Return the processor time, in seconds, of the stages that have work to do."""
        decoder, threads = cpu_seconds(self._pid), _working_threads()
        used = 0.0
        if stages.is_decoder_due:
            used += max(0.0, decoder - self._decoder_seconds)
        if stages.is_working:
            used += sum(now - self._threads.get(name, 0.0) for name, now in threads.items())
        self._decoder_seconds, self._threads = decoder, threads
        return used


def _working_threads() -> dict[int, float]:
    """Return the processor time of each thread that may belong to an engine or an encoder.

    These are library threads, which Python does not know, and Python threads with the prefix; the
    thread that draws a progress bar is not one of them.
    """
    others = {
        thread.native_id
        for thread in threading.enumerate()
        if not thread.name.startswith(WORKING_THREADS)
    }
    names = {int(entry.name) for entry in os.scandir("/proc/self/task")}
    return {name: cpu_seconds(f"self/task/{name}") for name in names - others}
