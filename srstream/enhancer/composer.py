"""Converts source frames to network input, and network output to output frames.

The composer converts between layouts, ranges and depths and resamples chroma and alpha. It neither
runs an engine nor keeps frames in order: `enhancer.py` does both.

Luma goes through the network, and so does an alpha plane that is not opaque, unless the weights
mix several sets: those repair compression or invent texture, which alpha must not get, so bicubic
interpolation enlarges it. A luma model leaves U and V to bicubic interpolation. Other models get
U and V on the luma grid, and their output is moved to the positions of the output's chroma
samples. RGB is converted to 16-bit Y, U, V and back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import numpy as np

from srstream.color import (
    BT601,
    code_range,
    convert_codes,
    is_full_range,
    rgb_to_yuv444,
    rgb_to_yuv_matrix,
    same_matrix,
    with_matrix,
    yuv444_to_rgb,
)
from srstream.engines.contract import Capabilities, TileFormat
from srstream.engines.whole_frames import FlatPlane, FrameRecipe, PlaneRecipe, PlaneSource
from srstream.enhancer.letterbox import letterboxed, placing_of
from srstream.enhancer.recipes import RGB_BITS, RGB_COLOR, RGB_LAYOUT, Picture, Recipes
from srstream.enhancer.reuse import ResampledPlane
from srstream.errors import EngineError, RefusedError
from srstream.frame import Frame, FrameForm, Plane, PlaneLayout
from srstream.resampling import Sampling, missing_mean, resample_plane

Resample = Callable[[Any, tuple[int, int], Sampling, Sampling, int], Plane]

MAX_MEAN_CHANGE = 0.08
"""Largest change of a frame's mean luma, as a share of the code range, that is always accepted.

A working network stays within a tenth of it, unless every pixel differs from its neighbors; so
half of the frame's own detail is allowed in addition."""


