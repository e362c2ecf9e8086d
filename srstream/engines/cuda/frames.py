"""Whole frames in the ring of slots: planes up, planes down, everything else on the device.

A frame's work has three parts, all in the compute stream: the network's input is made of the
source's planes, each tile is enlarged into its place, and the output's planes are made of the
enlarged ones. What the parts share lies in buffers of the session, not of a slot: frames are
computed one after the other. So a tile that is not computed keeps what it showed in the last frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from srstream.color import CodeRange
from srstream.engines.contract import OnDone, Ticket
from srstream.engines.cuda.device import TORCH_DTYPES, Recorder
from srstream.engines.cuda.half import TileProgram, from_codes, put_codes
from srstream.engines.cuda.ring import NUM_SLOTS, BufferForm, Device, Ring, RingTicket, Run
from srstream.engines.tiles import TileGrid
from srstream.engines.whole_frames import FlatPlane, FrameRecipe, PlaneRecipe, PlaneSource
from srstream.errors import EngineError
from srstream.frame import Plane
from srstream.models.table import ColorForm
from srstream.resampling import STILL, Sampling, mean_matrix, sampling_matrix

LARGEST_FRAME_PIXELS = 2304 * 4096
"""Largest frame to make as a whole. A larger one, which may be a picture of any size, goes in tiles
whose number is bounded by memory."""

MEAN = BufferForm((1, 1, 1), np.dtype(np.float32))
"""The buffer for the mean of the network's luma."""


