"""The environment of a job, chosen by its caller, and its stop signal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from srstream.engines.table import choose_engine
from srstream.enhancer.enhancer import Enhancer
from srstream.enhancer.stage import Stage
from srstream.jobs.planning.plan import OpenEngine
from srstream.jobs.publish import OpenFolder
from srstream.jobs.stall import STALL_SECONDS
from srstream.sandbox.steps import InProcess, Steps


@dataclass(slots=True)
class StopSignal:
    """Asks a running job to end: at the end of the segment, or at once."""

    _soon: threading.Event = field(default_factory=threading.Event)
    _now: threading.Event = field(default_factory=threading.Event)

    def request(self) -> None:
        """Ask the job to end at the end of the current segment."""
        self._soon.set()

    def request_now(self) -> None:
        """Ask the job to end within a second; the current segment is lost."""
        self._soon.set()
        self._now.set()

    def is_requested(self) -> bool:
        return self._soon.is_set()

    def is_aborted(self) -> bool:
        return self._now.is_set()


@dataclass(frozen=True, slots=True)
class JobContext:
    """The environment of a job; the daemon's differs from the command line's."""

    media: Steps = field(default_factory=InProcess)
    """Runs the steps that read the source."""
    open_engine: OpenEngine = choose_engine
    directory: Path | None = None
    """Folder of the unfinished job; None: next to the output."""
    open_folder: OpenFolder | None = None
    """Opens the output's folder whenever the output is to be named; None: found by its name."""
    source_descriptor: int | None = None
    """The opened source; None: found by its path."""
    share: Callable[[Enhancer, Callable[[], None]], Stage] = lambda enhancer, wake: enhancer
    """Wraps the enhancer of a job that shares its engine with others. The argument is the function
    to call when the engine may be free for the job."""
    on_alive: Callable[[], None] = lambda: None
    """Called at least once a second while the work on segments makes progress."""
    on_death: Callable[[str], None] = lambda reason: None
    """Called when the decoder process has died and is to be replaced."""
    stall_seconds: float = STALL_SECONDS
    """The job ends if no segment makes progress for this long."""
    may_change_weights: bool = False
    """Weights with which a job that was started with other weights continues."""
    keeps_directory: bool = False
    """Whether the caller deletes the job's folder once the result is recorded."""
    decoder_memory_bytes: int | None = None
