"""Lets one thread wait for whichever of several events comes first."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, Self

import zmq


class Wakeup:
    """Lets a thread sleep until another thread, a socket or a descriptor wakes it.

    `wait` may return without a reason, and one return may stand for many calls of `wake`, so the
    caller must check everything again. A `wake` during that check ends the next `wait` at once.
    """

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._is_closed = False

    def wake(self) -> None:
        """End the current `wait`, or the next one; any thread may call it, also after `close`."""
        with self._lock:
            if not self._is_closed:
                os.eventfd_write(self._descriptor, 1)

    def wait(self, readable: Sequence[Any], timeout_seconds: float) -> bool:
        """Wait for `wake`, for one of the ZeroMQ sockets or descriptors, or for the time to pass.

        Returns whether `wake` was called.
        """
        poller = zmq.Poller()
        for source in (self._descriptor, *readable):
            poller.register(source, zmq.POLLIN)
        poller.poll(max(1, int(timeout_seconds * 1000)))
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the descriptor; `wake` does nothing from then on."""
        with self._lock:
            self._is_closed = True
            os.close(self._descriptor)
