"""A session whose tiles go through a ring of slots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from srstream.engines.contract import OnDone, Ticket, TileFormat, check_tile
from srstream.engines.cuda.ring import NUM_SLOTS, Device, Prepare, Ring, RingTicket
from srstream.frame import Plane
from srstream.models.table import ColorForm


class RingSession:
    """A `Session` whose tiles go through a ring of slots."""

    num_in_flight = NUM_SLOTS

    def __init__(
        self,
        tile: TileFormat,
        form: ColorForm,
        device: Device,
        prepare: Prepare,
        on_done: OnDone | None = None,
    ) -> None:
        assert tile.shape is not None
        rows, columns = tile.shape
        self.format = tile
        self._form = form
        shapes_out = [
            (group.num_planes, group.scale * rows, group.scale * columns) for group in form.outputs
        ]
        shape_in = (form.num_input_planes, rows, columns)
        self._ring = Ring(device, shape_in, shapes_out, tile.dtype, prepare, NUM_SLOTS, on_done)

    @property
    def is_idle(self) -> bool:
        """Whether no tile is in the engine."""
        return not self._ring.num_in_flight

    def warm_up(self) -> None:
        """Run a tile of zeros, so that everything a first tile allocates is allocated now."""
        assert self.format.shape is not None
        black = np.zeros(self.format.shape, self.format.dtype)
        self.result(self.submit([black] * self._form.num_input_planes))

    def submit(self, tile: Sequence[Plane]) -> RingTicket:
        """See `Session.submit`."""
        check_tile(tile, self.format, self._form)
        return self._ring.submit(tile)

    def result(self, ticket: Ticket) -> tuple[Plane, ...]:
        """See `Session.result`."""
        assert isinstance(ticket, RingTicket)
        return self._ring.result(ticket)

    def close(self) -> None:
        """See `Session.close`."""
        self._ring.close()
