"""The one contract between the pipeline and whatever runs a network.

A tile is one plane for each input plane of the model's colour form, all (H, W) = (rows, columns) of
the luma grid; a result is one plane for each output plane, (scale H, scale W), where U and V of a
`yuv420` model have half of Y's scale. An `rgb` model is given and gives Y, U, V too: the conversion
from and to RGB is part of the engine's graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from srstream.frame import Plane
from srstream.models.table import COLOUR_FORMS, Colour, ColourForm


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine with its weights can do, as data."""

    name: str
    """The engine's, as in the table; also the package it is from."""
    device: str
    weights: Path
    """The file that the network was read from, the first of them if several were mixed."""
    weights_sha256: str
    """Of everything that decides the weights."""
    colour: Colour
    """Which planes go in and come out, see `COLOUR_FORMS`."""
    scale: int
    """Output luma samples per input one, along each axis."""
    halo: int
    """Radius of the network's receptive field in input pixels; what tiles must overlap by."""
    activation_bytes_per_pixel: int
    """Working memory for one input pixel of one tile in flight."""
    num_streams: int
    """Tiles that are computed at the same time."""
    num_threads: int
    min_bits: int = 8
    max_bits: int = 16
    takes_any_shape: bool = False
    """Sessions can be opened for tiles of any shape; a tile's result is the same bits in both."""
    is_deterministic: bool = True
    """The same tile gives the same result, whatever else runs beside it."""

    @property
    def form(self) -> ColourForm:
        return COLOUR_FORMS[self.colour]


@dataclass(frozen=True, slots=True)
class TileFormat:
    """What a session is opened for."""

    shape: tuple[int, int] | None
    """(rows, columns) of every tile; None: any, each its own, from engines that can."""
    bits: int
    """8 to 16: codes are 0 to 2**bits - 1, uint8 (8 bits) or uint16."""
    matrix: int | None = None
    """H.273 matrix of Y, U, V; `rgb` models need it, the others see the codes as they are."""
    full_range: bool = False
    """Of Y, U, V; for `rgb` models."""


class Ticket(Protocol):
    """A tile on its way; hand it to `Session.result` once."""

    def is_done(self) -> bool:
        """Whether `Session.result` would return without waiting."""
        ...


class Session(Protocol):
    """An engine opened for one format of tiles.

    Not safe for several threads: one thread submits and collects.
    """

    format: TileFormat
    num_in_flight: int
    """Tiles that can be in the engine at once; one more `submit` waits for the oldest."""

    def submit(self, tile: Sequence[Plane]) -> Ticket:
        """Starts one tile: its input planes, (H, W) each.

        They are copied before this returns and may be any views. Waits only while `num_in_flight`
        tiles are in the engine already.

        Raises:
            EngineError: number, shape or dtype aren't the session's, or the engine failed.
        """
        ...

    def result(self, ticket: Ticket) -> tuple[Plane, ...]:
        """Waits for a tile's output planes: same dtype, rounded half to even and clamped.

        The arrays are the caller's own. Tickets may be collected in any order, each once.

        Raises:
            EngineError: the engine failed on it.
        """
        ...

    def close(self) -> None:
        """Waits for what is in flight, throws it away and frees the engine's memory."""
        ...


class Engine(Protocol):
    """A network on a device, from which sessions are opened."""

    capabilities: Capabilities

    def open_session(self, tile: TileFormat) -> Session:
        """Compiles for tiles of this format.

        Raises:
            EngineError: the device cannot run it.
        """
        ...

    def close(self) -> None:
        """Frees what the engine holds; sessions must be closed before."""
        ...
