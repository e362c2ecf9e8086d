"""Notification of finished tiles, for engines whose runtime offers waiting but no callback."""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import weakref
from collections.abc import Callable

from srstream.engines.contract import OnDone

Wait = Callable[[], object]
"""A function that returns or raises once a tile is done."""

_LAST_TILE_SECONDS = 60.0
"""Maximum time for which the program's exit waits for a tile in the engine."""


class DoneNotifier:
    """A thread that waits for tiles in order of submission and calls `on_done` after each.

    A callback in the runtime's own thread would need no thread, but it would hold up the next tile
    while it waits for Python's lock, and OpenVINO calls back for no tile that failed.
    """

    def __init__(self, on_done: OnDone) -> None:
        self._waits: queue.SimpleQueue[Wait | None] = queue.SimpleQueue()
        arguments = (self._waits, on_done)
        thread = threading.Thread(target=_run, args=arguments, name="await-tiles", daemon=True)
        thread.start()
        _running[thread] = self._waits

    def expect(self, wait: Wait) -> None:
        """Call `wait` in the thread, and `on_done` when it returns."""
        self._waits.put(wait)

    def close(self) -> None:
        """End the thread after its pending tiles. Returns without waiting for them."""
        self._waits.put(None)


def _run(waits: queue.SimpleQueue[Wait | None], on_done: OnDone) -> None:
    while (wait := waits.get()) is not None:
        with contextlib.suppress(Exception):  # `result` raises it where it belongs
            wait()
        del wait
        on_done()


_running: weakref.WeakKeyDictionary[threading.Thread, queue.SimpleQueue[Wait | None]] = (
    weakref.WeakKeyDictionary()
)


@atexit.register
def _end_all() -> None:
    """End the threads of sessions that were not closed, for instance after an error.

    At exit, Python ends the remaining threads by unwinding their stacks; a runtime written in C++
    takes that for a fault and aborts the program.
    """
    for thread, waits in list(_running.items()):
        waits.put(None)
        thread.join(_LAST_TILE_SECONDS)
