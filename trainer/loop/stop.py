"""How a run is stopped: SIGTERM, Ctrl-C or a deadline asks, the loop ends after its iteration."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from srstream.errors import InterruptedJobError
from trainer.console import Reporter

INSIST_SECONDS = 2.0
"""A second signal counts this long after the first; a double press does not."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _GivenUp(BaseException):
    """A signal came while what is going on may be given up."""


class StopFlag:
    """True once a signal has come, or a deadline.

    A thread answers it at once: Python's own handlers wait until PyTorch returns, which takes as
    long as an iteration. It also ends the process at a second signal, which leaves the last
    checkpoint as it is.
    """

    def __init__(self, reporter: Reporter, until: float | None = None) -> None:
        """`until` is the deadline, if there is one, as `time.monotonic` counts."""
        self._reporter, self._until = reporter, until
        self._stopped = self._interrupts = False
        self._since: float | None = None

    def __enter__(self) -> Self:
        self._reads, self._writes = socket.socketpair()
        self._writes.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._writes.fileno(), warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        self._thread = threading.Thread(target=self._answer, name="stop", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._writes.close()
        self._thread.join()
        self._reads.close()

    def __bool__(self) -> bool:
        is_over = self._until is not None and time.monotonic() >= self._until
        return self._stopped or is_over

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within it a signal ends the work at once, without an error; for what may be left out."""
        self._interrupts = True
        try:
            yield
        except _GivenUp:
            pass
        finally:
            self._interrupts = False

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopped = True
        if self._interrupts:
            self._interrupts = False
            raise _GivenUp

    def _answer(self) -> None:
        while number := self._reads.recv(1):
            if number[0] not in SIGNALS:
                continue
            now = time.monotonic()
            if self._since is None:
                self._since = now
                self._reporter.say(
                    "stopping after this iteration; a second Ctrl-C does not wait for it, and the "
                    "last checkpoint stays"
                )
            elif now - self._since >= INSIST_SECONDS and not self._interrupts:
                self._reporter.close()
                self._reporter.say("given up; the last checkpoint stays")
                os._exit(InterruptedJobError.exit_code)
