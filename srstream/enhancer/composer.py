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
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import cv2
import numpy as np

from srstream.color import (
    BT601,
    CodeRange,
    chroma_shift,
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
from srstream.enhancer.letterbox import Placing, letterboxed, places_of, placing_of
from srstream.enhancer.reuse import ResampledPlane
from srstream.errors import EngineError, RefusedError
from srstream.frame import ColorSpec, Frame, FrameForm, Plane, PlaneLayout
from srstream.resampling import STILL, Sampling, missing_mean, resample_plane

Resample = Callable[[Any, tuple[int, int], Sampling, Sampling, int], Plane]

MAX_MEAN_CHANGE = 0.08
"""Largest change of a frame's mean luma, as a share of the code range, that is always accepted.

A working network stays within a tenth of it, unless every pixel differs from its neighbors; so
half of the frame's own detail is allowed in addition."""

RGB_BITS = 16
RGB_LAYOUT = PlaneLayout("yuv", RGB_BITS)
RGB_COLOR = ColorSpec(matrix=BT601, full_range=True)
"""The form to which RGB frames are converted for enlarging. Any matrix would work; networks on luma
were trained on BT.601."""


@dataclass(slots=True)
class Picture:
    """A source frame in the form in which it is enlarged, and its parts that wait until then."""

    frame: Frame
    planes: tuple[Plane, ...]
    """The planes to enlarge; Y, U, V if the frame is RGB."""
    layout: PlaneLayout
    color: ColorSpec
    placing: Placing
    inputs: dict[int, list[Plane]] = field(default_factory=dict)
    """The network's input for each plane, luma (0) or alpha, if the network makes chroma; it
    includes U and V on the luma grid."""
    chroma: list[Plane] = field(default_factory=list)
    """U and V of the output, if they are made by bicubic interpolation."""


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

    def input_bits(self, picture: Picture) -> int:
        """Return the depth of the network's codes: the larger of the picture's and the output's."""
        return max(picture.layout.bits, self._output.layout.bits)

    def input_planes(self, picture: Picture, index: int) -> list[Plane]:
        """Return the network's input for a plane: the plane, with U and V if the model needs them.

        Alpha and gray are combined with neutral U and V.
        """
        planes = [_made(recipe, picture.planes) for recipe in self._input_recipes(picture, index)]
        if self.makes_chroma:
            picture.inputs[index] = planes
        return planes

    def _input_recipes(self, picture: Picture, index: int) -> list[PlaneSource]:
        """Return how each of `input_planes` is made of the picture's planes."""
        layout, color, bits = picture.layout, picture.color, self.input_bits(picture)
        shape = picture.planes[index].shape
        before = _deeper(layout, color, bits, index)
        plane = PlaneRecipe("frame", index, before, shape, STILL, STILL, (before[1],) * 2)
        if not self.makes_chroma:
            return [plane]
        chroma = code_range(bits, self._is_full_range(picture, index), is_chroma=True)
        if index or layout.kind == "gray":
            neutral = FlatPlane(int(chroma.zero), shape, bits)
            return [plane, neutral, neutral]
        x, y = chroma_shift(layout, color)
        height, width = shape
        rows = Sampling.between(height, height, stride_in=1 << layout.log2_chroma_h, shift_in=y)
        columns = Sampling.between(width, width, stride_in=1 << layout.log2_chroma_w, shift_in=x)
        before = _deeper(layout, color, bits, 1)
        u, v = (
            PlaneRecipe("frame", n, before, shape, rows, columns, (before[1],) * 2) for n in (1, 2)
        )
        return [plane, u, v]

    def _is_full_range(self, picture: Picture, index: int) -> bool:
        return index != 0 or is_full_range(picture.color, picture.layout)

    def tile_format(
        self, picture: Picture, index: int, shape: tuple[int, int] | None
    ) -> TileFormat:
        """Return the format of a plane's tiles of `shape` (rows, columns)."""
        tile = TileFormat(
            shape, self.input_bits(picture), full_range=self._is_full_range(picture, index)
        )
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
            for recipe, resample in zip(self._chroma_recipes(picture), resamplers, strict=False)
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
                for recipe in self._chroma_recipes(picture)
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
        output, layout = self._output, picture.layout
        if "rgb" in (picture.frame.layout.kind, output.layout.kind) or self._shows_alpha(picture):
            return None
        recipes = [self._luma_recipe(picture, 0), *self._chroma_recipes(picture)]
        placing = picture.placing
        outputs: list[PlaneSource] = [*recipes]
        if output.layout.has_alpha:
            opaque = (1 << output.layout.bits) - 1
            shape = placing.height, placing.width
            outputs.append(FlatPlane(opaque, shape, output.layout.bits))
        num_planes = layout.num_planes - layout.has_alpha
        return FrameRecipe(
            tuple(plane.shape for plane in picture.planes[:num_planes]),
            layout.bits,
            tuple(self._input_recipes(picture, 0)),
            self.tile_format(picture, 0, None),
            tuple(outputs),
            tuple(places_of(placing, output)),
            output.layout.bits,
        )

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
        after = mean / ((1 << self.input_bits(picture)) - 1)
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
        return self._made_of_network(self._luma_recipe(picture, index), picture, made, index)

    def _luma_recipe(self, picture: Picture, index: int) -> PlaneRecipe:
        """Return how luma or alpha of the output is made. The luma of RGB stays in 16 bits."""
        frame, placing, scale = picture.frame, picture.placing, self._can.scale
        codes = code_range(self.input_bits(picture), self._is_full_range(picture, index))
        target = (
            code_range(self._output.layout.bits, True)
            if index
            else self._target_range(is_chroma=False)
        )
        return PlaneRecipe(
            "network",
            0,
            (codes, codes),
            (placing.height, placing.width),
            Sampling.between(frame.height * scale, placing.height),
            Sampling.between(frame.width * scale, placing.width),
            (codes, target),
            # A network may be off by a level where a color is rare; the source is not.
            keeps_mean=self.makes_chroma,
        )

    def _made_of_network(
        self, recipe: PlaneSource, picture: Picture, made: Mapping[int, Sequence[Plane]], index: int
    ) -> Plane:
        """Make a plane of the network's results for `index`, one of `planes_to_enlarge`."""
        missing = None
        if isinstance(recipe, PlaneRecipe) and recipe.keeps_mean:
            source = picture.inputs[index][recipe.index]
            missing = missing_mean(made[index][recipe.index], source)
        return _made(recipe, made[index], partial(resample_plane, missing_hw=missing))

    def _target_range(self, *, is_chroma: bool) -> CodeRange:
        output = self._output
        if output.layout.kind == "rgb":
            return code_range(RGB_BITS, True, is_chroma=is_chroma)
        full_range = is_full_range(output.color, output.layout)
        return code_range(output.layout.bits, full_range, is_chroma=is_chroma)

    def _chroma_recipes(self, picture: Picture) -> list[PlaneSource]:
        """Return how U and V of the output are made, before any conversion to RGB.

        They are placed where the output's samples are, and are neutral for gray frames; a gray
        output has none.
        """
        if self._output.layout.kind == "gray":
            return []
        layout = RGB_LAYOUT if self._output.layout.kind == "rgb" else self._output.layout
        color = RGB_COLOR if layout is RGB_LAYOUT else self._output.color
        source, placing, frame = picture.layout, picture.placing, picture.frame
        shape = layout.plane_shape(1, placing.width, placing.height)
        target = self._target_range(is_chroma=True)
        if source.kind == "gray":
            return [FlatPlane(int(target.zero), shape, layout.bits)] * 2
        full_range, scale = is_full_range(picture.color, source), self._can.scale
        if self.makes_chroma:
            codes = code_range(self.input_bits(picture), full_range, is_chroma=True)
            before = codes, codes
            stride = scale // self._can.form.outputs[-1].scale
            strides = stride, stride
            shifts = ((stride - 1) / 2,) * 2  # the chroma siting of models, see COLOR_FORMS
            height, width = frame.height * scale, frame.width * scale
        else:
            before = _deeper(source, picture.color, max(source.bits, layout.bits), 1)
            strides = 1 << source.log2_chroma_w, 1 << source.log2_chroma_h
            shifts = chroma_shift(source, picture.color)
            height, width = frame.height, frame.width
        x, y = chroma_shift(layout, color)
        rows = Sampling.between(
            height,
            placing.height,
            stride_in=strides[1],
            shift_in=shifts[1],
            stride_out=1 << layout.log2_chroma_h,
            shift_out=y,
        )
        columns = Sampling.between(
            width,
            placing.width,
            stride_in=strides[0],
            shift_in=shifts[0],
            stride_out=1 << layout.log2_chroma_w,
            shift_out=x,
        )
        return [
            PlaneRecipe(
                "network" if self.makes_chroma else "frame",
                index,
                before,
                shape,
                rows,
                columns,
                (before[1], target),
                keeps_mean=self.makes_chroma,
            )
            for index in (1, 2)
        ]

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


def _deeper(
    layout: PlaneLayout, color: ColorSpec, bits: int, index: int
) -> tuple[CodeRange, CodeRange]:
    """Return the codes of plane `index` of a `layout` picture, and the same range with `bits`."""
    is_alpha = layout.has_alpha and index == layout.num_planes - 1
    is_chroma = layout.kind == "yuv" and index in (1, 2)
    full_range = is_alpha or is_full_range(color, layout)
    return (
        code_range(layout.bits, full_range, is_chroma=is_chroma),
        code_range(bits, full_range, is_chroma=is_chroma),
    )


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
