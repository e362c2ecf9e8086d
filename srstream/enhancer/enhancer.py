"""The stage that enlarges frames: it tiles them, keeps the engine busy and the frames in order.

The composer makes the tiles' input and processes their results (`composer.py`), while the engine
works on the next tiles. If a frame resembles the previous one, only the rectangles that changed
are computed (`patches.py`). An engine that makes whole frames does all of this on its device.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from srstream.config import ModelConfig, ReuseConfig
from srstream.engines.contract import Engine, OnDone, Refittable, Session, Ticket, TileFormat
from srstream.engines.tiles import Rectangle, Tile, TileGrid, choose_tiles
from srstream.engines.whole_frames import FrameSession
from srstream.enhancer.composer import Composer
from srstream.enhancer.patches import Part, Patch, PatchFinder, patched
from srstream.enhancer.recipes import Picture
from srstream.enhancer.sessions import OpenSessions
from srstream.enhancer.whole import WholeFrames
from srstream.errors import EngineMemoryError, RefusedError
from srstream.frame import Frame, FrameForm, Plane

logger = logging.getLogger(__name__)

NO_REUSE = ReuseConfig(enabled=False)

RESERVED_BYTES = 512 << 20
"""The part of a job's memory that is not for tiles: interpreter, libraries, decoder, encoder,
frames in flight."""


@dataclass(frozen=True, slots=True)
class _Whole:
    """A tile of a frame that is computed as a whole."""

    grid: TileGrid
    tile: Tile

    @property
    def window(self) -> Rectangle:
        return self.tile.window(self.grid.tile_shape)


@dataclass(frozen=True, slots=True)
class _QueuedTile:
    """A tile for which the engine does not have room yet."""

    job: _FrameJob
    index: int
    planes: Sequence[Plane]
    """The network's input that contains the tile."""
    tile_format: TileFormat
    what: _Whole | Patch


@dataclass(frozen=True, slots=True)
class _SubmittedTile:
    """A tile in the engine."""

    session: Session
    ticket: Ticket
    job: _FrameJob
    index: int
    what: _Whole | Patch


@dataclass(frozen=True, slots=True)
class _SubmittedFrame:
    """A whole frame in the engine."""

    session: FrameSession
    ticket: Ticket
    job: _FrameJob


@dataclass(slots=True)
class _FrameJob:
    """One frame between `push` and its return."""

    picture: Picture
    enlarged: dict[int, list[Plane]] = field(default_factory=dict)
    """The engine's output for luma (0), with U and V if the model makes them, and for alpha; it
    includes the samples added around the picture (`Capabilities.border`)."""
    parts: dict[int, list[Part]] = field(default_factory=dict)
    """The recomputed parts of planes that otherwise equal the last frame's."""
    composed: tuple[Plane, ...] | None = None
    """The planes of the output, if the engine has made them all."""
    repeats_last: bool = False
    """Whether every sample equals the last frame's, so that the result does too."""
    num_tiles_left: int = 0


