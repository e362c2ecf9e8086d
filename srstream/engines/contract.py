"""The contract between the enhancer and the engines that run a network.

A tile has one plane for each input plane of the model's color form, all (H, W) = (rows, columns) of
the luma grid. A result has one plane for each output plane, (scale H, scale W); U and V of a
`yuv420` model have half of Y's scale. All are codes of Y, U, V in the range of the file. The
engine converts them to the values that the network expects (`TileFormat.to_network`) and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from srstream.color import CodeRange, code_range, rgb_to_yuv_matrix
from srstream.config import ModelConfig
from srstream.errors import EngineError
from srstream.frame import Plane
from srstream.models.table import COLOR_FORMS, ColorForm, ColorFormName

Matrix = NDArray[np.float64]

OnDone = Callable[[], None]
"""A callback that runs in any thread when a tile is done. It must return at once, never raise."""

NETWORK_PEAK = 255.0
"""Divisor of codes: networks on Y, U, V are trained on 8-bit limited-range codes divided by it."""


@dataclass(frozen=True, slots=True)
class Affine:
    """An affine map of n planes: `mix` (n, n) times the planes plus `offset` (n,)."""

    mix: Matrix
    offset: Matrix

    @property
    def gains(self) -> Matrix | None:
        """Return the gain of each plane, (n,); None if planes are mixed."""
        gains: Matrix = np.diag(self.mix).copy()
        return gains if np.array_equal(self.mix, np.diag(gains)) else None

    def inverse(self) -> Affine:
        """Return the map that undoes this one."""
        gains = self.gains
        mix = np.linalg.inv(self.mix) if gains is None else np.diag(1.0 / gains)
        return Affine(np.asarray(mix, np.float64), -mix @ self.offset)

    def of_planes(self, first: int, num_planes: int) -> Affine:
        """Return the map of some of the planes, which must not be mixed with the others."""
        kept = slice(first, first + num_planes)
        return Affine(self.mix[kept, kept], self.offset[kept])


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do with its weights."""

    name: str
    """The engine's name in the table of engines."""
    device: str
    weights: Path
    """The file of the network's weights; the first one if several are mixed."""
    weights_sha256: str
    """SHA-256 of everything that determines the weights."""
    color_form: ColorFormName
    """Which planes are the input and the output; see `COLOR_FORMS`."""
    scale: int
    """Output luma samples per input sample, along each axis."""
    halo: int
    """Radius of the network's receptive field in input pixels, by which tiles must overlap."""
    activation_bytes_per_pixel: int
    """Working memory for one input pixel of one tile in flight."""
    num_streams: int
    """Tiles that are computed at the same time."""
    num_threads: int
    precision: str = "float32"
    """The number format in which the network is computed."""
    border: int = 0
    """Samples by which a picture must be extended on each side with its outermost ones. They are
    cut off the result, so that the zeros which the network sees beyond an edge do not show."""
    min_bits: int = 8
    max_bits: int = 16
    takes_any_shape: bool = False
    """Whether a session can be opened for tiles of any shape, with the same bits as a result."""
    tiles_are_exact: bool = True
    """Whether a sample depends on nothing beyond the halo, to the last bit. If not, it depends on
    its whole tile, and one sample in some ten thousand may round to the next code."""
    max_tile_side: int | None = None
    """Maximum number of rows and of columns of a tile; None for any number."""
    preferred_tile_pixels: int | None = None
    """Largest tile to use where memory does not demand smaller ones; None: what suits a CPU."""
    mixes_sets: bool = False
    """Whether a knob is turned, so that the weights are a mixture of several sets."""
    is_deterministic: bool = True
    """Whether the same tile always gives the same result, whatever runs at the same time."""

    @property
    def form(self) -> ColorForm:
        return COLOR_FORMS[self.color_form]


