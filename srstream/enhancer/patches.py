"""Chooses the parts of a frame's planes to compute again, and inserts them into the last result.

`reuse.py` compares a frame with the last one; this module adapts its answer to the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from srstream.config import ReuseConfig
from srstream.engines.contract import Capabilities, TileFormat
from srstream.engines.tiles import Rectangle, TileGrid
from srstream.enhancer.reuse import CellGrid, KnownShapes, Memory
from srstream.frame import Plane


@dataclass(frozen=True, slots=True)
class Patch:
    """A rectangle of a plane to compute, and the surrounding window that is the network's input."""

    rectangle: Rectangle
    window: Rectangle


@dataclass(frozen=True, slots=True)
class Part:
    """A patch and the network's output for its window."""

    patch: Patch
    result: tuple[Plane, ...]


class PatchFinder:
    """Finds the patches of each frame by comparison with the frame before.

    Args:
        can: the capabilities of the engine that computes the patches.
        config: whether anything is reused, and how much a sample may differ.
    """

    def __init__(self, can: Capabilities, config: ReuseConfig) -> None:
        self._can, self._config = can, config
        self._shapes = KnownShapes()
        self._last: dict[object, Memory] = {}
        self._memories: dict[object, Memory] = {}

    @property
    def takes_any_shape(self) -> bool:
        """Whether patches are computed individually, in sessions for tiles of any shape.

        If not, they are tiles of the frame's grid: either the engine takes no other shapes, or the
        result would differ from that of the whole tile.
        """
        can = self._can
        return can.takes_any_shape and (can.tiles_are_exact or self._config.threshold > 0)

    def next_frame(self) -> None:
        """Begin a frame, and forget planes that the last one lacked."""
        self._last, self._memories = self._memories, {}

    def forget(self) -> None:
        """Find no patches in the next frame, so that it is computed as a whole."""
        self._last, self._memories = {}, {}

    def patches(
        self, index: int, planes: Sequence[Plane], grid: TileGrid, tile_format: TileFormat
    ) -> list[Patch] | None:
        """Return the patches of the input for plane `index`; None if all of it is computed.

        The input is remembered for the next frame.
        """
        if not self._config.enabled:
            return None
        key = index, tile_format, planes[0].shape
        memory = self._last.get(key) or self._new_memory(planes[0].shape, tile_format.bits)
        patches = self._changed(memory, planes, grid)
        memory.keep(planes, None if patches is None else [patch.rectangle for patch in patches])
        self._memories[key] = memory
        return patches

    def _new_memory(self, shape: tuple[int, ...], bits: int) -> Memory:
        height, width = shape
        cells = CellGrid(height, width, self._can.halo)
        return Memory(cells, self._config.threshold << (bits - 8))

    def _changed(
        self, memory: Memory, planes: Sequence[Plane], grid: TileGrid
    ) -> list[Patch] | None:
        if self.takes_any_shape:
            cover = memory.to_compute(planes, grid.tile_rows * grid.tile_cols)
            if cover is None:
                return None
            height, width = planes[0].shape
            windows = [r.window(height, width, self._can.halo) for r in cover]
            fitted = [self._shapes.fitted(window, height, width) for window in windows]
            return list(map(Patch, cover, fitted))
        changed = memory.changed(planes)
        if changed is None:
            return None
        tiles = grid.tiles()
        # If tiles are not exact, every sample of a window may change the last bit of every result.
        exact = self._can.tiles_are_exact
        areas = [tile.kept if exact else tile.window(grid.tile_shape) for tile in tiles]
        touched = [
            tile
            for tile, area in zip(tiles, areas, strict=True)
            if memory.grid.touches(changed, area)
        ]
        if len(touched) == len(tiles):
            return None
        return [Patch(tile.kept, tile.window(grid.tile_shape)) for tile in touched]


def patched(last: list[Plane], parts: Sequence[Part], scales: Sequence[int]) -> list[Plane]:
    """Insert the parts into the last frame's enlarged planes; `scales` has one entry a plane."""
    if not parts:
        return last
    planes = [plane.copy() for plane in last]
    for part in parts:
        rectangle, window = part.patch.rectangle, part.patch.window
        for plane, made, scale in zip(planes, part.result, scales, strict=True):
            plane[rectangle.scaled(scale)] = made[rectangle.scaled(scale, within=window)]
    return planes
