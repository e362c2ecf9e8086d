"""Sessions for engines that compute a tile in one blocking call, which runs in a thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from srstream.engines.contract import Capabilities, OnDone, Ticket, TileFormat, check_tile
from srstream.engines.faults import engine_error
from srstream.errors import EngineError
from srstream.frame import Plane

Run = Callable[[Plane, TileFormat], list[Plane]]
"""A function that computes the output planes of codes (planes, H, W), from several threads."""


def available_threads() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_format(tile: TileFormat, can: Capabilities) -> None:
    """Raise `EngineError` unless the engine, which compiles nothing, can compute such tiles."""
    if not can.min_bits <= tile.bits <= can.max_bits or min(tile.shape or (1,)) < 1:
        raise EngineError(f"no session can be opened for tiles {tile.shape} of {tile.bits} bits")


class ThreadTicket:
    """One tile in the engine; see `Ticket`."""

    def __init__(self, future: Future[list[Plane]]) -> None:
        self.future: Future[list[Plane]] | None = future

    def is_done(self) -> bool:
        return self.future is None or self.future.done()


class ThreadSession:
    """A `Session` with as many threads as the engine has streams; one more tile may wait."""

    def __init__(
        self,
        run: Run,
        tile: TileFormat,
        capabilities: Capabilities,
        on_done: OnDone | None = None,
    ) -> None:
        self.format = tile
        self.num_in_flight = capabilities.num_streams + 1
        self._run = run
        self._capabilities, self._on_done = capabilities, on_done
        self._threads: ThreadPoolExecutor | None = ThreadPoolExecutor(
            capabilities.num_streams, f"srstream-{capabilities.name}"
        )

    def submit(self, tile: Sequence[Plane]) -> ThreadTicket:
        """See `Session.submit`."""
        if self._threads is None:
            raise EngineError("the engine's session is closed")
        check_tile(tile, self.format, self._capabilities.form)
        codes_CHW: Any = np.stack(tile)
        future = self._threads.submit(self._run, codes_CHW, self.format)
        if (on_done := self._on_done) is not None:
            future.add_done_callback(lambda _: on_done())
        return ThreadTicket(future)

    def result(self, ticket: Ticket) -> tuple[Plane, ...]:
        """See `Session.result`."""
        assert isinstance(ticket, ThreadTicket)
        future, ticket.future = ticket.future, None
        if future is None:
            raise EngineError("this tile was collected before, or its engine failed or was closed")
        try:
            return tuple(future.result())
        except (RuntimeError, MemoryError) as error:
            what = f"engine {self._capabilities.name!r} failed on a tile"
            raise engine_error(what, error) from error

    def close(self) -> None:
        """See `Session.close`."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None