class Enhancer:
    """A `Stage` that enlarges frames with a network.

    Args:
        source: the form of the incoming frames; a frame of this size and pixel shape fills the
            output. Others keep their shape, with black around them.
        output: the form of every outgoing frame.
        max_memory_bytes: the memory that the whole job may use; it bounds the size of tiles.
        reuse: whether results of parts that did not change since the last frame are reused.
        on_done: called from any thread whenever the engine has done a tile: `collect` may then have
            frames, and `has_room` may have changed.

    Raises:
        RefusedError: the output's layout cannot be made from the source's, or the model works in
            RGB and the source's matrix cannot be converted.
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
        self._source, self.output = source, output
        self._max_memory_bytes = max_memory_bytes
        self._reuse, self._on_done = reuse, on_done
        self._open(engine)
        self._tiles: deque[_SubmittedTile | _SubmittedFrame] = deque()
        self._queued_tiles: deque[_QueuedTile] = deque()
        self._jobs: deque[_FrameJob] = deque()
        self._last_pushed: Frame | None = None
        self._last_enlarged: dict[int, list[Plane]] = {}
        self._last_output: Frame | None = None
        self.num_pixels = 0
        """Input pixels to enlarge so far, over all planes, including those added at the edges."""
        self.num_pixels_computed = 0
        """Input pixels that the engine has received so far, halos included."""

    def _open(self, engine: Engine) -> None:
        """Begin to use an engine with which no session is open."""
        self._sessions = OpenSessions(engine, self._on_done, self._collect_all)
        self._use(engine)

    def _use(self, engine: Engine) -> None:
        can = engine.capabilities
        self._composer = Composer(can, self._source, self.output, reuses_chroma=self._reuse.enabled)
        self._finder = PatchFinder(can, self._reuse)
        self._engine = engine
        self._whole = WholeFrames(
            engine, self._composer, self._sessions, self._make_room, reuses=self._reuse.enabled
        )
        self._scales = [group.scale for group in can.form.outputs for _ in range(group.num_planes)]
        """The output scales of each plane that the engine makes."""
        self._max_tile_bytes = self._memory_for_a_tile()
        self._max_tile_side = can.max_tile_side

    def replace_engine(self, engine: Engine) -> list[Frame]:
        """Change to another engine between two frames; return the frames that were in flight.

        The frames pushed so far are made by the old engine alone, those pushed from now on by the
        new one. The caller closes the old engine. Open the new one beforehand, so that no frame has
        to wait for it.

        Raises:
            RefusedError: the new engine has another scale; the old one stays in use.
        """
        scale = self._engine.capabilities.scale
        if engine.capabilities.scale != scale:
            raise RefusedError(
                f"a stream that is enlarged {scale} times cannot change to weights that "
                f"enlarge {engine.capabilities.scale} times"
            )
        finished = self.drain()
        self._sessions.close()
        self.forget()
        self._last_enlarged = {}
        self._open(engine)
        return finished

    def replace_weights(self, model: ModelConfig) -> tuple[list[Frame], bool]:
        """Change the engine's weights between two frames; return those that were in flight.

        Nothing is opened or compiled: the sessions stay open. The engine must be in no other use.
        The second value is False, and nothing has changed, if the engine cannot take these weights;
        then `replace_engine` changes to one that is opened with them.

        Raises:
            WeightsError: the new weights cannot be used; the old ones stay in use.
        """
        if not isinstance(self._engine, Refittable):
            return [], False
        finished = self.drain()
        if not self._engine.refit(model):
            return finished, False
        self.forget()
        self._last_enlarged = {}
        self._use(self._engine)
        return finished, True

    def has_room(self) -> bool:
        """See `Stage.has_room`."""
        if self._queued_tiles:
            return False
        return not self._tiles or len(self._tiles) < self._tiles[-1].session.num_in_flight

    def has_waiting_tiles(self) -> bool:
        """Return whether there are tiles for which the engine has had no room yet."""
        return bool(self._queued_tiles)

    def push(self, frame: Frame) -> list[Frame]:
        """See `Stage.push`. `collect` or `drain` submits the tiles that do not fit yet."""
        while not self.has_room():
            self._collect()
            self._feed()
        job = _FrameJob(self._composer.picture_of(frame))
        job.repeats_last = self._is_repetition(frame)
        self._last_pushed = frame
        self._jobs.append(job)
        if not self._submit_whole(job):
            self._submit(job)
            if not self._composer.makes_chroma and not job.repeats_last:
                self._composer.interpolate_chroma(job.picture)
        return self.collect()

    def collect(self) -> list[Frame]:
        """See `Stage.collect`."""
        while self._tiles and self._tiles[0].ticket.is_done():
            self._collect()
            self._feed()
        return self._complete()

    def drain(self) -> list[Frame]:
        """See `Stage.drain`."""
        self._finish_tiles()
        return self._complete()

    def _finish_tiles(self) -> None:
        while self._tiles:
            self._collect()
            self._feed()

    def _collect_all(self) -> None:
        while self._tiles:
            self._collect()

    def _make_room(self) -> bool:
        """Close all sessions, which hold the device's memory; return whether there were any."""
        if not len(self._sessions):
            return False
        self._finish_tiles()
        self._sessions.close()
        return True

    def forget(self) -> None:
        """See `Stage.forget`."""
        self._finder.forget()
        self._composer.forget()
        self._last_pushed = None
        self._whole.forget()

    def close(self) -> None:
        """Drop the frames in flight and close the engine's sessions, but not the engine."""
        self._tiles.clear()
        self._queued_tiles.clear()
        self._jobs.clear()
        self.forget()
        self._last_enlarged, self._last_output = {}, None
        self._sessions.close()

    def _memory_for_a_tile(self) -> int | None:
        if self._max_memory_bytes is None:
            return None
        left = self._max_memory_bytes - RESERVED_BYTES - 4 * self.output.frame_bytes
        return max(1, left // self._engine.capabilities.num_streams)

    def _is_repetition(self, frame: Frame) -> bool:
        """Return whether a frame shows exactly what the last one did."""
        last = self._last_pushed
        return (
            self._reuse.enabled
            and last is not None
            and (last.width, last.height, last.layout, last.color, last.sample_aspect_ratio)
            == (frame.width, frame.height, frame.layout, frame.color, frame.sample_aspect_ratio)
            and all(map(np.array_equal, last.planes, frame.planes))
        )

    def _submit(self, job: _FrameJob) -> None:
        """Submit the tiles of a frame to the engine."""
        picture, composer = job.picture, self._composer
        if job.repeats_last:
            for index in composer.planes_to_enlarge(picture):
                height, width = picture.planes[index].shape
                border = self._engine.capabilities.border
                self.num_pixels += (height + 2 * border) * (width + 2 * border)
            return
        self._finder.next_frame()
        for index in composer.planes_to_enlarge(picture):
            planes = [self._continued(p) for p in composer.input_planes(picture, index)]
            self.num_pixels += planes[0].size
            grid, tile_format = self._grid(job, index)
            patches = self._finder.patches(index, planes, grid, tile_format)
            tiles: Sequence[_Whole | Patch]
            if patches is None:
                tiles = [_Whole(grid, tile) for tile in grid.tiles()]
            else:
                job.parts[index], tiles = [], patches
                if self._finder.takes_any_shape:
                    tile_format = replace(tile_format, shape=None)
            for tile in tiles:
                job.num_tiles_left += 1
                self._queued_tiles.append(_QueuedTile(job, index, planes, tile_format, tile))
            self._feed()

    def _submit_whole(self, job: _FrameJob) -> bool:
        """Submit a whole frame to the engine, and return whether it makes this one."""
        if job.repeats_last:
            return False
        grid = self._tile_grid(job.picture.frame)
        submitted = self._whole.submit(job.picture, grid)
        if submitted is None:
            return False
        session, ticket, num_pixels = submitted
        self.num_pixels += grid.height * grid.width
        self.num_pixels_computed += num_pixels
        job.num_tiles_left = 1
        self._tiles.append(_SubmittedFrame(session, ticket, job))
        return True

    def _tile_grid(self, frame: Frame) -> TileGrid:
        """Return the tiles of a frame with its border."""
        can = self._engine.capabilities
        return choose_tiles(
            frame.width + 2 * can.border,
            frame.height + 2 * can.border,
            can.halo,
            can.activation_bytes_per_pixel,
            self._max_tile_bytes,
            self._max_tile_side,
            can.preferred_tile_pixels,
        )

    def _grid(self, job: _FrameJob, index: int) -> tuple[TileGrid, TileFormat]:
        """Return the tiles of a frame's plane and their format, for which a session is open.

        If the device has no memory for them, tiles are halved from then on. This fails only if even
        the smallest do not fit.
        """
        while True:
            can = self._engine.capabilities
            frame = job.picture.frame
            grid = self._tile_grid(frame)
            tile_format = self._composer.tile_format(job.picture, index, grid.tile_shape)
            try:
                self._sessions.tiles(tile_format)
                return grid, tile_format
            except EngineMemoryError as error:
                if self._make_room():
                    continue
                half = grid.tile_rows * grid.tile_cols * can.activation_bytes_per_pixel // 2
                if self._max_tile_bytes is not None and half >= self._max_tile_bytes:
                    raise EngineMemoryError(
                        f"the frame at {frame.pts_seconds:.3f} s: {error}, and tiles cannot be "
                        "smaller. Free memory on the device, or take a smaller --model."
                    ) from error
                logger.warning("%s; tiles are halved", error)
                self._max_tile_bytes = half
                self._max_tile_side = math.ceil(max(grid.tile_shape) / math.sqrt(2))

    def _feed(self) -> None:
        """Submit queued tiles as long as the engine has room."""
        while self._queued_tiles:
            tile = self._queued_tiles[0]
            session = self._sessions.tiles(tile.tile_format)
            if len(self._tiles) >= session.num_in_flight:
                return
            self._queued_tiles.popleft()
            seen = [plane[tile.what.window.slices] for plane in tile.planes]
            self.num_pixels_computed += seen[0].size
            ticket = session.submit(seen)
            self._tiles.append(_SubmittedTile(session, ticket, tile.job, tile.index, tile.what))

    def _continued(self, plane: Plane) -> Plane:
        """Return the plane with its outermost samples repeated as often as the network needs."""
        border = self._engine.capabilities.border
        if not border:
            return plane
        continued: Any = np.pad(plane, border, mode="edge")
        made: Plane = continued
        return made

    def _cut(self, planes: list[Plane]) -> list[Plane]:
        """Return the engine's planes without the enlarged repeated samples."""
        border = self._engine.capabilities.border
        if not border:
            return planes
        kept = [slice(border * scale, -border * scale) for scale in self._scales]
        return [plane[k, k].copy() for plane, k in zip(planes, kept, strict=True)]

    def _collect(self) -> None:
        """Wait for the oldest tile or frame in the engine, and put its result in its place."""
        submitted = self._tiles.popleft()
        job = submitted.job
        if isinstance(submitted, _SubmittedFrame):
            job.composed, mean = submitted.session.result(submitted.ticket)
            job.num_tiles_left = 0
            self._composer.check_mean(job.picture, mean)
            return
        index, what = submitted.index, submitted.what
        result = submitted.session.result(submitted.ticket)
        job.num_tiles_left -= 1
        if isinstance(what, Patch):
            job.parts[index].append(Part(what, result))
            return
        grid, tile = what.grid, what.tile
        if grid.is_whole_picture:
            job.enlarged[index] = list(result)
            return
        if index not in job.enlarged:
            job.enlarged[index] = [
                np.empty((grid.height * scale, grid.width * scale), result[0].dtype)
                for scale in self._scales
            ]
        for whole, part, scale in zip(job.enlarged[index], result, self._scales, strict=True):
            whole[tile.kept_in_picture(scale)] = part[tile.kept_in_result(scale)]

    def _complete(self) -> list[Frame]:
        """Take the frames that have no tiles left, in order."""
        frames = []
        while self._jobs and not self._jobs[0].num_tiles_left:
            job = self._jobs.popleft()
            for index, parts in job.parts.items():
                job.enlarged[index] = patched(self._last_enlarged[index], parts, self._scales)
            if job.repeats_last and self._last_output is not None:
                planes = self._last_output.planes
                frames.append(self._composer.output_frame(job.picture, planes))
                continue
            if job.composed is not None:
                frames.append(self._composer.output_frame(job.picture, job.composed))
                self._last_output = frames[-1] if self._reuse.enabled else None
                continue
            made = {index: self._cut(planes) for index, planes in job.enlarged.items()}
            frames.append(self._composer.compose(job.picture, made))
            if self._reuse.enabled:
                self._last_enlarged, self._last_output = job.enlarged, frames[-1]
        return frames
