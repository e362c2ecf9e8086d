"""The one contract between the pipeline and whatever runs a network.

A tile is one plane for each input plane of the model's color form, all (H, W) = (rows, columns) of
the luma grid; a result is one plane for each output plane, (scale H, scale W), where U and V of a
`yuv420` model have half of Y's scale. All are codes of Y, U, V in the range of the file. What the
network is given is another thing (`TileFormat.to_network`), and a part of the engine's graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from srstream.color import CodeRange, code_range, rgb_to_yuv_matrix
from srstream.errors import EngineError
from srstream.frame import Plane
from srstream.models.table import COLOR_FORMS, ColorForm, ColorFormName

Matrix = NDArray[np.float64]

OnDone = Callable[[], None]
"""Takes the news that a tile is done, in any thread; returns at once and raises nothing."""

NETWORK_PEAK = 255.0
"""Networks on Y, U, V are trained on codes of 8 bits in limited range, divided by this."""


@dataclass(frozen=True, slots=True)
class Affine:
    """`mix` (n, n) times the planes plus `offset` (n,)."""

    mix: Matrix
    offset: Matrix

    @property
    def gains(self) -> Matrix | None:
        """Of each plane, (n,), where none is mixed with another."""
        gains: Matrix = np.diag(self.mix).copy()
        return gains if np.array_equal(self.mix, np.diag(gains)) else None

    def inverse(self) -> Affine:
        """What undoes it."""
        gains = self.gains
        mix = np.linalg.inv(self.mix) if gains is None else np.diag(1.0 / gains)
        return Affine(np.asarray(mix, np.float64), -mix @ self.offset)

    def of_planes(self, first: int, num_planes: int) -> Affine:
        """For some of the planes, which must not be mixed with the others."""
        kept = slice(first, first + num_planes)
        return Affine(self.mix[kept, kept], self.offset[kept])


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine with its weights can do, as data."""

    name: str
    """The engine's, as in the table."""
    device: str
    weights: Path
    """The file that the network was read from, the first of them if several were mixed."""
    weights_sha256: str
    """Of everything that decides the weights."""
    color_form: ColorFormName
    """Which planes go in and come out, see `COLOR_FORMS`."""
    scale: int
    """Output luma samples per input one, along each axis."""
    halo: int
    """Radius of the network's receptive field in input pixels; what tiles must overlap by."""
    activation_bytes_per_pixel: int
    """Working memory for one input pixel of one tile in flight."""
    num_streams: int
    """Tiles that are computed at the same time."""
    num_threads: int
    precision: str = "float32"
    """What the network is computed in."""
    border: int = 0
    """Samples by which a picture is to be continued on each side, with its outermost ones, for the
    network's zeros beyond its edges not to show; cut off again from what comes out."""
    min_bits: int = 8
    max_bits: int = 16
    takes_any_shape: bool = False
    """Sessions can be opened for tiles of any shape; a tile's result is the same bits in both."""
    tiles_are_exact: bool = True
    """A sample depends on nothing beyond the halo, to the last bit; if not, on its whole tile: one
    in some ten thousand may then round to the code beside it."""
    max_tile_side: int | None = None
    """Rows and columns that a tile may have; None: any number."""
    mixes_sets: bool = False
    """A knob is turned: the weights are a mixture of several sets."""
    is_deterministic: bool = True
    """The same tile gives the same result, whatever else runs beside it."""

    @property
    def form(self) -> ColorForm:
        return COLOR_FORMS[self.color_form]


@dataclass(frozen=True, slots=True)
class TileFormat:
    """What a session is opened for."""

    shape: tuple[int, int] | None
    """(rows, columns) of every tile; None: any, each its own, from engines that can."""
    bits: int
    """8 to 16: codes are 0 to 2**bits - 1, uint8 (8 bits) or uint16."""
    matrix: int | None = None
    """H.273 matrix of Y, U, V; `rgb` models need it, the others see Y, U, V whatever it is."""
    full_range: bool = False
    """Of Y, U, V."""

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """Of the codes."""
        return np.dtype(np.uint8) if self.bits <= 8 else np.dtype(np.uint16)

    def to_network(self, color_form: ColorFormName) -> Affine:
        """From codes to what a network of this color form was trained on, nothing clipped.

        R, G, B in [0, 1], or Y, U, V as codes of 8 bits in limited range, divided by 255.
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
        """From what a network makes to codes, neither rounded nor clamped."""
        return self.to_network(color_form).inverse()


def _columns(luma: CodeRange, chroma: CodeRange) -> tuple[Matrix, Matrix]:
    """Zeros and spans of Y, U, V."""
    return (
        np.array([luma.zero, chroma.zero, chroma.zero]),
        np.array([luma.span, chroma.span, chroma.span]),
    )


def check_tile(tile: Sequence[Plane], wanted: TileFormat, form: ColorForm) -> None:
    """`EngineError` unless these are the planes that a session for `wanted` takes."""
    if len(tile) != form.num_input_planes:
        raise EngineError(
            f"a tile of {len(tile)} planes came to a session for {form.num_input_planes}"
        )
    shape = wanted.shape or tile[0].shape
    for plane_HW in tile:
        if plane_HW.shape != shape or plane_HW.ndim != 2 or plane_HW.dtype != wanted.dtype:
            raise EngineError(
                f"a tile of {plane_HW.shape} {plane_HW.dtype} came to a session for "
                f"{shape} {wanted.dtype}"
            )


class Ticket(Protocol):
    """A tile on its way; hand it to `Session.result` once."""

    def is_done(self) -> bool:
        """Whether `Session.result` would return, or raise, without waiting; raises nothing."""
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

    def open_session(self, tile: TileFormat, on_done: OnDone | None = None) -> Session:
        """Compiles for tiles of this format.

        `on_done` is called for every tile, computed or failed, soon after its ticket's `is_done`
        has turned true, and nobody needs to wait for the tile or submit another for that. So a
        caller that has other things to wait for as well need not ask again and again.

        Raises:
            EngineMemoryError: the device has no memory for tiles of this size.
            EngineError: the device cannot run it.
        """
        ...

    def close(self) -> None:
        """Frees what the engine holds; sessions must be closed before."""
        ...
