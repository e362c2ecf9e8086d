"""The stage that enlarges frames, in order: what the model makes, and the rest by bicubic.

Y goes through the network tile by tile, and an alpha plane that isn't opaque does where the weights
are those of one set: what mends codecs' damage or makes detail up has no business there, and such
alpha is enlarged by bicubic. A luma model leaves U and V to bicubic; the others are given U and V
on the luma grid, and what they make of them is brought to where the output's chroma samples sit.
RGB becomes 16-bit Y, U, V on its way. Everything that the engine doesn't do happens here while the
engine works on the next tiles.

Of a frame that resembles the last one only the rectangles that changed are computed (`reuse.py`).
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from srstream import color as colour
from srstream.color import CodeRange, Sampling, code_range, is_full_range
from srstream.config import ReuseConfig
from srstream.engines.contract import Engine, OnDone, Session, Ticket, TileFormat
from srstream.engines.tiles import Rectangle, Tile, TileGrid, choose_tiles
from srstream.enhancer.reuse import CellGrid, KnownShapes, Memory, ResampledPlane
from srstream.errors import EngineError, EngineMemoryError, RefusedError
from srstream.frame import ColorSpec, Frame, FrameForm, Plane, PlaneLayout

logger = logging.getLogger(__name__)

MAX_OPEN_SESSIONS = 4
"""A stream may change its size back and forth; more than these aren't kept compiled."""

Resample = Callable[[Any, tuple[int, int], Sampling, Sampling, int], Plane]

NO_REUSE = ReuseConfig(enabled=False)

MAX_MEAN_CHANGE = 0.08
"""Of the code range: a network that works leaves a frame's mean luma within a tenth of this, unless
every pixel differs from its neighbours; so half of the frame's detail is added."""

RESERVED_BYTES = 512 << 20
"""Of the memory a job may use: interpreter, libraries, decoder, encoder, frames on their way."""

RGB_BITS = 16
RGB_LAYOUT = PlaneLayout("yuv", RGB_BITS)
RGB_COLOR = ColorSpec(matrix=colour.BT601, full_range=True)
"""What RGB is worked on as. Any matrix would do, the network was trained on BT.601 luma."""


@dataclass(frozen=True, slots=True)
class _Placing:
    """Where in the output a frame goes, in luma samples; smaller than it if shapes differ."""

    left: int
    top: int
    width: int
    height: int


@dataclass(slots=True)
class _Part:
    """A rectangle of a plane that was computed anew, within the window that the network saw."""

    rectangle: Rectangle
    window: Rectangle
    result: tuple[Plane, ...]


@dataclass(frozen=True, slots=True)
class _Whole:
    """A tile of a frame that is computed as a whole."""

    grid: TileGrid
    tile: Tile

    @property
    def window(self) -> Rectangle:
        return self.tile.window(self.grid.tile_shape)


@dataclass(frozen=True, slots=True)
class _Patch:
    """A rectangle of a frame of which only parts are computed."""

    rectangle: Rectangle
    window: Rectangle


@dataclass(frozen=True, slots=True)
class _QueuedTile:
    """What the engine has no room for yet."""

    job: _Job
    index: int
    planes: Sequence[Plane]
    """Whole, of which the tile is a part."""
    tile_format: TileFormat
    what: _Whole | _Patch


@dataclass(slots=True)
class _Job:
    """One frame between `push` and its return."""

    frame: Frame
    planes: tuple[Plane, ...]
    """As the network and the resampling take them; Y, U, V where the frame is RGB."""
    layout: PlaneLayout
    color: ColorSpec
    placing: _Placing
    enlarged: dict[int, list[Plane]] = field(default_factory=dict)
    """What the engine made: of luma (0), with U and V if the model makes them, and of alpha; with
    what the picture was continued by at its edges (`Capabilities.border`)."""
    made: dict[int, list[Plane]] = field(default_factory=dict)
    """The same without."""
    parts: dict[int, list[_Part]] = field(default_factory=dict)
    """Of planes that are mostly the last frame's: what was computed anew."""
    repeats_last: bool = False
    """Every sample is the last frame's, so the whole result is."""
    inputs: dict[int, list[Plane]] = field(default_factory=dict)
    """What a network that makes chroma was given: luma (0) or alpha, and U and V on its grid."""
    chroma: list[Plane] = field(default_factory=list)
    """Of the output, where the model leaves it to bicubic."""
    num_tiles_left: int = 0


