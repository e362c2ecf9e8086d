"""Finds the parts of a frame that have changed and must be computed again; pure geometry.

A frame is a grid of small cells. A network's output for a cell depends only on the input of the
cell and of a halo around it. If both equal the input of the stored output, that output is still
valid. The other cells are covered by a few rectangles, each of which costs its halo once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from srstream.engines.tiles import Rectangle
from srstream.frame import Plane
from srstream.resampling import Sampling, resample_plane

CELL = 8
"""Side of a cell in input pixels. Small cells follow the changes closely: on compressed footage
(320x180, H.264 at CRF 23 and 30) 8 leaves less to compute than 16 or 32."""

MAX_CELLS = 48 * 48
"""Maximum number of cells of a frame. Larger frames have larger cells, so covering is no slower."""

RECTANGLE_PIXELS = 1200
"""An engine's fixed cost for a tile, in pixels (measured with OpenVINO on `fast`)."""

NEW_SHAPE_PIXELS = 800
"""Pixels by which a window may grow to a shape that the engine knows. The first tile of a shape
costs OpenVINO the time of 3000 pixels, but a known shape also serves later windows."""

MAX_KNOWN_SHAPES = 256

MAX_BOXES = 48
"""Maximum number of boxes whose merging is considered pair by pair."""

MOSTLY_CHANGED = 0.7
"""Share of changed cells above which no cover can pay off, so that none is sought."""

WORTHWHILE = 0.9
"""Share of the whole frame's cost above which a cover is not worthwhile."""

