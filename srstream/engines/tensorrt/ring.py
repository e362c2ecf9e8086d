"""Upload, compute and download of successive tiles at the same time, on three streams of a device.

A ring of slots goes round. Each has a pinned input and a pinned output on the host, an input and an
output on the device, and three events:

    host writes  | upload stream | compute stream    | download stream | host reads
    pinned input | copy, `up`    | wait `up`, run,   | wait `ran`,     | wait `down`, copy out
                 |               | record `ran`      | copy, `down`    |

A slot is used again only after the host has seen its `down`. Everything of the use before lies in
front of that event, so nothing is overwritten that is still read. What a stream does is in order;
across streams order comes from the events alone, and to the host only from waiting for them.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from srstream.engines.contract import OnDone
from srstream.engines.notify import DoneNotifier
from srstream.errors import EngineError
from srstream.frame import Plane

NUM_SLOTS = 3
"""One uploads, one computes, one downloads."""

Array = NDArray[Any]


class Device(Protocol):
    """What the ring needs of a device; streams, events and buffers are its own business."""

    def stream(self) -> Any:
        """A stream of its own, not the default one."""
        ...

    def event(self) -> Any: ...

    def pinned(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
        """Host memory that the device can copy from and to by itself."""
        ...

    def buffer(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
        """Memory on the device."""
        ...

    def array(self, pinned: Any) -> Array:
        """Pinned memory as the host sees it."""
        ...

    def copy(self, target: Any, source: Any, stream: Any) -> None:
        """Puts a copy into a stream; either side is pinned, the other on the device."""
        ...

    def record(self, event: Any, stream: Any) -> None:
        """Puts an event into a stream: it happens once all before it is done."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """What a stream is given from now on begins after the event as last recorded."""
        ...

    def has_happened(self, event: Any) -> bool: ...

    def synchronize(self, event: Any) -> None:
        """The host waits for an event, in any thread; raises what went wrong in front of it."""
        ...

    def synchronize_all(self) -> None:
        """The host waits for everything on all streams; raises nothing."""
        ...


Execute = Callable[[Any, Sequence[Any], Any], None]
"""Puts the network into a stream: (input buffer, output buffers, stream)."""


class RingTicket:
    """One tile on its way."""

    def __init__(self, slot: _Slot, ring: Ring) -> None:
        self.slot: _Slot | None = slot
        self.planes: tuple[Plane, ...] | None = None
        self.error: Exception | None = None
        self._ring = ring

    def is_done(self) -> bool:
        slot = self.slot
        try:
            return slot is None or self._ring.device.has_happened(slot.down)
        except Exception:
            return True  # it failed, and `result` says how

    def wait(self) -> None:
        """Until the tile is done, in whatever thread; what went wrong is kept for `result`."""
        slot = self.slot
        try:
            if slot is not None:
                self._ring.device.synchronize(slot.down)
        except Exception as error:
            self.error = error


class _Slot:
    """Memory and events for one tile at a time."""

    def __init__(
        self,
        device: Device,
        shape_in: Sequence[int],
        shapes_out: Sequence[Sequence[int]],
        dtype: np.dtype[Any],
    ) -> None:
        self.host_in = device.pinned(shape_in, dtype)
        self.device_in = device.buffer(shape_in, dtype)
        self.device_out = [device.buffer(shape, dtype) for shape in shapes_out]
        self.host_out = [device.pinned(shape, dtype) for shape in shapes_out]
        self.up, self.ran, self.down = device.event(), device.event(), device.event()


class Ring:
    """Tiles in, tiles out, up to `num_slots` on their way.

    Args:
        shape_in: of a tile's codes, (planes, H, W).
        shapes_out: of each group of output planes, (planes, H, W).
        execute: puts the network into the compute stream.
        on_done: see `Engine.open_session`.
    """

    def __init__(
        self,
        device: Device,
        shape_in: Sequence[int],
        shapes_out: Sequence[Sequence[int]],
        dtype: np.dtype[Any],
        execute: Execute,
        num_slots: int = NUM_SLOTS,
        on_done: OnDone | None = None,
    ) -> None:
        self.device = device
        self.num_slots = num_slots
        self._execute = execute
        self._upload, self._compute, self._download = (device.stream() for _ in range(3))
        self._idle = deque(_Slot(device, shape_in, shapes_out, dtype) for _ in range(num_slots))
        self._in_flight: deque[RingTicket] = deque()
        self._is_closed = False
        self._notifier = None if on_done is None else DoneNotifier(on_done)
        if self._notifier is not None:
            weakref.finalize(self, self._notifier.close)

    def submit(self, planes: Sequence[Plane]) -> RingTicket:
        """Starts a tile; waits only while all slots are in use.

        Raises:
            EngineError: the device took it not. Tiles before it are not affected.
        """
        if self._is_closed:
            raise EngineError("the engine's session is closed")
        while not self._idle:
            self._take(self._in_flight[0])
        slot = self._idle.popleft()
        device = self.device
        try:
            host = device.array(slot.host_in)
            for index, plane in enumerate(planes):
                host[index] = plane
            device.copy(slot.device_in, slot.host_in, self._upload)
            device.record(slot.up, self._upload)
            device.wait(self._compute, slot.up)
            self._execute(slot.device_in, slot.device_out, self._compute)
            device.record(slot.ran, self._compute)
            device.wait(self._download, slot.ran)
            for target, source in zip(slot.host_out, slot.device_out, strict=True):
                device.copy(target, source, self._download)
            device.record(slot.down, self._download)
        except Exception as error:
            # What was begun of it may still use the slot.
            device.synchronize_all()
            self._idle.append(slot)
            raise EngineError(f"the device took no tile ({_first_line(error)})") from error
        ticket = RingTicket(slot, self)
        self._in_flight.append(ticket)
        if self._notifier is not None:
            self._notifier.expect(ticket.wait)
        return ticket

    def result(self, ticket: RingTicket) -> tuple[Plane, ...]:
        """Waits for a tile; each may be asked for once.

        Raises:
            EngineError: it failed on the device, or was asked for before.
        """
        if ticket.slot is not None:
            self._take(ticket)
        planes, error = ticket.planes, ticket.error
        ticket.planes = ticket.error = None
        if error is not None:
            raise EngineError(f"the device failed on a tile ({_first_line(error)})") from error
        if planes is None:
            raise EngineError("this tile was collected before, or its engine failed or was closed")
        return planes

    def close(self) -> None:
        """Waits for what is under way and lets go of it."""
        self._is_closed = True
        self.device.synchronize_all()
        for ticket in self._in_flight:
            ticket.slot = None
        self._in_flight.clear()
        self._idle.clear()
        if self._notifier is not None:
            self._notifier.close()
            self._notifier = None

    def _take(self, ticket: RingTicket) -> None:
        """Moves a tile's result out of its slot, which is free then."""
        slot = ticket.slot
        assert slot is not None
        try:
            self.device.synchronize(slot.down)
            ticket.planes = tuple(
                plane.copy() for host in slot.host_out for plane in self.device.array(host)
            )
        except Exception as error:
            self.device.synchronize_all()
            ticket.error = error
        ticket.slot = None
        self._in_flight.remove(ticket)
        self._idle.append(slot)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
