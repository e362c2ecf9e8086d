"""Simultaneous upload, compute and download of successive tiles, on three streams of a device.

What is said of a tile here holds for a whole frame too. Slots are used in turn. Each has pinned
inputs and outputs on the host, inputs and outputs on the device, the work made ready for these
(`Prepare`), and three events:

    host writes  | upload stream | compute stream    | download stream | host reads
    pinned input | copy, `up`    | wait `up`, run,   | wait `ran`,     | wait `down`, copy out
                 |               | record `ran`      | copy, `down`    |

A slot is reused only after the host has seen its `down` event. All reads and writes of its last
use come before that event, so nothing is overwritten while it is still read. Within a stream, work
runs in order. Between streams, and toward the host, only the events establish an order.

A slot's memory has the same addresses as long as the ring lives, and once the slots are prepared
nothing is allocated any more. A CUDA graph relies on both.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from srstream.engines.contract import OnDone
from srstream.engines.cuda.spare import SpareBlocks
from srstream.engines.faults import engine_error
from srstream.engines.notify import DoneNotifier
from srstream.errors import EngineError
from srstream.frame import Plane

NUM_SLOTS = 3
"""Slots in the ring: one uploads, one computes, one downloads."""

Array = NDArray[Any]


class Device(Protocol):
    """The operations that the ring needs from a device.

    Only the device knows the types of its streams, events and buffers.
    """

    def stream(self) -> Any:
        """Make a new stream, not the default one."""
        ...

    def event(self) -> Any: ...

    def pinned(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
        """Allocate host memory that the device can copy from and to on its own."""
        ...

    def buffer(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
        """Allocate memory on the device."""
        ...

    def array(self, pinned: Any) -> Array:
        """Return pinned memory as a numpy array of the host."""
        ...

    def copy(self, target: Any, source: Any, stream: Any) -> None:
        """Queue a copy between pinned memory and the device in a stream."""
        ...

    def record(self, event: Any, stream: Any) -> None:
        """Queue an event in a stream. It happens when everything queued before it is done."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """Make everything queued in a stream from now on wait for the event as last recorded."""
        ...

    def has_happened(self, event: Any) -> bool: ...

    def synchronize(self, event: Any) -> None:
        """Wait for an event in any thread of the host, and raise any error from before it."""
        ...

    def synchronize_all(self, streams: Sequence[Any]) -> Exception | None:
        """Wait for everything on these streams. Return the device's error, and never raise."""
        ...


Run = Callable[[Sequence[int] | None], None]
"""A function that queues the work in a slot's stream: some of its parts, all of them for None. It
allocates nothing."""

Prepare = Callable[[Sequence[Any], Sequence[Any], Any], Run]
"""Makes the work ready for a slot's input buffers, its output buffers and a stream. It may
allocate, wait, and compute on the buffers."""


