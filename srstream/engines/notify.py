"""Telling of finished tiles, for engines whose runtime can be waited for but calls nobody."""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import weakref
from collections.abc import Callable

from srstream.engines.contract import OnDone

Wait = Callable[[], object]
"""Returns, or raises, once a tile is done."""

_LAST_TILE_SECONDS = 60.0
"""How long the end of the program waits for a tile that is under way."""


class DoneNotifier:
    """A thread that waits for tiles in the order of their coming, and calls `on_done` after each.

    A callback in the runtime's own thread would do without it, but there Python's lock holds up the
    next tile, and OpenVINO calls none for a tile that failed.
    """

    def __init__(self, on_done: OnDone) -> None:
        self._waits: queue.SimpleQueue[Wait | None] = queue.SimpleQueue()
        arguments = (self._waits, on_done)
        thread = threading.Thread(target=_run, args=arguments, name="await-tiles", daemon=True)
        thread.start()
        _running[thread] = self._waits

    def expect(self, wait: Wait) -> None:
        """Have `on_done` called when `wait`, called in the thread, returns."""
        self._waits.put(wait)

    def close(self) -> None:
        """End the thread once what it was told to wait for is done; does not wait for that."""
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
    """End the threads of sessions that nobody closed, after an error for instance.

    Python ends what still runs when it ends itself by unwinding its stack; a runtime written in C++
    takes that for a fault and aborts the program.
    """
    for thread, waits in list(_running.items()):
        waits.put(None)
        thread.join(_LAST_TILE_SECONDS)
