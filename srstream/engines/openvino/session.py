"""A session of OpenVINO: its requests, and the output planes taken from them."""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from srstream.engines.contract import Capabilities, OnDone, Ticket, TileFormat, check_tile
from srstream.engines.notify import DoneNotifier
from srstream.engines.openvino.library import last_line
from srstream.errors import EngineError
from srstream.frame import Plane
from srstream.models.table import PlaneGroup


def shuffled_planes(codes_HWC: Plane, group: PlaneGroup) -> list[Plane]:
    """Shuffle the codes (H, W, channels) of a plane group into its planes."""
    step = group.scale**2
    return [
        pixel_shuffle(codes_HWC[..., first : first + step], group.scale)
        for first in range(0, group.num_channels, step)
    ]


def pixel_shuffle(codes_HWC: Plane, scale: int) -> Plane:
    """Shuffle (H, W, scale**2) into (scale H, scale W).

    Channel scale * i + j goes to row i and column j of a cell. The `scale` codes of a cell's row
    move at once, as one wide integer if there is one of that size.
    """
    rows, columns, _ = codes_HWC.shape
    wide = {2: np.uint16, 4: np.uint32, 8: np.uint64}.get(scale * codes_HWC.itemsize)
    shape = rows * scale, columns * scale
    plane: Plane
    if wide is None:
        plane = codes_HWC.reshape(rows, columns, scale, scale).transpose(0, 2, 1, 3).reshape(shape)
        return plane
    moved: Any = np.ascontiguousarray(codes_HWC.view(wide).transpose(0, 2, 1))
    plane = moved.view(codes_HWC.dtype).reshape(shape)
    return plane


class OpenVinoTicket:
    """One tile in the engine. It holds a request until that is done, and then the result."""

    def __init__(self, request: Any, shape: tuple[int, ...]) -> None:
        self.request = request
        self.shape = shape
        self.planes: tuple[Plane, ...] | None = None

    def is_done(self) -> bool:
        request = self.request
        try:
            return request is None or bool(request.wait_for(0))
        except RuntimeError:
            return True  # it failed, and `result` reports how

    def wait(self) -> None:
        """Wait until the tile is done, in any thread."""
        request = self.request
        if request is not None:
            request.wait()


class OpenVinoSession:
    """A `Session` with one request for each stream, plus one."""

    def __init__(
        self,
        compiled: Any,
        tile: TileFormat,
        capabilities: Capabilities,
        on_done: OnDone | None = None,
    ) -> None:
        self.format = tile
        self.form = capabilities.form
        self.num_in_flight = capabilities.num_streams + 1  # one tile waits, so that no stream idles
        self._idle = [compiled.create_infer_request() for _ in range(self.num_in_flight)]
        self._in_flight: deque[OpenVinoTicket] = deque()
        self._compiled = compiled
        self._notifier = None if on_done is None else DoneNotifier(on_done)
        if self._notifier is not None:
            weakref.finalize(self, self._notifier.close)

    def submit(self, tile: Sequence[Plane]) -> OpenVinoTicket:
        """See `Session.submit`."""
        check_tile(tile, self.format, self.form)
        if not self._idle:
            if not self._in_flight:
                raise EngineError("the engine's session is closed")
            self._collect(self._in_flight[0])
        request = self._idle.pop()
        ticket = OpenVinoTicket(request, tile[0].shape)
        try:
            tensor = request.get_input_tensor()
            if self.format.shape is None:
                tensor.shape = [1, len(tile), *ticket.shape]
            for index, plane_HW in enumerate(tile):
                tensor.data[0, index] = plane_HW
            request.start_async()
        except RuntimeError as error:
            self._idle.append(request)
            raise EngineError(f"OpenVINO did not accept a tile ({last_line(error)})") from error
        self._in_flight.append(ticket)
        if self._notifier is not None:
            self._notifier.expect(ticket.wait)
        return ticket

    def result(self, ticket: Ticket) -> tuple[Plane, ...]:
        """See `Session.result`."""
        assert isinstance(ticket, OpenVinoTicket)
        if ticket.request is not None:
            self._collect(ticket)
        if ticket.planes is None:
            raise EngineError("this tile was collected before, or its engine failed or was closed")
        planes, ticket.planes = ticket.planes, None
        return planes

    def close(self) -> None:
        """See `Session.close`. What is in flight is given up between two layers of the network."""
        for ticket in self._in_flight:
            with contextlib.suppress(RuntimeError):
                ticket.request.cancel()
        while self._in_flight:
            with contextlib.suppress(EngineError):
                self._collect(self._in_flight[0])
        self._idle.clear()
        self._compiled = None
        if self._notifier is not None:
            self._notifier.close()
            self._notifier = None

    def _collect(self, ticket: OpenVinoTicket) -> None:
        """Wait for a tile, take its result from the request, and free that for the next tile."""
        request, ticket.request = ticket.request, None
        self._in_flight.remove(ticket)
        self._idle.append(request)
        try:
            request.wait()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on a tile ({last_line(error)})") from error
        planes: list[Plane] = []
        for index, group in enumerate(self.form.outputs):
            codes = request.get_output_tensor(index).data[0]
            codes = codes.astype(self.format.dtype, copy=False)
            if codes.shape == (*ticket.shape, group.num_channels):
                planes += shuffled_planes(codes, group)
            else:
                planes += list(codes.copy())
        ticket.planes = tuple(planes)