@dataclass(frozen=True, slots=True)
class TileFormat:
    """The format of the tiles for which a session is opened."""

    shape: tuple[int, int] | None
    """(rows, columns) of every tile; None for tiles of any shape, if the engine takes them."""
    bits: int
    """Depth, 8 to 16. Codes are 0 to 2**bits - 1, uint8 for 8 bits and uint16 for more."""
    matrix: int | None = None
    """H.273 matrix of Y, U, V. Only `rgb` models need it."""
    full_range: bool = False
    """Whether the codes of Y, U, V use the full range."""

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """The numpy type of the codes."""
        return np.dtype(np.uint8) if self.bits <= 8 else np.dtype(np.uint16)

    def to_network(self, color_form: ColorFormName) -> Affine:
        """Return the map from codes to the values on which a network of this form was trained.

        These are R, G, B in [0, 1], or Y, U, V as codes of 8 bits in limited range, divided by 255.
        Nothing is clipped.
        """
        luma = code_range(self.bits, self.full_range)
        chroma = code_range(self.bits, self.full_range, is_chroma=True)
        zeros, spans = _columns(luma, chroma)
        if color_form == "rgb":
            assert self.matrix is not None
            mix = np.linalg.inv(rgb_to_yuv_matrix(self.matrix)) / spans
            return Affine(mix, -mix @ zeros)
        normal_zeros, normal_spans = _columns(
            code_range(8, False), code_range(8, False, is_chroma=True)
        )
        gains = normal_spans / spans
        planes = slice(COLOR_FORMS[color_form].num_input_planes)
        return Affine(
            np.diag(gains[planes]) / NETWORK_PEAK,
            (normal_zeros - gains * zeros)[planes] / NETWORK_PEAK,
        )

    def from_network(self, color_form: ColorFormName) -> Affine:
        """Return the map from a network's values to codes, neither rounded nor clamped."""
        return self.to_network(color_form).inverse()


def _columns(luma: CodeRange, chroma: CodeRange) -> tuple[Matrix, Matrix]:
    """Return the zeros and the spans of Y, U, V."""
    return (
        np.array([luma.zero, chroma.zero, chroma.zero]),
        np.array([luma.span, chroma.span, chroma.span]),
    )


def check_tile(tile: Sequence[Plane], wanted: TileFormat, form: ColorForm) -> None:
    """Raise `EngineError` unless a session for `wanted` takes these planes."""
    if len(tile) != form.num_input_planes:
        raise EngineError(
            f"a session for tiles of {form.num_input_planes} planes was given one of {len(tile)}"
        )
    shape = wanted.shape or tile[0].shape
    for plane_HW in tile:
        if plane_HW.shape != shape or plane_HW.ndim != 2 or plane_HW.dtype != wanted.dtype:
            raise EngineError(
                f"a session for tiles of {shape} {wanted.dtype} was given one of "
                f"{plane_HW.shape} {plane_HW.dtype}"
            )


class Ticket(Protocol):
    """A tile in an engine. Pass it to `Session.result` once."""

    def is_done(self) -> bool:
        """Return whether `Session.result` would return or raise without waiting. Raises nothing."""
        ...


class Session(Protocol):
    """An engine opened for one format of tiles. A single thread submits and collects."""

    format: TileFormat
    num_in_flight: int
    """Tiles that the engine holds at once; another `submit` waits for the oldest."""

    def submit(self, tile: Sequence[Plane]) -> Ticket:
        """Start one tile, given as its input planes, (H, W) each.

        The planes are copied before this returns, so they may be views. It waits only if
        `num_in_flight` tiles are in the engine already.

        Raises:
            EngineError: the number, shape or dtype of the planes is wrong, or the engine failed.
        """
        ...

    def result(self, ticket: Ticket) -> tuple[Plane, ...]:
        """Wait for a tile and return its output planes, rounded half to even and clamped.

        They have the dtype of the input and belong to the caller. Tickets may be passed in any
        order, each once.

        Raises:
            EngineError: the engine failed on this tile.
        """
        ...

    def close(self) -> None:
        """Wait for the tiles in the engine, drop their results and free the session's memory."""
        ...


class Engine(Protocol):
    """A network on a device, whose sessions enlarge tiles."""

    capabilities: Capabilities

    def open_session(self, tile: TileFormat, on_done: OnDone | None = None) -> Session:
        """Compile the network for tiles of this format.

        `on_done` is called for every tile, computed or failed, soon after its ticket's `is_done`
        has turned true, even if nobody waits for the tile or submits another. So a caller that also
        waits for other things need not poll.

        Raises:
            EngineMemoryError: the device has too little memory for tiles of this size.
            EngineError: the device cannot run the network.
        """
        ...

    def close(self) -> None:
        """Free the engine's resources. Its sessions must be closed first."""
        ...


@runtime_checkable
class Refittable(Protocol):
    """An engine that can exchange its weights while its sessions stay open."""

    def refit(self, model: ModelConfig) -> bool:
        """Exchange the weights between two tiles. `Engine.capabilities` changes with them.

        Returns:
            False, with nothing changed, if another engine must be opened for these weights.

        Raises:
            EngineError: a session has tiles in flight.
            WeightsError: the new weights cannot be used; the old ones stay.
        """
        ...
