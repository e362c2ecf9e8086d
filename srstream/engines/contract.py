"""The one contract between the pipeline and whatever runs a network.

Shapes: H and W are rows and columns of a tile; a result is `scale` times as large on each axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from srstream.frame import Plane


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine with its weights can do, as data."""

    name: str
    """The engine's, as in the table; also the package it is from."""
    device: str
    weights: Path
    """The file that the network was read from."""
    scale: int
    """Output pixels per input pixel, along each axis."""
    halo: int
    """Radius of the network's receptive field in input pixels; what tiles must overlap by."""
    activation_bytes_per_pixel: int
    """Working memory for one input pixel of one tile in flight."""
    num_streams: int
    """Tiles that are computed at the same time."""
    num_threads: int
    min_bits: int = 8
    max_bits: int = 16
    is_deterministic: bool = True
    """The same tile gives the same result, whatever else runs beside it."""


class Ticket(Protocol):
    """A tile on its way; hand it to `Session.result` once."""

    def is_done(self) -> bool:
        """Whether `Session.result` would return without waiting."""
        ...


class Session(Protocol):
    """An engine opened for one tile shape and one bit depth.

    Not safe for several threads: one thread submits and collects.
    """

    tile_shape: tuple[int, int]
    """(rows, columns) of every tile."""
    bits: int
    num_in_flight: int
    """Tiles that can be in the engine at once; one more `submit` waits for the oldest."""

    def submit(self, tile_HW: Plane) -> Ticket:
        """Starts one tile, codes 0 to 2**bits - 1, uint8 (8 bits) or uint16.

        The tile is copied before this returns and may be any view. Waits only while
        `num_in_flight` tiles are in the engine already.

        Raises:
            EngineError: shape or dtype aren't the session's, or the engine failed.
        """
        ...

    def result(self, ticket: Ticket) -> Plane:
        """Waits for a tile: (scale H, scale W), same dtype, rounded half to even and clamped.

        The array is the caller's own. Tickets may be collected in any order, each once.

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

    def open_session(self, tile_shape: tuple[int, int], bits: int) -> Session:
        """Compiles for `tile_shape` = (rows, columns) and a depth of 8 to 16 bits.

        Raises:
            EngineError: the device cannot run it.
        """
        ...

    def close(self) -> None:
        """Frees what the engine holds; sessions must be closed before."""
        ...
