"""Ends the connections whose messages never end, which no option of libzmq prevents."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog

from srstream.daemon.api.zmq.endpoint import Endpoint
from srstream.daemon.memory import resident_bytes, return_memory

logger = structlog.get_logger(__name__)

_GUARD_SECONDS = 0.05
_MAX_GROWTH_BYTES = 32 << 20
_NUM_SETTLING, _SETTLING_SECONDS = 20, 0.005


class MemoryGuard:
    """Watches this process's memory, in which endless messages show.

    When it has grown by `max_growth_bytes`, connections that send without a pause or read nothing
    are ended. If that frees too little, all connections of the `exposed` endpoints, which have no
    gate, are ended; clients connect again. Growth that then remains is the daemon's own.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        exposed: Sequence[Endpoint],
        max_growth_bytes: int = _MAX_GROWTH_BYTES,
    ) -> None:
        self._endpoints = endpoints
        self._exposed = exposed
        self._max_growth_bytes = max_growth_bytes
        self._baseline_bytes = resident_bytes()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(_GUARD_SECONDS)
            if self._has_grown():
                return_memory()
            if self._has_grown():
                self._drop()

    def _has_grown(self) -> bool:
        resident = resident_bytes()
        self._baseline_bytes = min(self._baseline_bytes, resident)
        return resident - self._baseline_bytes > self._max_growth_bytes

    def _drop(self) -> None:
        before = resident_bytes()
        num_cut = sum(endpoint.cut_hogs() for endpoint in self._endpoints)
        is_over = num_cut > 0 and self._settles()
        if not is_over:
            for endpoint in self._exposed:
                endpoint.drop_connections()
            self._settles()
            self._baseline_bytes = resident_bytes()
        if num_cut or self._exposed:
            logger.warning(
                "memory grew as by a message without end; connections were ended",
                connections=num_cut if is_over else "all over TCP",
                num_bytes_freed=before - resident_bytes(),
            )

    def _settles(self) -> bool:
        """Block the loop until libzmq's threads have freed memory; returns whether they did."""
        for _ in range(_NUM_SETTLING):
            time.sleep(_SETTLING_SECONDS)
            return_memory()
            if not self._has_grown():
                return True
        return False
