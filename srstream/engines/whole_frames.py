"""Whole frames: everything around the network, described so that a device can do it.

An engine that makes whole frames takes the planes of a source frame and returns the planes of the
output frame. In between nothing touches the host. What it must compute is a `FrameRecipe`, which
the enhancer's composer writes, and which it follows itself for engines that take tiles only. So
both give the same codes, but for one where a value lies half-way between two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from srstream.color import CodeRange
from srstream.engines.contract import Capabilities, OnDone, Ticket, TileFormat
from srstream.engines.tiles import TileGrid
from srstream.frame import Plane
from srstream.resampling import Sampling

Origin = Literal["frame", "network"]


def dtype_of(bits: int) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
    """Return the numpy type of codes of `bits`."""
    return np.dtype(np.uint8) if bits <= 8 else np.dtype(np.uint16)


@dataclass(frozen=True, slots=True)
class PlaneRecipe:
    """How a plane is made of another one. Each step rounds half to even and clamps to codes.

    First the codes are converted (`convert_codes`), then the plane is resampled to `shape`
    (`resample_plane`), and then the codes are converted once more.
    """

    origin: Origin
    """Whether the plane is one of the source frame's or one of the network's output planes."""
    index: int
    before: tuple[CodeRange, CodeRange]
    """The codes of the plane, and those in which it is resampled."""
    shape: tuple[int, int]
    rows: Sampling
    columns: Sampling
    after: tuple[CodeRange, CodeRange]
    """The codes in which it was resampled, and those of the result."""
    keeps_mean: bool = False
    """Whether it is given the local mean of the network's input plane of the same index
    (`missing_mean`)."""

    @property
    def peak(self) -> int:
        """The largest code while the plane is resampled."""
        return self.before[1].peak


@dataclass(frozen=True, slots=True)
class FlatPlane:
    """A plane of one code."""

    code: int
    shape: tuple[int, int]
    bits: int

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        return dtype_of(self.bits)


PlaneSource = PlaneRecipe | FlatPlane


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a plane in the output's plane of `shape`, which is `black` around it."""

    top: int
    left: int
    shape: tuple[int, int]
    black: int


@dataclass(frozen=True, slots=True)
class FrameRecipe:
    """Everything that is done to the planes of a frame."""

    shapes: tuple[tuple[int, int], ...]
    """(rows, columns) of each plane of the source frame that is needed."""
    bits: int
    """Depth of the source frame."""
    inputs: tuple[PlaneSource, ...]
    """The network's input planes, on the luma grid."""
    tile: TileFormat
    """The format of the network's tiles; its shape is None."""
    outputs: tuple[PlaneSource, ...]
    places: tuple[Place, ...]
    bits_out: int

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """The numpy type of the source frame's codes."""
        return dtype_of(self.bits)

    @property
    def dtype_out(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """The numpy type of the output frame's codes."""
        return dtype_of(self.bits_out)


class FrameSession(Protocol):
    """An engine opened for frames of one recipe. A single thread submits and collects."""

    num_in_flight: int
    """Frames that the engine holds at once; another `submit` waits for the oldest."""

    def submit(self, planes: Sequence[Plane], tiles: Sequence[int] | None = None) -> Ticket:
        """Start one frame, given as the source planes of the recipe.

        The planes are copied before this returns, so they may be views.

        Args:
            tiles: the tiles of the grid to compute, by their place in `TileGrid.tiles`; the others
                stay as they were in the frame that was submitted to this session before. None
                computes all.

        Raises:
            EngineError: the number, shape or dtype of the planes is wrong, or the engine failed.
        """
        ...

    def result(self, ticket: Ticket) -> tuple[tuple[Plane, ...], float]:
        """Wait for a frame, and return its planes and the mean of the network's luma, in codes.

        The planes belong to the caller. Tickets may be passed in any order, each once.

        Raises:
            EngineError: the engine failed on this frame.
        """
        ...

    def close(self) -> None:
        """Wait for the frames in the engine, drop their results and free the session's memory."""
        ...


@runtime_checkable
class FrameEngine(Protocol):
    """An engine that makes whole frames, beside tiles."""

    capabilities: Capabilities
    max_frame_pixels: int
    """The largest frame that it makes as a whole, in pixels of the source."""

    def open_frames(
        self, recipe: FrameRecipe, grid: TileGrid, on_done: OnDone | None = None
    ) -> FrameSession:
        """Make the network and the recipe ready for frames.

        Args:
            grid: the tiles in which the network sees the picture, with `Capabilities.border`.
            on_done: see `Engine.open_session`.

        Raises:
            EngineMemoryError: the device has too little memory for such frames.
            EngineError: the device cannot run the network.
        """
        ...