class FrameProgram:
    """Everything that is done to a frame on the device.

    Args:
        recipe: what is done around the network.
        grid: the network's tiles, on the frame with its border.
        border: samples by which the frame is extended on each side for the network.
        form: the network's planes.
        network: the network with its conversions, for the tiles' format.
    """

    def __init__(
        self,
        recipe: FrameRecipe,
        grid: TileGrid,
        border: int,
        form: ColorForm,
        network: TileProgram,
        device: torch.device,
    ) -> None:
        self.recipe, self.grid, self.tiles = recipe, grid, grid.tiles()
        self._border, self._network = border, network
        self._scales = [group.scale for group in form.outputs]
        self._places = [
            (number, plane)
            for number, group in enumerate(form.outputs)
            for plane in range(group.num_planes)
        ]
        self._given = torch.zeros((len(recipe.inputs), grid.height, grid.width), device=device)
        self._made = [
            torch.zeros(
                (group.num_planes, group.scale * grid.height, group.scale * grid.width),
                dtype=TORCH_DTYPES[recipe.tile.dtype],
                device=device,
            )
            for group in form.outputs
        ]
        self._inputs = [self._maker(source, device) for source in recipe.inputs]
        self._outputs = [self._maker(source, device) for source in recipe.outputs]

    @torch.inference_mode()
    def begin(self, planes: Sequence[Tensor]) -> None:
        """Make the network's input of a frame's planes of codes, (1, rows, columns) each."""
        for given, maker in zip(self._given, self._inputs, strict=True):
            made = self._plane(maker, planes)
            sides = (self._border,) * 4
            given.copy_(F.pad(made[None, None], sides, mode="replicate")[0, 0])

    @torch.inference_mode()
    def enlarge(self, number: int) -> None:
        """Enlarge a tile into its place."""
        tile = self.tiles[number]
        rows, columns = tile.window(self.grid.tile_shape).slices
        groups = self._network.codes(self._given[:, rows, columns])
        for made, group, scale in zip(self._made, groups, self._scales, strict=True):
            target, kept = tile.kept_in_picture(scale), tile.kept_in_result(scale)
            put_codes(made[(slice(None), *target)], group[(slice(None), *kept)])

    @torch.inference_mode()
    def end(self, planes: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Make the output's planes, and the mean of the network's luma."""
        *targets, mean = outputs
        mean.copy_(from_codes(self._enlarged(0)).mean())
        for target, maker, place in zip(targets, self._outputs, self.recipe.places, strict=True):
            if isinstance(maker, _Maker) and maker.is_copy:
                made = self._codes(maker.recipe, planes)
            else:
                made = self._plane(maker, planes)
            rows, columns = made.shape
            if (rows, columns) != place.shape:
                put_codes(target, torch.full_like(target, place.black, dtype=torch.float32))
            filled = target[0, place.top : place.top + rows, place.left : place.left + columns]
            put_codes(filled, made)

    def _maker(self, source: PlaneSource, device: torch.device) -> _Maker | Tensor:
        """Return what makes a plane, or the plane itself if it is flat."""
        if isinstance(source, FlatPlane):
            return torch.full(source.shape, float(source.code), device=device)
        if source.origin == "frame":
            return _Maker(source, self.recipe.shapes[source.index], device)
        rows, columns = self._enlarged(source.index).shape
        return _Maker(source, (rows, columns), device, self.recipe.shapes[0])

    def _plane(self, maker: _Maker | Tensor, planes: Sequence[Tensor]) -> Tensor:
        """Return the codes of a plane, (rows, columns) float32, made of a frame's planes."""
        if isinstance(maker, Tensor):
            return maker
        recipe, source = maker.recipe, None
        if recipe.keeps_mean:
            source = _without(self._given[recipe.index], self._border)
        return maker(from_codes(self._codes(recipe, planes)), source)

    def _codes(self, recipe: PlaneRecipe, planes: Sequence[Tensor]) -> Tensor:
        """Return the codes of which a plane is made."""
        if recipe.origin == "frame":
            return planes[recipe.index][0]
        return self._enlarged(recipe.index)

    def _enlarged(self, index: int) -> Tensor:
        """Return one of the network's output planes, without its border."""
        number, plane = self._places[index]
        return _without(self._made[number][plane], self._border * self._scales[number])


class _Maker:
    """Makes a plane of another by its recipe.

    Codes are float32, and each step rounds half to even. An axis is resampled by a product with a
    matrix, whatever the sizes and the siting.

    Args:
        shape: (rows, columns) of the plane that is read.
        shape_of_source: the same of the network's input, whose local mean is kept.
    """

    def __init__(
        self,
        recipe: PlaneRecipe,
        shape: tuple[int, int],
        device: torch.device,
        shape_of_source: tuple[int, int] | None = None,
    ) -> None:
        self.recipe = recipe
        self._rows = _matrix(shape[0], recipe.shape[0], recipe.rows, device)
        columns = _matrix(shape[1], recipe.shape[1], recipe.columns, device)
        self._columns = None if columns is None else columns.T.contiguous()
        self.is_copy = (
            self._rows is None
            and columns is None
            and not recipe.keeps_mean
            and recipe.before[0] == recipe.before[1] == recipe.after[1]
        )
        if recipe.keeps_mean:
            assert shape_of_source is not None
            self._factor = shape[0] // shape_of_source[0]
            down, across = (torch.from_numpy(mean_matrix(n)).to(device) for n in shape_of_source)
            self._mean = down, across.T.contiguous()

    def __call__(self, codes: Tensor, source: Tensor | None = None) -> Tensor:
        recipe = self.recipe
        values = _converted(codes, *recipe.before)
        missing = None if source is None else self._missing(values, source)
        resampled = values
        if self._rows is not None:
            resampled = self._rows @ resampled
        if self._columns is not None:
            resampled = resampled @ self._columns
        if missing is not None:
            shape = tuple(resampled.shape)
            resampled = resampled + F.interpolate(missing, shape, mode="bilinear")[0, 0]
        if resampled is not values:
            resampled = torch.round(resampled).clamp_(0.0, float(recipe.peak))
        return _converted(resampled, *recipe.after)

    def _missing(self, made: Tensor, source: Tensor) -> Tensor:
        """Return what a plane lacks of its source's local mean, (1, 1, h, w): `missing_mean`."""
        means = F.avg_pool2d(made[None, None], self._factor)[0, 0]
        down, across = self._mean
        return (down @ (source - means) @ across)[None, None]


def _matrix(num_in: int, num_out: int, sampling: Sampling, device: torch.device) -> Tensor | None:
    """Return what resamples an axis, (num_out, num_in); None if every sample stays as it is."""
    if num_in == num_out and sampling == STILL:
        return None
    return torch.from_numpy(sampling_matrix(num_in, num_out, sampling)).to(device)


def _converted(codes: Tensor, source: CodeRange, target: CodeRange) -> Tensor:
    """Express the same values in other codes; see `convert_codes`."""
    if source == target:
        return codes
    gain = target.span / source.span
    values = codes * gain + (target.zero - source.zero * gain)
    return torch.round(values).clamp_(0.0, float(target.peak))


def _without(plane: Tensor, border: int) -> Tensor:
    """Return a plane without `border` samples on each side."""
    return plane[border:-border, border:-border] if border else plane


class RingFrames:
    """A `FrameSession` whose frames go through a ring of slots.

    Args:
        record: makes what queues the work around the network.
        record_network: the same for the network.
    """

    num_in_flight = NUM_SLOTS

    def __init__(
        self,
        program: FrameProgram,
        device: Device,
        record: Recorder,
        record_network: Recorder,
        on_done: OnDone | None = None,
    ) -> None:
        recipe = program.recipe
        self._recipe, self._num_tiles = recipe, len(program.tiles)
        inputs = [BufferForm((1, *shape), recipe.dtype) for shape in recipe.shapes]
        outputs = [BufferForm((1, *place.shape), recipe.dtype_out) for place in recipe.places]
        enlarge: list[Any] = []

        def prepare(given: Sequence[Any], made: Sequence[Any], stream: Any) -> Run:
            begin = record(partial(program.begin, given), stream)
            if not enlarge:  # the tiles' buffers are the session's
                for number in range(self._num_tiles):
                    enlarge.append(record_network(partial(program.enlarge, number), stream))
            end = record(partial(program.end, given, made), stream)

            def run(parts: Sequence[int] | None) -> None:
                begin()
                for number in range(self._num_tiles) if parts is None else parts:
                    enlarge[number]()
                end()

            return run

        self._ring = Ring(device, inputs, [*outputs, MEAN], prepare, NUM_SLOTS, on_done)

    @property
    def is_idle(self) -> bool:
        """Whether no frame is in the engine."""
        return not self._ring.num_in_flight

    def warm_up(self) -> None:
        """Run a frame of zeros, so that everything a first frame allocates is allocated now."""
        recipe = self._recipe
        self.result(self.submit([np.zeros(shape, recipe.dtype) for shape in recipe.shapes]))

    def submit(self, planes: Sequence[Plane], tiles: Sequence[int] | None = None) -> RingTicket:
        """See `FrameSession.submit`."""
        recipe = self._recipe
        found = [(plane.shape, plane.dtype) for plane in planes]
        if found != [(shape, recipe.dtype) for shape in recipe.shapes]:
            raise EngineError(
                f"a session for frames of {recipe.shapes} {recipe.dtype} was given one of "
                f"{[plane.shape for plane in planes]}"
            )
        return self._ring.submit(planes, tiles)

    def result(self, ticket: Ticket) -> tuple[tuple[Plane, ...], float]:
        """See `FrameSession.result`."""
        assert isinstance(ticket, RingTicket)
        *planes, mean = self._ring.result(ticket)
        return tuple(planes), float(mean[0, 0])

    def close(self) -> None:
        """See `FrameSession.close`."""
        self._ring.close()
