"""Places a frame in the output: it fills all of it, or a rectangle with black around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srstream.color import black_levels
from srstream.engines.whole_frames import Place
from srstream.frame import Frame, FrameForm, Plane


@dataclass(frozen=True, slots=True)
class Placing:
    """The rectangle of the output that a frame fills, in luma samples."""

    left: int
    top: int
    width: int
    height: int


def placing_of(frame: Frame, source: FrameForm, output: FrameForm) -> Placing:
    """Return the largest rectangle that keeps the frame's shape, centered on the chroma grid.

    A frame of the source's size and pixel shape fills the output.
    """
    aspect = frame.sample_aspect_ratio or source.sample_aspect_ratio
    if (frame.width, frame.height, aspect) == (
        source.width,
        source.height,
        source.sample_aspect_ratio,
    ):
        return Placing(0, 0, output.width, output.height)
    width, height = float(frame.width * aspect / source.sample_aspect_ratio), frame.height
    factor = min(output.width / width, output.height / height)
    step_x, step_y = 1 << output.layout.log2_chroma_w, 1 << output.layout.log2_chroma_h
    fitted_width = _on_grid(width * factor, step_x, output.width)
    fitted_height = _on_grid(height * factor, step_y, output.height)
    return Placing(
        left=(output.width - fitted_width) // 2 // step_x * step_x,
        top=(output.height - fitted_height) // 2 // step_y * step_y,
        width=fitted_width,
        height=fitted_height,
    )


def _on_grid(side: float, step: int, largest: int) -> int:
    return min(largest, max(step, round(side / step) * step))


def places_of(placing: Placing, output: FrameForm) -> list[Place]:
    """Return the place of each plane in the output."""
    layout, places = output.layout, []
    for index, black in enumerate(black_levels(layout, output.color)):
        is_chroma = layout.kind == "yuv" and index in (1, 2)
        top = placing.top >> (layout.log2_chroma_h if is_chroma else 0)
        left = placing.left >> (layout.log2_chroma_w if is_chroma else 0)
        shape = layout.plane_shape(index, output.width, output.height)
        places.append(Place(top, left, shape, black))
    return places


def letterboxed(planes: Sequence[Plane], placing: Placing, output: FrameForm) -> list[Plane]:
    """Return the planes of an output frame: these at their place, with black around them."""
    if (placing.width, placing.height) == (output.width, output.height):
        return list(planes)
    canvas: list[Plane] = []
    for plane, place in zip(planes, places_of(placing, output), strict=True):
        black: Plane = np.full(place.shape, place.black, output.layout.dtype)
        rows, columns = plane.shape
        black[place.top : place.top + rows, place.left : place.left + columns] = plane
        canvas.append(black)
    return canvas
