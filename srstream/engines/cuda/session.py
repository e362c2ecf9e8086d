"""A session whose tiles go through a ring of slots."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from srstream.engines.contract import OnDone, Ticket, TileFormat, check_tile
from srstream.engines.cuda.device import Recorder
from srstream.engines.cuda.half import TileProgram
from srstream.engines.cuda.ring import NUM_SLOTS, BufferForm, Device, Ring, RingTicket, Run
from srstream.frame import Plane
from srstream.models.table import ColorForm


class RingSession:
    """A `Session` whose tiles go through a ring of slots.

    Args:
        program: the network with its conversions from codes and back.
        record: makes what queues the program for a slot.
    """

    num_in_flight = NUM_SLOTS

    def __init__(
        self,
        tile: TileFormat,
        form: ColorForm,
        device: Device,
        program: TileProgram,
        record: Recorder,
        on_done: OnDone | None = None,
    ) -> None:
        assert tile.shape is not None
        rows, columns = tile.shape
        self.format = tile
        self._form = form
        given = BufferForm((form.num_input_planes, rows, columns), tile.dtype)
        made = [
            BufferForm((group.num_planes, group.scale * rows, group.scale * columns), tile.dtype)
            for group in form.outputs
        ]

        def prepare(inputs: Sequence[Any], outputs: Sequence[Any], stream: Any) -> Run:
            replay = record(partial(program, inputs[0], outputs), stream)
            return lambda parts: replay()

        self._ring = Ring(device, [given], made, prepare, NUM_SLOTS, on_done)

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
