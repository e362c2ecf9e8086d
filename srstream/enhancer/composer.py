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
from srstream.enhancer.letterbox import Placing, letterboxed, placing_of
from srstream.enhancer.reuse import ResampledPlane
from srstream.errors import EngineError, RefusedError
from srstream.frame import ColorSpec, Frame, FrameForm, Plane, PlaneLayout
from srstream.resampling import FloatPlane, Sampling, missing_mean, resample_plane

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
        bits = self.input_bits(picture)
        plane = _deepened(picture.planes[index], picture.layout, picture.color, bits, index)
        if not self.makes_chroma:
            return [plane]
        picture.inputs[index] = [plane, *self._chroma_on_luma_grid(picture, index, plane, bits)]
        return picture.inputs[index]

    def _chroma_on_luma_grid(
        self, picture: Picture, index: int, plane: Plane, bits: int
    ) -> list[Plane]:
        layout, color = picture.layout, picture.color
        chroma = code_range(bits, self._is_full_range(picture, index), is_chroma=True)
        if index or layout.kind == "gray":
            neutral = np.full(plane.shape, chroma.zero, plane.dtype)
            return [neutral, neutral]
        x, y = chroma_shift(layout, color)
        height, width = plane.shape
        rows = Sampling.between(height, height, stride_in=1 << layout.log2_chroma_h, shift_in=y)
        columns = Sampling.between(width, width, stride_in=1 << layout.log2_chroma_w, shift_in=x)
        deepened = [_deepened(picture.planes[n], layout, color, bits, n) for n in (1, 2)]
        return [resample_plane(d, plane.shape, rows, columns, chroma.peak) for d in deepened]

    def _is_full_range(self, picture: Picture, index: int) -> bool:
        return index != 0 or is_full_range(picture.color, picture.layout)

    def tile_format(self, picture: Picture, index: int, shape: tuple[int, int]) -> TileFormat:
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
        if self._output.layout.kind == "gray":
            return
        layout = picture.layout
        if layout.kind == "gray":
            picture.chroma = self._neutral_chroma(picture)
            return
        bits = max(layout.bits, self._chroma_layout().bits)
        planes = [_deepened(picture.planes[n], layout, picture.color, bits, n) for n in (1, 2)]
        luma_shape = picture.frame.height, picture.frame.width
        strides = 1 << layout.log2_chroma_w, 1 << layout.log2_chroma_h
        shifts = chroma_shift(layout, picture.color)
        picture.chroma = self._placed_chroma(picture, planes, bits, luma_shape, strides, shifts)

    def compose(self, picture: Picture, made: Mapping[int, Sequence[Plane]]) -> Frame:
        """Make the output frame from the network's results for each of `planes_to_enlarge`.

        Raises:
            EngineError: the frame's mean luma differs from the source's.
        """
        self._check_mean(picture, made[0][0])
        output = self._output
        chroma = self._chroma_of_model(picture, made) if self.makes_chroma else picture.chroma
        planes = [self._fitted(picture, made, 0), *chroma]
        if output.layout.kind == "rgb":
            planes = self._to_rgb(picture, planes)
        if output.layout.has_alpha:
            planes.append(self._alpha(picture, made))
        return self.output_frame(picture, letterboxed(planes, picture.placing, output))

    def output_frame(self, picture: Picture, planes: Sequence[Plane]) -> Frame:
        """Return the output frame of these planes, at the time of the picture's frame."""
        output = self._output
        frame = picture.frame.with_planes(planes, output.width, output.height, output.layout)
        return replace(frame, color=output.color, sample_aspect_ratio=None)

    def _check_mean(self, picture: Picture, luma: Plane) -> None:
        """Raise `EngineError` if an engine returns black, noise or another frame; a cheap check."""
        layout = picture.layout
        before = cv2.mean(picture.planes[0])[0] / ((1 << layout.bits) - 1)
        after = cv2.mean(luma)[0] / ((1 << self.input_bits(picture)) - 1)
        if abs(after - before) > MAX_MEAN_CHANGE and (
            abs(after - before) > MAX_MEAN_CHANGE + 0.5 * _detail(picture.planes[0], layout.bits)
        ):
            raise EngineError(
                f"the frame at {picture.frame.pts_seconds:.3f} s came out of the engine wrong: its "
                f"mean luma was {before:.1%} and became {after:.1%}. Check the weights "
                f"({self._can.weights})."
            )

    def _fitted(self, picture: Picture, made: Mapping[int, Sequence[Plane]], index: int) -> Plane:
        """Return an enlarged luma or alpha plane at the size and in the codes of the output.

        The luma of RGB stays in 16 bits.
        """
        frame, placing, scale = picture.frame, picture.placing, self._can.scale
        bits = self.input_bits(picture)
        enlarged, missing = made[index][0], None
        if self.makes_chroma:
            # A network may be off by a level where a color is rare; the source is not.
            missing = missing_mean(enlarged, picture.inputs[index][0])
        plane = resample_plane(
            enlarged,
            (placing.height, placing.width),
            Sampling.between(frame.height * scale, placing.height),
            Sampling.between(frame.width * scale, placing.width),
            (1 << bits) - 1,
            missing,
        )
        if index == 0:
            codes = code_range(bits, is_full_range(picture.color, picture.layout))
            return convert_codes(plane, codes, self._target_range(is_chroma=False))
        return convert_codes(
            plane, code_range(bits, True), code_range(self._output.layout.bits, True)
        )

    def _target_range(self, *, is_chroma: bool) -> CodeRange:
        output = self._output
        if output.layout.kind == "rgb":
            return code_range(RGB_BITS, True, is_chroma=is_chroma)
        full_range = is_full_range(output.color, output.layout)
        return code_range(output.layout.bits, full_range, is_chroma=is_chroma)

    def _chroma_of_model(
        self, picture: Picture, made: Mapping[int, Sequence[Plane]]
    ) -> list[Plane]:
        """Return U and V of the output from those that the network made."""
        if self._output.layout.kind == "gray":
            return []
        if picture.layout.kind == "gray":
            return self._neutral_chroma(picture)
        y, u, v = made[0]
        stride = y.shape[1] // u.shape[1]
        middle = (stride - 1) / 2  # the chroma siting of models, see COLOR_FORMS
        missing = [
            missing_mean(enlarged, source)
            for enlarged, source in zip((u, v), picture.inputs[0][1:], strict=True)
        ]
        bits, shape, strides, shifts = (
            self.input_bits(picture),
            y.shape,
            (stride,) * 2,
            (middle,) * 2,
        )
        return self._placed_chroma(picture, (u, v), bits, shape, strides, shifts, missing)

    def _neutral_chroma(self, picture: Picture) -> list[Plane]:
        layout, placing = self._chroma_layout(), picture.placing
        shape = layout.plane_shape(1, placing.width, placing.height)
        target = self._target_range(is_chroma=True)
        neutral = np.full(shape, target.zero, self._output.layout.dtype)
        return [neutral, neutral.copy()]

    def _chroma_layout(self) -> PlaneLayout:
        """Return the layout of the output's chroma, before it is converted to RGB."""
        return RGB_LAYOUT if self._output.layout.kind == "rgb" else self._output.layout

    def _placed_chroma(
        self,
        picture: Picture,
        planes: Sequence[Plane],
        bits: int,
        luma_shape: tuple[int, int],
        strides: tuple[int, int],
        shifts: tuple[float, float],
        missing: Sequence[FloatPlane] = (),
    ) -> list[Plane]:
        """Resample chroma planes to the positions of the output's samples, in its codes.

        Args:
            luma_shape: (rows, columns) of the luma plane that they belong to.
            strides, shifts: (x, y) distance and position of their samples, in samples of that luma
                plane.
            missing: what each plane lacks of its source's local mean; none of it by default.
        """
        layout, placing = self._chroma_layout(), picture.placing
        color_out = RGB_COLOR if layout is RGB_LAYOUT else self._output.color
        x_out, y_out = chroma_shift(layout, color_out)
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
        codes = code_range(bits, is_full_range(picture.color, picture.layout), is_chroma=True)
        target = self._target_range(is_chroma=True)
        return [
            convert_codes(resample(plane, shape, rows, columns, codes.peak), codes, target)
            for plane, resample in zip(planes, self._chroma_resamplers(missing), strict=True)
        ]

    def _chroma_resamplers(self, missing: Sequence[FloatPlane]) -> list[Resample]:
        """Return resamplers for U and V; unchanged interpolated chroma is not made again."""
        if missing:
            return [partial(resample_plane, missing_hw=lacks) for lacks in missing]
        if not self._reuses_chroma:
            return [resample_plane] * 2
        return [memory.resample for memory in self._chroma_memories]

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


def _deepened(plane: Plane, layout: PlaneLayout, color: ColorSpec, bits: int, index: int) -> Plane:
    """Convert plane `index` of a `layout` picture to a depth of `bits`, in the same range."""
    is_alpha = layout.has_alpha and index == layout.num_planes - 1
    is_chroma = layout.kind == "yuv" and index in (1, 2)
    full_range = is_alpha or is_full_range(color, layout)
    return convert_codes(
        plane,
        code_range(layout.bits, full_range, is_chroma=is_chroma),
        code_range(bits, full_range, is_chroma=is_chroma),
    )
