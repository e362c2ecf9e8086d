"""Finds the tiles of a whole frame that must be computed again."""

from __future__ import annotations

import numpy as np

from srstream.engines.tiles import TileGrid
from srstream.engines.whole_frames import FrameRecipe, PlaneRecipe
from srstream.frame import Plane

CHROMA_REACH = 4
"""Chroma samples on each side of a sample's position from which it may be interpolated."""


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