class Enhancer:
    """Frames of the source in, frames of the output out, in the order in which they came.

    Args:
        source: the form of the frames to come; a frame of this size and pixel shape fills the
            output.
        output: the form of every frame that goes out.
        max_memory_bytes: what the whole job may use; decides how large tiles are.
        reuse: whether what did not change since the last frame is computed again.
        on_done: called from any thread whenever the engine has done a tile: `collect` may have
            frames, and `has_room` another answer.

    Raises:
        RefusedError: the output's layout can't be made from the source's, or the model works in RGB
            and the source's matrix can't be converted.
    """

    def __init__(
        self,
        engine: Engine,
        source: FrameForm,
        output: FrameForm,
        *,
        max_memory_bytes: int | None = None,
        reuse: ReuseConfig = NO_REUSE,
        on_done: OnDone | None = None,
    ) -> None:
        _check_kinds(source.layout, output.layout)
        self._source, self.output = source, output
        self._max_memory_bytes = max_memory_bytes
        self._on_done = on_done
        self._use(engine)
        self._sessions: OrderedDict[TileFormat, Session] = OrderedDict()
        self._tiles: deque[tuple[Session, Ticket, _Job, int, _Whole | _Patch]] = deque()
        self._queued_tiles: deque[_QueuedTile] = deque()
        self._jobs: deque[_Job] = deque()
        self._reuse = reuse
        self._memories: dict[tuple[int, TileFormat, tuple[int, ...]], Memory] = {}
        self._shapes = KnownShapes()
        self._chroma_memories = (ResampledPlane(), ResampledPlane())
        self._last_pushed: Frame | None = None
        self._last_enlarged: dict[int, list[Plane]] = {}
        self._last_output: Frame | None = None
        self.num_pixels = 0
        """Input pixels of all planes that were to be enlarged so far, as continued at the edges."""
        self.num_pixels_computed = 0
        """Of them, what the engine was given; halos count too."""

    def _use(self, engine: Engine) -> None:
        can = engine.capabilities
        if can.colour == "rgb" and self._source.layout.kind == "yuv":
            colour.rgb_to_yuv_matrix(self._source.color.matrix)
        self._engine = engine
        self._scale = can.scale
        self._form = can.form
        self._makes_chroma = can.colour != "luma"
        self._max_tile_bytes = self._memory_for_a_tile(self._max_memory_bytes)
        self._max_tile_side = can.max_tile_side

    def replace_engine(self, engine: Engine) -> list[Frame]:
        """Goes over to another engine, between two frames; returns those that were on their way.

        The frames pushed so far are the old engine's to the last sample, those pushed from now on
        the new one's. The old engine is the caller's to close. Open the new one before, so that no
        frame waits for it.

        Raises:
            RefusedError: the new one enlarges by another factor; the old one goes on.
        """
        if engine.capabilities.scale != self._scale:
            raise RefusedError(
                f"a stream that is enlarged {self._scale} times cannot go over to weights that "
                f"enlarge {engine.capabilities.scale} times"
            )
        finished = self.drain()
        self._close_sessions()
        self.forget()
        self._last_enlarged = {}
        self._use(engine)
        return finished

    def has_room(self) -> bool:
        """Whether `push` would begin a frame at once, and not wait for the engine first."""
        if self._queued_tiles:
            return False
        return not self._tiles or len(self._tiles) < self._tiles[-1][0].num_in_flight

    def push(self, frame: Frame) -> list[Frame]:
        """Starts a frame; returns those that are complete by now.

        Waits only for tiles of frames before it, if `has_room` says no; those of this one that the
        engine has no room for are handed to it later on, by `collect` or `drain`.

        A frame of another size than the source's is enlarged on its own and fitted into the
        output, its shape kept, with black around.

        Raises:
            EngineError: the engine failed, or a frame came out of it wrong.
        """
        while not self.has_room():
            self._collect()
            self._feed()
        job = self._job_of(frame)
        job.repeats_last = self._is_repetition(frame)
        self._last_pushed = frame
        self._jobs.append(job)
        self._submit(job)
        if not self._makes_chroma and not job.repeats_last:
            job.chroma = self._chroma_by_bicubic(job)
        return self.collect()

    def collect(self) -> list[Frame]:
        """The frames that are complete by now; waits for nothing.

        Raises:
            EngineError: the engine failed, or a frame came out of it wrong.
        """
        while self._tiles and self._tiles[0][1].is_done():
            self._collect()
            self._feed()
        return self._complete()

    def drain(self) -> list[Frame]:
        """The frames still on their way. More may be pushed afterwards."""
        self._finish_tiles()
        return self._complete()

    def _finish_tiles(self) -> None:
        while self._tiles:
            self._collect()
            self._feed()

    def forget(self) -> None:
        """The next frame is computed as a whole: what comes of it depends on none before it."""
        self._memories.clear()
        self._chroma_memories = (ResampledPlane(), ResampledPlane())
        self._last_pushed = None

    def close(self) -> None:
        """Drops what is on its way and closes the engine's sessions, not the engine."""
        self._tiles.clear()
        self._queued_tiles.clear()
        self._jobs.clear()
        self.forget()
        self._last_enlarged, self._last_output = {}, None
        self._close_sessions()

    def _close_sessions(self) -> None:
        while self._sessions:
            self._sessions.popitem()[1].close()

    def _memory_for_a_tile(self, max_memory_bytes: int | None) -> int | None:
        if max_memory_bytes is None:
            return None
        output = self.output
        frames = 4 * output.layout.frame_bytes(output.width, output.height)
        left = max_memory_bytes - RESERVED_BYTES - frames
        return max(1, left // self._engine.capabilities.num_streams)

    def _job_of(self, frame: Frame) -> _Job:
        _check_kinds(frame.layout, self.output.layout)
        placing = self._placing(frame)
        if frame.layout.kind != "rgb":
            frame = self._with_matrix_of_output(frame)
            return _Job(frame, frame.planes, frame.layout, frame.color, placing)
        alpha = frame.layout.has_alpha
        layout = replace(RGB_LAYOUT, has_alpha=alpha)
        green, blue, red, *rest = frame.planes
        planes: list[Plane] = list(
            colour.rgb_to_yuv444(
                (green, blue, red),
                frame.layout.bits,
                self._matrix_for_rgb(),
                full_range=self._keeps_rgb_range(frame) or is_full_range(frame.color, frame.layout),
            )
        )
        if alpha:
            full = code_range(frame.layout.bits, True)
            planes.append(colour.convert_codes(rest[0], full, code_range(RGB_BITS, True)))
        return _Job(frame, tuple(planes), layout, RGB_COLOR, placing)

    def _with_matrix_of_output(self, frame: Frame) -> Frame:
        """A frame of another matrix than the output's, as some videos have them, made deep in it.

        What cannot be converted stays as it is; the decoder has said so.
        """
        old, new = frame.color.matrix, self.output.color.matrix
        is_yuv = frame.layout.kind == self.output.layout.kind == "yuv"
        if not is_yuv or colour.same_matrix(old, new) is not False:
            return frame
        planes = colour.with_matrix(frame.planes, frame.layout, frame.color, new)
        layout, color = replace(frame.layout, bits=16), replace(frame.color, matrix=new)
        return replace(frame, planes=planes, layout=layout, color=color)

    def _matrix_for_rgb(self) -> int:
        return RGB_COLOR.matrix if self.output.layout.kind == "rgb" else self.output.color.matrix

    def _keeps_rgb_range(self, frame: Frame) -> bool:
        """RGB whose range stays is mixed code by code, which keeps what lies outside the range."""
        output = self.output
        return output.layout.kind == "rgb" and (
            is_full_range(frame.color, frame.layout) == is_full_range(output.color, output.layout)
        )

    def _placing(self, frame: Frame) -> _Placing:
        output, source = self.output, self._source
        aspect = frame.sample_aspect_ratio or source.sample_aspect_ratio
        if (frame.width, frame.height, aspect) == (
            source.width,
            source.height,
            source.sample_aspect_ratio,
        ):
            return _Placing(0, 0, output.width, output.height)
        width, height = float(frame.width * aspect / source.sample_aspect_ratio), frame.height
        factor = min(output.width / width, output.height / height)
        step_x, step_y = 1 << output.layout.log2_chroma_w, 1 << output.layout.log2_chroma_h
        fitted_width = _on_grid(width * factor, step_x, output.width)
        fitted_height = _on_grid(height * factor, step_y, output.height)
        return _Placing(
            left=(output.width - fitted_width) // 2 // step_x * step_x,
            top=(output.height - fitted_height) // 2 // step_y * step_y,
            width=fitted_width,
            height=fitted_height,
        )

    def _is_repetition(self, frame: Frame) -> bool:
        """Whether a frame shows exactly what the last one did."""
        last = self._last_pushed
        return (
            self._reuse.enabled
            and last is not None
            and (last.width, last.height, last.layout, last.color, last.sample_aspect_ratio)
            == (frame.width, frame.height, frame.layout, frame.color, frame.sample_aspect_ratio)
            and all(map(np.array_equal, last.planes, frame.planes))
        )

    def _submit(self, job: _Job) -> None:
        """Gives the engine what it is to enlarge of a frame."""
        if job.repeats_last:
            for index in self._planes_to_enlarge(job):
                height, width = job.planes[index].shape
                border = self._engine.capabilities.border
                self.num_pixels += (height + 2 * border) * (width + 2 * border)
            return
        bits = max(job.layout.bits, self.output.layout.bits)
        memories = {}
        for index in self._planes_to_enlarge(job):
            planes = self._input_planes(job, index, bits)
            if self._makes_chroma:
                job.inputs[index] = planes
            planes = [self._continued(plane) for plane in planes]
            self.num_pixels += planes[0].size
            grid, tile_format = self._grid(job, index, bits)
            patches = None
            if self._reuse.enabled:
                key = index, tile_format, planes[0].shape
                memory = self._memories.get(key) or self._new_memory(planes[0].shape, bits)
                patches = self._patches(memory, planes, grid)
                memory.keep(planes, None if patches is None else [p.rectangle for p in patches])
                memories[key] = memory
            if patches is None:
                whole = [_Whole(grid, tile) for tile in grid.tiles()]
                self._submit_tiles(job, index, planes, tile_format, whole)
            else:
                job.parts[index] = []
                if self._computes_patches:
                    tile_format = replace(tile_format, shape=None)
                self._submit_tiles(job, index, planes, tile_format, patches)
        self._memories = memories

    def _grid(self, job: _Job, index: int, bits: int) -> tuple[TileGrid, TileFormat]:
        """The tiles of a frame's plane, of which the engine has a session open.

        A device that has no memory for them gets tiles of half the size, for good; only where the
        smallest don't fit either is it an error.
        """
        while True:
            can = self._engine.capabilities
            grid = choose_tiles(
                job.frame.width + 2 * can.border,
                job.frame.height + 2 * can.border,
                can.halo,
                can.activation_bytes_per_pixel,
                self._max_tile_bytes,
                self._max_tile_side,
            )
            tile_format = self._tile_format(job, index, grid, bits)
            try:
                self._session(tile_format)
                return grid, tile_format
            except EngineMemoryError as error:
                if self._sessions:  # those of other sizes hold memory too
                    self._finish_tiles()
                    self._close_sessions()
                    continue
                half = grid.tile_rows * grid.tile_cols * can.activation_bytes_per_pixel // 2
                if self._max_tile_bytes is not None and half >= self._max_tile_bytes:
                    raise EngineMemoryError(
                        f"the frame at {job.frame.pts_seconds:.3f} s: {error}, and tiles cannot be "
                        "smaller. Free memory on the device, or take a smaller --model."
                    ) from error
                logger.warning("%s; tiles are halved", error)
                self._max_tile_bytes = half
                self._max_tile_side = math.ceil(max(grid.tile_shape) / math.sqrt(2))

    @property
    def _computes_patches(self) -> bool:
        """Whether a changed part may be computed alone: the result must be that of the whole."""
        can = self._engine.capabilities
        return can.takes_any_shape and (can.tiles_are_exact or self._reuse.threshold > 0)

    def _new_memory(self, shape: tuple[int, ...], bits: int) -> Memory:
        height, width = shape
        cells = CellGrid(height, width, self._engine.capabilities.halo)
        return Memory(cells, self._reuse.threshold << (bits - 8))

    def _patches(
        self, memory: Memory, planes: Sequence[Plane], grid: TileGrid
    ) -> list[_Patch] | None:
        """What is to be computed of the planes; None for all of them.

        Rectangles of any shape where the engine takes such, otherwise the tiles of the grid. A tile
        of which every sample matters to the last bit of every other is reused as a whole or not.
        """
        exact = self._engine.capabilities.tiles_are_exact
        if self._computes_patches:
            cover = memory.to_compute(planes, grid.tile_rows * grid.tile_cols)
            if cover is None:
                return None
            height, width = planes[0].shape
            halo = self._engine.capabilities.halo
            windows = [r.window(height, width, halo) for r in cover]
            fitted = [self._shapes.fitted(window, height, width) for window in windows]
            return list(map(_Patch, cover, fitted))
        changed = memory.changed(planes)
        if changed is None:
            return None
        tiles = grid.tiles()
        areas = [tile.kept if exact else tile.window(grid.tile_shape) for tile in tiles]
        touched = [
            tile
            for tile, area in zip(tiles, areas, strict=True)
            if memory.grid.touches(changed, area)
        ]
        if len(touched) == len(tiles):
            return None
        return [_Patch(tile.kept, tile.window(grid.tile_shape)) for tile in touched]

    def _submit_tiles(
        self,
        job: _Job,
        index: int,
        planes: Sequence[Plane],
        tile_format: TileFormat,
        tiles: Sequence[_Whole | _Patch],
    ) -> None:
        for tile in tiles:
            job.num_tiles_left += 1
            self._queued_tiles.append(_QueuedTile(job, index, planes, tile_format, tile))
        self._feed()

    def _feed(self) -> None:
        """Gives the engine what it has room for."""
        while self._queued_tiles:
            tile = self._queued_tiles[0]
            session = self._session(tile.tile_format)
            if len(self._tiles) >= session.num_in_flight:
                return
            self._queued_tiles.popleft()
            seen = [plane[tile.what.window.slices] for plane in tile.planes]
            self.num_pixels_computed += seen[0].size
            ticket = session.submit(seen)
            self._tiles.append((session, ticket, tile.job, tile.index, tile.what))

    def _input_planes(self, job: _Job, index: int, bits: int) -> list[Plane]:
        """What the model is given: the plane, and U and V on its grid if it wants them.

        Alpha and grey go with neutral U and V.
        """
        plane = _deepened(job.planes[index], job.layout, job.color, bits, index)
        if not self._makes_chroma:
            return [plane]
        chroma = code_range(bits, self._is_full_range(job, index), is_chroma=True)
        if index or job.layout.kind == "gray":
            neutral = np.full(plane.shape, chroma.zero, plane.dtype)
            return [plane, neutral, neutral]
        x, y = colour.chroma_shift(job.layout, job.color)
        height, width = plane.shape
        rows = Sampling.between(height, height, stride_in=1 << job.layout.log2_chroma_h, shift_in=y)
        columns = Sampling.between(
            width, width, stride_in=1 << job.layout.log2_chroma_w, shift_in=x
        )
        deepened = [_deepened(job.planes[n], job.layout, job.color, bits, n) for n in (1, 2)]
        return [
            plane,
            *(colour.resample_plane(d, plane.shape, rows, columns, chroma.peak) for d in deepened),
        ]

    def _continued(self, plane: Plane) -> Plane:
        """With as much of its outermost samples around it as the network needs."""
        border = self._engine.capabilities.border
        if not border:
            return plane
        continued: Any = np.pad(plane, border, mode="edge")
        made: Plane = continued
        return made

    def _cut(self, planes: list[Plane]) -> list[Plane]:
        """What the engine made without what comes of that."""
        border = self._engine.capabilities.border
        if not border:
            return planes
        kept = [slice(border * scale, -border * scale) for scale in self._plane_scales()]
        return [plane[k, k].copy() for plane, k in zip(planes, kept, strict=True)]

    def _is_full_range(self, job: _Job, index: int) -> bool:
        return index != 0 or is_full_range(job.color, job.layout)

    def _tile_format(self, job: _Job, index: int, grid: TileGrid, bits: int) -> TileFormat:
        tile = TileFormat(grid.tile_shape, bits, full_range=self._is_full_range(job, index))
        if self._engine.capabilities.colour != "rgb":
            return tile
        matrix = job.color.matrix if job.layout.kind == "yuv" else colour.BT601
        if job.frame.layout.kind == "rgb":
            matrix = self._matrix_for_rgb()
        return replace(tile, matrix=matrix)

    def _planes_to_enlarge(self, job: _Job) -> list[int]:
        """Luma, and alpha if it goes out, says anything and is the weights' business."""
        if self._engine.capabilities.mixes_sets or not self._shows_alpha(job):
            return [0]
        return [0, job.layout.num_planes - 1]

    def _shows_alpha(self, job: _Job) -> bool:
        """Whether there is alpha, it goes out, and it isn't opaque all over."""
        if not (job.layout.has_alpha and self.output.layout.has_alpha):
            return False
        return int(job.planes[-1].min()) < (1 << job.layout.bits) - 1

    def _session(self, key: TileFormat) -> Session:
        if key not in self._sessions:
            if len(self._sessions) >= MAX_OPEN_SESSIONS:
                while self._tiles:
                    self._collect()
                self._sessions.popitem(last=False)[1].close()
            self._sessions[key] = self._engine.open_session(key, self._on_done)
        self._sessions.move_to_end(key)
        return self._sessions[key]

    def _collect(self) -> None:
        """Waits for the oldest tile and puts it where it belongs."""
        session, ticket, job, index, what = self._tiles.popleft()
        result = session.result(ticket)
        job.num_tiles_left -= 1
        if isinstance(what, _Patch):
            job.parts[index].append(_Part(what.rectangle, what.window, result))
            return
        grid, tile = what.grid, what.tile
        if grid.is_whole_picture:
            job.enlarged[index] = list(result)
            return
        if index not in job.enlarged:
            job.enlarged[index] = [
                np.empty((grid.height * scale, grid.width * scale), result[0].dtype)
                for scale in self._plane_scales()
            ]
        for whole, part, scale in zip(
            job.enlarged[index], result, self._plane_scales(), strict=True
        ):
            whole[tile.kept_in_picture(scale)] = part[tile.kept_in_result(scale)]

    def _plane_scales(self) -> list[int]:
        """Of each plane that the engine makes."""
        return [group.scale for group in self._form.outputs for _ in range(group.num_planes)]

    def _complete(self) -> list[Frame]:
        frames = []
        while self._jobs and not self._jobs[0].num_tiles_left:
            job = self._jobs.popleft()
            for index, parts in job.parts.items():
                job.enlarged[index] = self._composed(index, parts)
            if job.repeats_last and self._last_output is not None:
                output = self.output
                made = job.frame.with_planes(
                    self._last_output.planes, output.width, output.height, output.layout
                )
                frames.append(replace(made, color=output.color, sample_aspect_ratio=None))
                continue
            frames.append(self._finished(job))
            if self._reuse.enabled:
                self._last_enlarged, self._last_output = job.enlarged, frames[-1]
        return frames

    def _composed(self, index: int, parts: Sequence[_Part]) -> list[Plane]:
        """The last frame's enlarged planes with what was computed anew in its place."""
        last = self._last_enlarged[index]
        if not parts:
            return last
        planes = [plane.copy() for plane in last]
        for part in parts:
            for plane, made, scale in zip(planes, part.result, self._plane_scales(), strict=True):
                kept = part.rectangle.scaled(scale, within=part.window)
                plane[part.rectangle.scaled(scale)] = made[kept]
        return planes

    def _finished(self, job: _Job) -> Frame:
        job.made = {index: self._cut(planes) for index, planes in job.enlarged.items()}
        self._check_mean(job)
        output = self.output
        chroma = self._chroma_of_model(job) if self._makes_chroma else job.chroma
        planes = [self._fitted(job, 0), *chroma]
        if output.layout.kind == "rgb":
            planes = self._to_rgb(job, planes)
        if output.layout.has_alpha:
            planes.append(self._alpha(job))
        if (job.placing.width, job.placing.height) != (output.width, output.height):
            planes = self._letterboxed(job.placing, planes)
        enhanced = job.frame.with_planes(planes, output.width, output.height, output.layout)
        return replace(enhanced, color=output.color, sample_aspect_ratio=None)

    def _check_mean(self, job: _Job) -> None:
        """A cheap guard against an engine that returns black, noise or another frame's picture."""
        bits = max(job.layout.bits, self.output.layout.bits)
        before = cv2.mean(job.planes[0])[0] / ((1 << job.layout.bits) - 1)
        after = cv2.mean(job.made[0][0])[0] / ((1 << bits) - 1)
        if abs(after - before) > MAX_MEAN_CHANGE and (
            abs(after - before) > MAX_MEAN_CHANGE + 0.5 * _detail(job.planes[0], job.layout.bits)
        ):
            raise EngineError(
                f"the frame at {job.frame.pts_seconds:.3f} s came out of the engine wrong: its "
                f"mean luma was {before:.1%} and became {after:.1%}. Check the weights "
                f"({self._engine.capabilities.weights})."
            )

    def _fitted(self, job: _Job, index: int) -> Plane:
        """An enlarged luma or alpha plane at the size and in the codes of the output.

        RGB's luma stays in 16 bits.
        """
        output, frame, placing = self.output, job.frame, job.placing
        bits = max(job.layout.bits, output.layout.bits)
        enlarged: Plane | colour.FloatPlane = job.made[index][0]
        if self._makes_chroma:
            # A network may be off by a level where colours are rare; the source is not.
            enlarged = colour.with_local_mean(job.made[index][0], job.inputs[index][0])
        plane = colour.resample_plane(
            enlarged,
            (placing.height, placing.width),
            Sampling.between(frame.height * self._scale, placing.height),
            Sampling.between(frame.width * self._scale, placing.width),
            (1 << bits) - 1,
        )
        if index == 0:
            made = code_range(bits, is_full_range(job.color, job.layout))
            return colour.convert_codes(plane, made, self._target_range(is_chroma=False))
        return colour.convert_codes(
            plane, code_range(bits, True), code_range(output.layout.bits, True)
        )

    def _target_range(self, *, is_chroma: bool) -> CodeRange:
        output = self.output
        if output.layout.kind == "rgb":
            return code_range(RGB_BITS, True, is_chroma=is_chroma)
        full_range = is_full_range(output.color, output.layout)
        return code_range(output.layout.bits, full_range, is_chroma=is_chroma)

    def _chroma_by_bicubic(self, job: _Job) -> list[Plane]:
        """U and V of the output from the source's; neutral for grey, none for a grey output."""
        if self.output.layout.kind == "gray":
            return []
        if job.layout.kind == "gray":
            return self._neutral_chroma(job)
        bits = max(job.layout.bits, self._output_chroma_layout().bits)
        planes = [_deepened(job.planes[n], job.layout, job.color, bits, n) for n in (1, 2)]
        height, width = job.frame.height, job.frame.width
        strides = 1 << job.layout.log2_chroma_w, 1 << job.layout.log2_chroma_h
        shifts = colour.chroma_shift(job.layout, job.color)
        return self._placed_chroma(job, planes, bits, (height, width), strides, shifts)

    def _chroma_of_model(self, job: _Job) -> list[Plane]:
        """U and V of the output from those that the network made."""
        if self.output.layout.kind == "gray":
            return []
        if job.layout.kind == "gray":
            return self._neutral_chroma(job)
        y, u, v = job.made[0]
        height, width = y.shape
        stride = width // u.shape[1]
        middle = (stride - 1) / 2  # where models put it, see COLOUR_FORMS
        bits = max(job.layout.bits, self.output.layout.bits)
        planes = [
            colour.with_local_mean(made, source)
            for made, source in zip((u, v), job.inputs[0][1:], strict=True)
        ]
        return self._placed_chroma(
            job, planes, bits, (height, width), (stride, stride), (middle, middle)
        )

    def _neutral_chroma(self, job: _Job) -> list[Plane]:
        layout = self._output_chroma_layout()
        shape = layout.plane_shape(1, job.placing.width, job.placing.height)
        target = self._target_range(is_chroma=True)
        neutral = np.full(shape, target.zero, self.output.layout.dtype)
        return [neutral, neutral.copy()]

    def _output_chroma_layout(self) -> PlaneLayout:
        return RGB_LAYOUT if self.output.layout.kind == "rgb" else self.output.layout

    def _placed_chroma(
        self,
        job: _Job,
        planes: Sequence[Plane | colour.FloatPlane],
        bits: int,
        luma_shape: tuple[int, int],
        strides: tuple[int, int],
        shifts: tuple[float, float],
    ) -> list[Plane]:
        """Chroma planes resampled to where the output's samples sit, in its codes.

        Args:
            luma_shape: (rows, columns) of the picture that they belong to.
            strides, shifts: (x, y), of the planes in luma samples of that picture.
        """
        layout, placing = self._output_chroma_layout(), job.placing
        color_out = RGB_COLOR if layout is RGB_LAYOUT else self.output.color
        x_out, y_out = colour.chroma_shift(layout, color_out)
        rows = Sampling.between(
            luma_shape[0],
            placing.height,
            stride_in=strides[1],
            shift_in=shifts[1],
            stride_out=1 << layout.log2_chroma_h,
            shift_out=y_out,
        )
        columns = Sampling.between(
            luma_shape[1],
            placing.width,
            stride_in=strides[0],
            shift_in=shifts[0],
            stride_out=1 << layout.log2_chroma_w,
            shift_out=x_out,
        )
        shape = layout.plane_shape(1, placing.width, placing.height)
        made = code_range(bits, is_full_range(job.color, job.layout), is_chroma=True)
        target = self._target_range(is_chroma=True)
        return [
            colour.convert_codes(resample(plane, shape, rows, columns, made.peak), made, target)
            for plane, resample in zip(planes, self._chroma_resamplers(), strict=True)
        ]

    def _chroma_resamplers(self) -> list[Resample]:
        """Of U and V; bicubic chroma that did not change is not made again."""
        if self._makes_chroma or not self._reuse.enabled:
            return [colour.resample_plane] * 2
        return [memory.resample for memory in self._chroma_memories]

    def _to_rgb(self, job: _Job, planes: Sequence[Plane]) -> list[Plane]:
        output = self.output
        full_range = self._keeps_rgb_range(job.frame) or is_full_range(output.color, output.layout)
        y, u, v = planes
        return list(
            colour.yuv444_to_rgb(
                (y, u, v), output.layout.bits, RGB_COLOR.matrix, full_range=full_range
            )
        )

    def _alpha(self, job: _Job) -> Plane:
        """Nowhere beyond what the source's own and its eight neighbours are: 0 and opaque stay."""
        shape = job.placing.height, job.placing.width
        layout = self.output.layout
        if not self._shows_alpha(job):
            opaque: Plane = np.full(shape, (1 << layout.bits) - 1, layout.dtype)
            return opaque
        source = colour.convert_codes(
            job.planes[-1], code_range(job.layout.bits, True), code_range(layout.bits, True)
        )
        index = job.layout.num_planes - 1
        if index in job.made:
            plane = self._fitted(job, index)
        else:
            rows, columns = (
                Sampling.between(*sides) for sides in zip(source.shape, shape, strict=True)
            )
            plane = colour.resample_plane(source, shape, rows, columns, (1 << layout.bits) - 1)
        neighbours = np.ones((3, 3), np.uint8)
        bounds: list[Any] = [
            cv2.resize(of(source, neighbours), shape[::-1], interpolation=cv2.INTER_NEAREST)
            for of in (cv2.erode, cv2.dilate)
        ]
        clipped: Plane = plane.clip(*bounds)
        return clipped

    def _letterboxed(self, placing: _Placing, planes: Sequence[Plane]) -> list[Plane]:
        output = self.output
        canvas = colour.black_planes(output.layout, output.color, output.width, output.height)
        for index, (black, plane) in enumerate(zip(canvas, planes, strict=True)):
            is_chroma = output.layout.kind == "yuv" and index in (1, 2)
            top = placing.top >> (output.layout.log2_chroma_h if is_chroma else 0)
            left = placing.left >> (output.layout.log2_chroma_w if is_chroma else 0)
            black[top : top + plane.shape[0], left : left + plane.shape[1]] = plane
        return list(canvas)


def _check_kinds(source: PlaneLayout, output: PlaneLayout) -> None:
    if output.kind == "rgb" and source.kind != "rgb":
        raise RefusedError(f"an RGB output isn't made of {source.kind} frames; choose a YUV one.")


def _detail(plane: Plane, bits: int) -> float:
    """Mean distance of a plane from its own blur, as a share of the code range."""
    distance = cv2.absdiff(plane, cv2.blur(plane, (3, 3)))
    return float(cv2.mean(distance)[0]) / ((1 << bits) - 1)


def _on_grid(side: float, step: int, largest: int) -> int:
    return min(largest, max(step, round(side / step) * step))


def _deepened(plane: Plane, layout: PlaneLayout, color: ColorSpec, bits: int, index: int) -> Plane:
    """Plane `index` of a `layout` picture at a depth of `bits`, in the same range."""
    is_alpha = layout.has_alpha and index == layout.num_planes - 1
    is_chroma = layout.kind == "yuv" and index in (1, 2)
    full_range = is_alpha or is_full_range(color, layout)
    return colour.convert_codes(
        plane,
        code_range(layout.bits, full_range, is_chroma=is_chroma),
        code_range(bits, full_range, is_chroma=is_chroma),
    )