class BufferForm(NamedTuple):
    """The form of a buffer: some planes of one size, (planes, H, W)."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]


class RingTicket:
    """One tile in the ring; see `Ticket`."""

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
            return True  # it failed, and `result` reports how

    def wait(self) -> None:
        """Wait until the tile is done, in any thread. An error is kept for `result`."""
        slot = self.slot
        try:
            if slot is not None:
                self._ring.device.synchronize(slot.down)
        except Exception as error:
            self.error = error


class _Slot:
    """The memory, the events and the work for one tile at a time."""

    run: Run

    def __init__(
        self, device: Device, inputs: Sequence[BufferForm], outputs: Sequence[BufferForm]
    ) -> None:
        self.host_in = [device.pinned(*form) for form in inputs]
        self.device_in = [device.buffer(*form) for form in inputs]
        self.device_out = [device.buffer(*form) for form in outputs]
        self.host_out = [device.pinned(*form) for form in outputs]
        self.up, self.ran, self.down = device.event(), device.event(), device.event()


class Ring:
    """Computes tiles on a device, up to `num_slots` at the same time.

    Args:
        inputs: the forms of the buffers that hold a tile's planes, in order.
        outputs: the same for the planes of its result.
        prepare: makes the work ready for each slot, in the compute stream.
        on_done: see `Engine.open_session`.

    Raises:
        Exception: what the device raises if it has no memory for the slots.
    """

    def __init__(
        self,
        device: Device,
        inputs: Sequence[BufferForm],
        outputs: Sequence[BufferForm],
        prepare: Prepare,
        num_slots: int = NUM_SLOTS,
        on_done: OnDone | None = None,
    ) -> None:
        self.device = device
        self.num_slots = num_slots
        self._streams = tuple(device.stream() for _ in range(3))
        self._upload, self._compute, self._download = self._streams
        self._idle = deque(_Slot(device, inputs, outputs) for _ in range(num_slots))
        for slot in self._idle:
            slot.run = prepare(slot.device_in, slot.device_out, self._compute)
        self._spare = SpareBlocks()
        self._in_flight: deque[RingTicket] = deque()
        self._is_closed = False
        self._notifier = None if on_done is None else DoneNotifier(on_done)
        if self._notifier is not None:
            weakref.finalize(self, self._notifier.close)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def submit(self, planes: Sequence[Plane], parts: Sequence[int] | None = None) -> RingTicket:
        """Start a tile; wait only if all slots are in use.

        Args:
            parts: the parts of the work to do; all of them by default.

        Raises:
            DeviceFaultError: the device is broken, and all tiles with it.
            EngineError: the device did not accept the tile. Earlier tiles are not affected.
        """
        if self._is_closed:
            raise EngineError("the engine's session is closed")
        while not self._idle:
            self._take(self._in_flight[0])
        slot = self._idle.popleft()
        device = self.device
        try:
            hosts = [host for buffer in slot.host_in for host in device.array(buffer)]
            for host, plane in zip(hosts, planes, strict=True):
                host[...] = plane
            for target, source in zip(slot.device_in, slot.host_in, strict=True):
                device.copy(target, source, self._upload)
            device.record(slot.up, self._upload)
            device.wait(self._compute, slot.up)
            slot.run(parts)
            device.record(slot.ran, self._compute)
            device.wait(self._download, slot.ran)
            for target, source in zip(slot.host_out, slot.device_out, strict=True):
                device.copy(target, source, self._download)
            device.record(slot.down, self._download)
        except Exception as error:
            # The queued part of the tile may still use the slot.
            further = device.synchronize_all(self._streams)
            self._idle.append(slot)
            raise engine_error("the device did not accept a tile", error, further) from error
        ticket = RingTicket(slot, self)
        self._in_flight.append(ticket)
        if self._notifier is not None:
            self._notifier.expect(ticket.wait)
        return ticket

    def result(self, ticket: RingTicket) -> tuple[Plane, ...]:
        """Wait for a tile and return its planes. Each tile can be requested once.

        Raises:
            DeviceFaultError: the device is broken, and all tiles with it.
            EngineError: the tile failed on the device, or was already requested.
        """
        if ticket.slot is not None:
            self._take(ticket)
        planes, error = ticket.planes, ticket.error
        ticket.planes = ticket.error = None
        if error is not None:
            raise engine_error("the device failed on a tile", error) from error
        if planes is None:
            raise EngineError("this tile was collected before, or its engine failed or was closed")
        return planes

    def close(self) -> None:
        """Wait for the tiles in the ring and drop their results."""
        self._is_closed = True
        self.device.synchronize_all(self._streams)
        for ticket in self._in_flight:
            ticket.slot = None
        self._in_flight.clear()
        self._idle.clear()
        if self._notifier is not None:
            self._notifier.close()
            self._notifier = None

    def _take(self, ticket: RingTicket) -> None:
        """Copy a tile's result out of its slot and free the slot."""
        slot = ticket.slot
        assert slot is not None
        try:
            self.device.synchronize(slot.down)
            ticket.planes = tuple(
                self._spare.copy(plane)
                for host in slot.host_out
                for plane in self.device.array(host)
            )
        except Exception as error:
            self.device.synchronize_all(self._streams)
            ticket.error = error
        ticket.slot = None
        self._in_flight.remove(ticket)
        self._idle.append(slot)
