"""Frames that the engine makes as a whole: which they are, and which of their tiles changed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np

from srstream.engines.contract import Engine, Ticket
from srstream.engines.tiles import TileGrid
from srstream.engines.whole_frames import FrameEngine, FrameRecipe, FrameSession, PlaneRecipe
from srstream.enhancer.composer import Composer
from srstream.enhancer.recipes import Picture
from srstream.enhancer.sessions import OpenSessions
from srstream.errors import EngineMemoryError
from srstream.frame import Plane

logger = logging.getLogger(__name__)

CHROMA_REACH = 4
"""Chroma samples on each side of a sample's position from which it may be interpolated."""


class WholeFrames:
    """Gives frames to an engine that makes whole ones, as long as its device has the memory.

    Args:
        sessions: where the sessions are kept open.
        make_room: closes what is open; it returns False if nothing was.
        reuses: whether tiles that did not change since the last frame are kept.
    """

    def __init__(
        self,
        engine: Engine,
        composer: Composer,
        sessions: OpenSessions,
        make_room: Callable[[], bool],
        *,
        reuses: bool,
    ) -> None:
        self._engine = engine if isinstance(engine, FrameEngine) else None
        self._composer, self._sessions, self._make_room = composer, sessions, make_room
        self._reuses = reuses
        self._last: WeakKeyDictionary[FrameSession, tuple[Plane, ...]] = WeakKeyDictionary()
        """The planes of the last frame that a session was given."""

    def forget(self) -> None:
        """Compute all tiles of the next frame."""
        self._last.clear()

    def submit(self, picture: Picture, grid: TileGrid) -> tuple[FrameSession, Ticket, int] | None:
        """Submit a frame, and return where it is; None if it must go in tiles.

        Args:
            grid: the network's tiles, on the frame with its border.

        Returns:
            The session, the ticket, and the input pixels of its tiles, halos included.
        """
        engine, frame = self._engine, picture.frame
        if engine is None or frame.width * frame.height > engine.max_frame_pixels:
            return None
        recipe = self._composer.frame_recipe(picture)
        session = None if recipe is None else self._session(recipe, grid)
        if recipe is None or session is None:
            return None
        planes, tiles = picture.planes[: len(recipe.shapes)], None
        if self._reuses:
            last = self._last.get(session)
            if last is not None and not grid.is_whole_picture:
                tiles = changed_tiles(recipe, grid, engine.capabilities.border, last, planes)
            self._last[session] = planes
        num_tiles = len(grid.tiles()) if tiles is None else len(tiles)
        num_pixels = num_tiles * grid.tile_rows * grid.tile_cols
        return session, session.submit(planes, tiles), num_pixels

    def _session(self, recipe: FrameRecipe, grid: TileGrid) -> FrameSession | None:
        """Return a session for whole frames; None if the device has no memory for one."""
        while True:
            try:
                return self._sessions.frames(recipe, grid)
            except EngineMemoryError as error:
                if not self._make_room():
                    logger.warning("%s; they are made of tiles", error)
                    self._engine = None
                    return None


def changed_tiles(
    recipe: FrameRecipe,
    grid: TileGrid,
    border: int,
    last: tuple[Plane, ...],
    now: tuple[Plane, ...],
) -> list[int]:
    """Return the tiles, by their place in `TileGrid.tiles`, whose windows show any change.

    Args:
        grid: the network's tiles, on the frame extended by `border` samples on each side.
        last, now: the planes of two frames of the recipe.
    """
    height, width = recipe.shapes[0]
    planes = {source.index for source in recipe.inputs if isinstance(source, PlaneRecipe)}
    return [
        number
        for number, tile in enumerate(grid.tiles())
        if any(
            not np.array_equal(last[index][part], now[index][part])
            for index in planes
            for part in [
                (
                    _span(tile.top, grid.tile_rows, border, height, recipe.shapes[index][0]),
                    _span(tile.left, grid.tile_cols, border, width, recipe.shapes[index][1]),
                )
            ]
        )
    ]


def _span(start: int, length: int, border: int, side: int, plane_side: int) -> slice:
    """Return the samples of a plane on which a tile depends, along one axis.

    The border repeats the outermost sample. `side` is luma's, and `plane_side` the plane's.
    """
    first = min(max(start - border, 0), side - 1)
    last = min(max(start + length - 1 - border, 0), side - 1)
    if plane_side == side:
        return slice(first, last + 1)
    stride = -(-side // plane_side)
    return slice(max(first // stride - CHROMA_REACH, 0), last // stride + 1 + CHROMA_REACH)