REST = 1
"""Frames for which no cover is sought after one that cost too much, since most are like it."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CellGrid:
    """The cells of a picture; those at the right and at the bottom may be smaller."""

    height: int
    width: int
    halo: int
    side: int = field(init=False)
    """Side of a cell in pixels."""

    def __post_init__(self) -> None:
        side = CELL
        while -(-self.height // side) * -(-self.width // side) > MAX_CELLS:
            side += CELL
        object.__setattr__(self, "side", side)

    def changed(self, difference: Mask) -> Mask:
        """Return whether anything differs in each cell or its halo, (rows, columns) of cells.

        `difference` (H, W) marks the pixels that differ.
        """
        sums = cv2.integral(difference.view(np.uint8))
        tops, bottoms = self._reach(self.height)
        lefts, rights = self._reach(self.width)
        inside = (
            sums[np.ix_(bottoms, rights)]
            - sums[np.ix_(tops, rights)]
            - sums[np.ix_(bottoms, lefts)]
            + sums[np.ix_(tops, lefts)]
        )
        return np.asarray(inside > 0)

    def cover(self, changed: Mask, max_pixels: int) -> list[Rectangle] | None:
        """Return rectangles that contain all changed cells; None if the whole frame is as cheap.

        `max_pixels` bounds each rectangle with its halo.
        """
        whole = self.height * self.width + RECTANGLE_PIXELS
        boxes = _merged(self._few_boxes(changed), self)
        sides = np.diff(self.windows(boxes).reshape(-1, 2, 2), axis=1)
        if float(sides.prod(axis=2).sum()) + len(boxes) * RECTANGLE_PIXELS > WORTHWHILE * whole:
            return None
        rectangles = []
        for top, left, bottom, right in boxes.tolist():
            rectangles += self._split(top, left, bottom, right, max_pixels)
        return rectangles

    def touches(self, changed: Mask, rectangle: Rectangle) -> bool:
        """Return whether any changed cell reaches into a rectangle of pixels."""
        side = self.side
        rows = slice(rectangle.top // side, -(-rectangle.bottom // side))
        columns = slice(rectangle.left // side, -(-rectangle.right // side))
        return bool(changed[rows, columns].any())

    def _reach(self, length: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the start and the end of each cell's halo along one axis."""
        starts = np.arange(0, length, self.side)
        ends = np.minimum(starts + self.side + self.halo, length)
        return np.maximum(starts - self.halo, 0), ends

    def _few_boxes(self, changed: Mask) -> NDArray[np.int64]:
        """Return boxes that contain all changed cells, of coarser cells if there are too many."""
        factor = 1
        boxes = _runs(changed)
        while len(boxes) > MAX_BOXES:
            factor *= 2
            rows, columns = (-(-side // factor) * factor for side in changed.shape)
            padded = np.zeros((rows, columns), np.bool_)
            padded[: changed.shape[0], : changed.shape[1]] = changed
            coarse = padded.reshape(rows // factor, factor, columns // factor, factor)
            boxes = _runs(np.asarray(coarse.any(axis=(1, 3)))) * factor
        return np.minimum(boxes, np.tile(changed.shape, 2))

    def windows(self, boxes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the network's input for boxes (n, 4) of cells, in pixels."""
        starts = np.maximum(boxes[:, :2] * self.side - self.halo, 0)
        ends = np.minimum(boxes[:, 2:] * self.side + self.halo, (self.height, self.width))
        return np.concatenate([starts, ends], axis=1)

    def trimmed(self, rectangle: Rectangle, difference: Mask) -> Rectangle | None:
        """Return the smallest part of a rectangle with all its changes; None if nothing changes."""
        window = rectangle.window(self.height, self.width, self.halo)
        seen = difference[window.slices]
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        if not len(rows):
            return None
        reached = Rectangle(
            window.top + int(rows[0]),
            window.left + int(columns[0]),
            window.top + int(rows[-1]) + 1,
            window.left + int(columns[-1]) + 1,
        ).window(self.height, self.width, self.halo)
        return Rectangle(
            max(rectangle.top, reached.top),
            max(rectangle.left, reached.left),
            min(rectangle.bottom, reached.bottom),
            min(rectangle.right, reached.right),
        )

    def _split(
        self, top: int, left: int, bottom: int, right: int, max_pixels: int
    ) -> list[Rectangle]:
        """Convert a box of cells to rectangles of pixels, halved until each is small enough."""
        side = self.side
        rectangle = Rectangle(
            top * side, left * side, min(bottom * side, self.height), min(right * side, self.width)
        )
        window = rectangle.window(self.height, self.width, self.halo)
        if window.num_pixels <= max_pixels or max(bottom - top, right - left) == 1:
            return [rectangle]
        if bottom - top >= right - left:
            middle = (top + bottom) // 2
            parts = [(top, left, middle, right), (middle, left, bottom, right)]
        else:
            middle = (left + right) // 2
            parts = [(top, left, bottom, middle), (top, middle, bottom, right)]
        return [r for part in parts for r in self._split(*part, max_pixels)]


def _runs(changed: Mask) -> NDArray[np.int64]:
    """Return boxes (top, left, bottom, right) of changed cells: runs in rows, equal runs joined."""
    edges = np.diff(changed.astype(np.int8), axis=1, prepend=0, append=0)
    rows, lefts = (indices.tolist() for indices in np.nonzero(edges == 1))
    _, rights = (indices.tolist() for indices in np.nonzero(edges == -1))
    boxes: list[list[int]] = []
    last: dict[tuple[int, int], list[int]] = {}
    for row, left, right in zip(rows, lefts, rights, strict=True):
        box = last.get((left, right))
        if box is not None and box[2] == row:
            box[2] = row + 1
            continue
        last[left, right] = [row, left, row + 1, right]
        boxes.append(last[left, right])
    return np.array(boxes, np.int64).reshape(-1, 4)


def _merged(boxes: NDArray[np.int64], grid: CellGrid) -> NDArray[np.int64]:
    """Merge boxes: two become their bounding box while that costs less, the best pair first."""
    # With edges as (-top, -left, bottom, right), the elementwise maximum is the bounding box of two
    # boxes. That holds for cells and also for windows, as clipping at the picture's edge keeps the
    # order.
    signs = np.array([[-1], [-1], [1], [1]])
    cells = boxes.T * signs
    windows = grid.windows(boxes).T * signs
    costs = _cost(windows)
    alive = np.ones(len(boxes), np.bool_)
    gains = costs + costs[:, None] - _cost(np.maximum(windows[:, None], windows[:, :, None]))
    np.fill_diagonal(gains, -1)
    while len(boxes) > 1:
        first, second = divmod(int(gains.argmax()), len(boxes))
        if gains[first, second] <= 0:
            break
        cells[:, first] = np.maximum(cells[:, first], cells[:, second])
        windows[:, first] = np.maximum(windows[:, first], windows[:, second])
        costs[first] = _cost(windows[:, first])
        alive &= (cells > cells[:, first, None]).any(axis=0)  # the others are inside
        alive[first] = True
        around = _cost(np.maximum(windows, windows[:, first, None]))
        gains[first] = gains[:, first] = np.where(alive, costs + costs[first] - around, -1)
        gains[first, first] = -1
        gains[~alive] = -1
        gains[:, ~alive] = -1
    return np.asarray((cells * signs).T[alive])


def _cost(edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the cost in pixels of windows with edges (-top, -left, bottom, right), (4, ...)."""
    return np.asarray((edges[0] + edges[2]) * (edges[1] + edges[3]) + RECTANGLE_PIXELS)


class Memory:
    """The inputs from which a plane's stored output was computed.

    With a `threshold` of 0 these are the last frame's planes. With a higher one, each cell keeps
    its own input, halo included, so that errors never add up: a cell is computed again as soon as
    any sample on which it depends differs by more than the threshold from that input.
    """

    def __init__(self, grid: CellGrid, threshold: int) -> None:
        self.grid, self.threshold = grid, threshold
        self._rest = 0
        self._planes: tuple[Plane, ...] = ()
        self._difference: Mask = np.empty((0, 0), np.bool_)
        self._patches: list[NDArray[np.int32]] = []

    def changed(self, planes: Sequence[Plane]) -> Mask | None:
        """Return which cells to compute, (rows, columns); None if nothing is remembered yet."""
        if self.threshold == 0:
            if not self._planes:
                return None
            difference = np.zeros(planes[0].shape, np.bool_)
            for now, before in zip(planes, self._planes, strict=True):
                if now is not before:
                    difference |= now != before
            self._difference = difference
            return self.grid.changed(difference)
        if not self._patches:
            return None
        apart = [
            np.abs(self._cut(now) - patches).max(axis=(2, 3))
            for now, patches in zip(planes, self._patches, strict=True)
        ]
        return np.asarray(np.max(apart, axis=0) > self.threshold)

    def to_compute(self, planes: Sequence[Plane], max_pixels: int) -> list[Rectangle] | None:
        """Return rectangles that contain all changes; None for the whole planes."""
        if self._rest:
            self._rest -= 1
            return None
        changed = self.changed(planes)
        if changed is None or changed.mean() > MOSTLY_CHANGED:
            return None
        cover = self.grid.cover(changed, max_pixels)
        if cover is None:
            self._rest = REST
        if cover is None or self.threshold:
            return cover
        trimmed = [self.grid.trimmed(rectangle, self._difference) for rectangle in cover]
        return [rectangle for rectangle in trimmed if rectangle is not None]

    def keep(self, planes: Sequence[Plane], computed: Sequence[Rectangle] | None) -> None:
        """Remember the planes as the input of what was computed, or of everything if None."""
        if self.threshold == 0:
            self._planes = tuple(planes)
            return
        cut = [self._cut(plane) for plane in planes]
        if computed is None or not self._patches:
            self._patches = cut
            return
        side = self.grid.side
        for rectangle in computed:
            cells = (
                slice(rectangle.top // side, -(-rectangle.bottom // side)),
                slice(rectangle.left // side, -(-rectangle.right // side)),
            )
            for patches, now in zip(self._patches, cut, strict=True):
                patches[cells] = now[cells]

    def _cut(self, plane: Plane) -> NDArray[np.int32]:
        """Cut cells with their halos, (rows, columns, side + 2 halo, side + 2 halo).

        Edge samples are repeated.
        """
        grid, side = self.grid, self.grid.side
        rows, columns = -(-grid.height // side), -(-grid.width // side)
        below, right = rows * side - grid.height, columns * side - grid.width
        padded = np.pad(
            plane.astype(np.int32),
            ((grid.halo, grid.halo + below), (grid.halo, grid.halo + right)),
            mode="edge",
        )
        window = side + 2 * grid.halo
        views = np.lib.stride_tricks.sliding_window_view(padded, (window, window))
        return views[::side, ::side].copy()


class KnownShapes:
    """The shapes of the windows that an engine has seen; the first of a shape takes longer."""

    def __init__(self) -> None:
        self._shapes: deque[tuple[int, int]] = deque(maxlen=MAX_KNOWN_SHAPES)

    def fitted(self, window: Rectangle, height: int, width: int) -> Rectangle:
        """Return a window of a known shape around this one, or this one if that costs less.

        The window lies inside the picture of `height` x `width`.
        """
        rows, columns = window.bottom - window.top, window.right - window.left
        fitting = [
            (known_rows * known_columns, known_rows, known_columns)
            for known_rows, known_columns in self._shapes
            if rows <= known_rows <= height and columns <= known_columns <= width
        ]
        num_pixels, known_rows, known_columns = min(fitting, default=(math.inf, 0, 0))
        if num_pixels > window.num_pixels + NEW_SHAPE_PIXELS:
            self._shapes.append((rows, columns))
            return window
        top = min(window.top, height - known_rows)
        left = min(window.left, width - known_columns)
        return Rectangle(top, left, top + known_rows, left + known_columns)


class ResampledPlane:
    """Resamples a plane and keeps the rows whose source did not change since the last one.

    The result equals that of `resample_plane` to the last bit.
    """

    def __init__(self) -> None:
        self._how: tuple[object, ...] = ()
        self._source: Plane = np.empty((0, 0), np.uint8)
        self._made: Plane = self._source

    def resample(
        self, plane: Plane, shape: tuple[int, int], rows: Sampling, columns: Sampling, peak: int
    ) -> Plane:
        """See `resample_plane`. The array may be returned again, so do not write to it."""
        how = plane.shape, plane.dtype, shape, rows, columns, peak
        if how != self._how:
            self._made = resample_plane(plane, shape, rows, columns, peak)
        else:
            self._made = self._updated(plane, shape, rows, columns, peak)
        self._how, self._source = how, plane
        return self._made

    def _updated(
        self, plane: Plane, shape: tuple[int, int], rows: Sampling, columns: Sampling, peak: int
    ) -> Plane:
        changed = np.flatnonzero((plane != self._source).any(axis=1))
        if not len(changed):
            return self._made
        height = plane.shape[0]
        factor = shape[0] // height
        if (factor * height, factor * plane.shape[1]) != shape or factor * rows.step != 1:
            return resample_plane(plane, shape, rows, columns, peak)
        # An output row depends on two input rows on each side of its position, which the offset
        # moves away from its own input row.
        reach = 3 + math.ceil(abs(rows.offset))
        first, end = max(int(changed[0]) - reach, 0), min(int(changed[-1]) + 1 + reach, height)
        top, bottom = max(first - reach, 0), min(end + reach, height)
        band = resample_plane(
            plane[top:bottom], (factor * (bottom - top), shape[1]), rows, columns, peak
        )
        made = self._made.copy()
        made[factor * first : factor * end] = band[factor * (first - top) : factor * (end - top)]
        return made
