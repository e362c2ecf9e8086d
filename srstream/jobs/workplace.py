"""Where and with what a job is done, and how it is asked to stop; its caller decides both."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from srstream.engines.table import choose_engine
from srstream.enhancer.enhancer import Enhancer
from srstream.enhancer.stage import Stage
from srstream.jobs.plan import OpenEngine
from srstream.jobs.stall import STALL_SECONDS
from srstream.sandbox.steps import InProcess, MediaSteps


@dataclass(slots=True)
class StopSignal:
    """How a caller asks a running job to end: at the next segment's end, or at once."""

    _soon: threading.Event = field(default_factory=threading.Event)
    _now: threading.Event = field(default_factory=threading.Event)

    def request(self) -> None:
        """At the end of the segment under way."""
        self._soon.set()

    def request_now(self) -> None:
        """Within a second; the segment under way is lost."""
        self._soon.set()
        self._now.set()

    def is_requested(self) -> bool:
        return self._soon.is_set()

    def is_aborted(self) -> bool:
        return self._now.is_set()


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where and with what a job is done; the daemon's differs from the command line's."""

    media: MediaSteps = field(default_factory=InProcess)
    """Who looks at the source and assembles the output."""
    open_engine: OpenEngine = choose_engine
    directory: Path | None = None
    """Of the unfinished job; None: beside the output."""
    output_folder: int | None = None
    """Descriptor of the output's folder; None: found by its name."""
    source_descriptor: int | None = None
    """The source, opened; None: found by its name."""
    share: Callable[[Enhancer, Callable[[], None]], Stage] = lambda enhancer, wake: enhancer
    """Wraps the enhancer of a job that shares its engine with others; given what to call when the
    engine may be free for it."""
    on_alive: Callable[[], None] = lambda: None
    """Called at least once a second as long as the work on segments gets on."""
    stall_seconds: float = STALL_SECONDS
    """In which something must get on there, or it ends."""
    may_change_weights: bool = False
    """A job that was begun with other weights goes on with these."""
    keeps_directory: bool = False
    """The caller deletes the job's folder when the result is known to be on record."""
    decoder_memory_bytes: int | None = None