class Composer:
    """Makes network input from source frames, and output frames from the network's results.

    Args:
        can: the capabilities of the engine that enlarges the planes.
        source: the form of the incoming frames; a frame of this size and pixel shape fills the
            output.
        output: the form of every outgoing frame.
        reuses_chroma: whether unchanged interpolated chroma is kept from frame to frame.

    Raises:
        RefusedError: the output's layout cannot be made from the source's, or the model works in
            RGB and the source's matrix cannot be converted.
    """

    def __init__(
        self, can: Capabilities, source: FrameForm, output: FrameForm, *, reuses_chroma: bool
    ) -> None:
        _check_kinds(source.layout, output.layout)
        if can.color_form == "rgb" and source.layout.kind == "yuv":
            rgb_to_yuv_matrix(source.color.matrix)
        self._can, self._source, self._output = can, source, output
        self._recipes = Recipes(can, output)
        self.makes_chroma = can.color_form != "luma"
        self._reuses_chroma = reuses_chroma
        self._chroma_memories = (ResampledPlane(), ResampledPlane())

    def forget(self) -> None:
        """Interpolate the next frame's chroma as a whole."""
        self._chroma_memories = (ResampledPlane(), ResampledPlane())

    def picture_of(self, frame: Frame) -> Picture:
        """Convert a frame to the form in which it is enlarged."""
        _check_kinds(frame.layout, self._output.layout)
        placing = placing_of(frame, self._source, self._output)
        if frame.layout.kind != "rgb":
            frame = self._with_matrix_of_output(frame)
            return Picture(frame, frame.planes, frame.layout, frame.color, placing)
        alpha = frame.layout.has_alpha
        layout = replace(RGB_LAYOUT, has_alpha=alpha)
        green, blue, red, *rest = frame.planes
        planes: list[Plane] = list(
            rgb_to_yuv444(
                (green, blue, red),
                frame.layout.bits,
                self._matrix_for_rgb(),
                full_range=self._keeps_rgb_range(frame) or is_full_range(frame.color, frame.layout),
            )
        )
        if alpha:
            full = code_range(frame.layout.bits, True)
            planes.append(convert_codes(rest[0], full, code_range(RGB_BITS, True)))
        return Picture(frame, tuple(planes), layout, RGB_COLOR, placing)

    def _with_matrix_of_output(self, frame: Frame) -> Frame:
        """Convert a frame to the output's matrix if its own differs, in 16 bits.

        Some videos change their matrix midway. A frame that cannot be converted is returned
        unchanged, since the decoder has reported it.
        """
        old, new = frame.color.matrix, self._output.color.matrix
        is_yuv = frame.layout.kind == self._output.layout.kind == "yuv"
        if not is_yuv or same_matrix(old, new) is not False:
            return frame
        planes = with_matrix(frame.planes, frame.layout, frame.color, new)
        layout, color = replace(frame.layout, bits=16), replace(frame.color, matrix=new)
        return replace(frame, planes=planes, layout=layout, color=color)

    def _matrix_for_rgb(self) -> int:
        return RGB_COLOR.matrix if self._output.layout.kind == "rgb" else self._output.color.matrix

    def _keeps_rgb_range(self, frame: Frame) -> bool:
        """Return whether RGB is output in the range of the source.

        If so, codes are converted as if they were full range, which keeps those outside the range.
        """
        output = self._output
        return output.layout.kind == "rgb" and (
            is_full_range(frame.color, frame.layout) == is_full_range(output.color, output.layout)
        )

    def planes_to_enlarge(self, picture: Picture) -> list[int]:
        """Return indices of the network's planes: luma, and alpha if the network enlarges it."""
        if self._can.mixes_sets or not self._shows_alpha(picture):
            return [0]
        return [0, picture.layout.num_planes - 1]

    def _shows_alpha(self, picture: Picture) -> bool:
        """Return whether source and output have alpha, and it is not opaque everywhere."""
        if not (picture.layout.has_alpha and self._output.layout.has_alpha):
            return False
        return int(picture.planes[-1].min()) < (1 << picture.layout.bits) - 1

    def input_planes(self, picture: Picture, index: int) -> list[Plane]:
        """Return the network's input for a plane: the plane, with U and V if the model needs them.

        Alpha and gray are combined with neutral U and V.
        """
        planes = [_made(recipe, picture.planes) for recipe in self._recipes.inputs(picture, index)]
        if self.makes_chroma:
            picture.inputs[index] = planes
        return planes

    def tile_format(
        self, picture: Picture, index: int, shape: tuple[int, int] | None
    ) -> TileFormat:
        """Return the format of a plane's tiles of `shape` (rows, columns)."""
        full_range = self._recipes.uses_full_range(picture, index)
        tile = TileFormat(shape, self._recipes.input_bits(picture), full_range=full_range)
        if self._can.color_form != "rgb":
            return tile
        matrix = picture.color.matrix if picture.layout.kind == "yuv" else BT601
        if picture.frame.layout.kind == "rgb":
            matrix = self._matrix_for_rgb()
        return replace(tile, matrix=matrix)

    def interpolate_chroma(self, picture: Picture) -> None:
        """Make U and V of the output from the source's by bicubic interpolation.

        They are neutral for gray frames; a gray output has none.
        """
        resamplers: Sequence[Resample] = [resample_plane] * 2
        if self._reuses_chroma:
            resamplers = [memory.resample for memory in self._chroma_memories]
        picture.chroma = [
            _made(recipe, picture.planes, resample)
            for recipe, resample in zip(self._recipes.chroma(picture), resamplers, strict=False)
        ]

    def compose(self, picture: Picture, made: Mapping[int, Sequence[Plane]]) -> Frame:
        """Make the output frame from the network's results for each of `planes_to_enlarge`.

        Raises:
            EngineError: the frame's mean luma differs from the source's.
        """
        self.check_mean(picture, cv2.mean(made[0][0])[0])
        output = self._output
        chroma = picture.chroma
        if self.makes_chroma:
            chroma = [
                self._made_of_network(recipe, picture, made, 0)
                for recipe in self._recipes.chroma(picture)
            ]
        planes = [self._fitted(picture, made, 0), *chroma]
        if output.layout.kind == "rgb":
            planes = self._to_rgb(picture, planes)
        if output.layout.has_alpha:
            planes.append(self._alpha(picture, made))
        return self.output_frame(picture, letterboxed(planes, picture.placing, output))

    def frame_recipe(self, picture: Picture) -> FrameRecipe | None:
        """Return all that is done to a picture, for an engine that makes whole frames.

        It is None for what such engines do not do: RGB, and alpha that shows.
        """
        kinds = picture.frame.layout.kind, self._output.layout.kind
        if "rgb" in kinds or self._shows_alpha(picture):
            return None
        return self._recipes.frame(picture, self.tile_format(picture, 0, None))

    def output_frame(self, picture: Picture, planes: Sequence[Plane]) -> Frame:
        """Return the output frame of these planes, at the time of the picture's frame."""
        output = self._output
        frame = picture.frame.with_planes(planes, output.width, output.height, output.layout)
        return replace(frame, color=output.color, sample_aspect_ratio=None)

    def check_mean(self, picture: Picture, mean: float) -> None:
        """Raise `EngineError` if an engine returns black, noise or another frame; a cheap check.

        Args:
            mean: the mean of the network's luma, in its codes.
        """
        layout = picture.layout
        before = cv2.mean(picture.planes[0])[0] / ((1 << layout.bits) - 1)
        after = mean / ((1 << self._recipes.input_bits(picture)) - 1)
        if abs(after - before) > MAX_MEAN_CHANGE and (
            abs(after - before) > MAX_MEAN_CHANGE + 0.5 * _detail(picture.planes[0], layout.bits)
        ):
            raise EngineError(
                f"the frame at {picture.frame.pts_seconds:.3f} s came out of the engine wrong: its "
                f"mean luma was {before:.1%} and became {after:.1%}. Check the weights "
                f"({self._can.weights})."
            )

    def _fitted(self, picture: Picture, made: Mapping[int, Sequence[Plane]], index: int) -> Plane:
        """Return an enlarged luma or alpha plane at the size and in the codes of the output."""
        return self._made_of_network(self._recipes.luma(picture, index), picture, made, index)

    def _made_of_network(
        self, recipe: PlaneSource, picture: Picture, made: Mapping[int, Sequence[Plane]], index: int
    ) -> Plane:
        """Make a plane of the network's results for `index`, one of `planes_to_enlarge`."""
        missing = None
        if isinstance(recipe, PlaneRecipe) and recipe.keeps_mean:
            source = picture.inputs[index][recipe.index]
            missing = missing_mean(made[index][recipe.index], source)
        return _made(recipe, made[index], partial(resample_plane, missing_hw=missing))

    def _to_rgb(self, picture: Picture, planes: Sequence[Plane]) -> list[Plane]:
        output = self._output
        full_range = self._keeps_rgb_range(picture.frame) or is_full_range(
            output.color, output.layout
        )
        y, u, v = planes
        return list(
            yuv444_to_rgb((y, u, v), output.layout.bits, RGB_COLOR.matrix, full_range=full_range)
        )

    def _alpha(self, picture: Picture, made: Mapping[int, Sequence[Plane]]) -> Plane:
        """Return the output's alpha, which is opaque if the source has none.

        No sample leaves the range of the nearest source sample and its eight neighbors, so
        transparent and opaque areas are preserved.
        """
        shape = picture.placing.height, picture.placing.width
        layout = self._output.layout
        if not self._shows_alpha(picture):
            opaque: Plane = np.full(shape, (1 << layout.bits) - 1, layout.dtype)
            return opaque
        source = convert_codes(
            picture.planes[-1], code_range(picture.layout.bits, True), code_range(layout.bits, True)
        )
        index = picture.layout.num_planes - 1
        if index in made:
            plane = self._fitted(picture, made, index)
        else:
            rows, columns = (
                Sampling.between(*sides) for sides in zip(source.shape, shape, strict=True)
            )
            plane = resample_plane(source, shape, rows, columns, (1 << layout.bits) - 1)
        neighbors = np.ones((3, 3), np.uint8)
        bounds: list[Any] = [
            cv2.resize(of(source, neighbors), shape[::-1], interpolation=cv2.INTER_NEAREST)
            for of in (cv2.erode, cv2.dilate)
        ]
        clipped: Plane = plane.clip(*bounds)
        return clipped


def _check_kinds(source: PlaneLayout, output: PlaneLayout) -> None:
    """Raise `RefusedError` if the output's kind cannot be made from the source's."""
    if output.kind == "rgb" and source.kind != "rgb":
        raise RefusedError(f"an RGB output cannot be made of {source.kind} frames; choose YUV.")


def _detail(plane: Plane, bits: int) -> float:
    """Return the mean distance of a plane from its own blur, as a share of the code range."""
    distance = cv2.absdiff(plane, cv2.blur(plane, (3, 3)))
    return float(cv2.mean(distance)[0]) / ((1 << bits) - 1)


def _made(
    source: PlaneSource, planes: Sequence[Plane], resample: Resample = resample_plane
) -> Plane:
    """Make a plane by its recipe, of the frame's planes or the network's."""
    if isinstance(source, FlatPlane):
        flat: Plane = np.full(source.shape, source.code, source.dtype)
        return flat
    plane = convert_codes(planes[source.index], *source.before)
    plane = resample(plane, source.shape, source.rows, source.columns, source.peak)
    return convert_codes(plane, *source.after)
