"""How the planes around the network are made: the recipes that the composer and devices follow."""

from __future__ import annotations

from dataclasses import dataclass, field

from srstream.color import BT601, CodeRange, chroma_shift, code_range, is_full_range
from srstream.engines.contract import Capabilities, TileFormat
from srstream.engines.whole_frames import FlatPlane, FrameRecipe, PlaneRecipe, PlaneSource
from srstream.enhancer.letterbox import Placing, places_of
from srstream.frame import ColorSpec, Frame, FrameForm, Plane, PlaneLayout
from srstream.resampling import STILL, Sampling

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


class Recipes:
    """Writes recipes for the planes of one stream.

    Args:
        can: the capabilities of the engine that enlarges the planes.
        output: the form of every outgoing frame.
    """

    def __init__(self, can: Capabilities, output: FrameForm) -> None:
        self._can, self._output = can, output
        self._makes_chroma = can.color_form != "luma"

    def input_bits(self, picture: Picture) -> int:
        """Return the depth of the network's codes: the larger of the picture's and the output's."""
        return max(picture.layout.bits, self._output.layout.bits)

    def inputs(self, picture: Picture, index: int) -> list[PlaneSource]:
        """Return how each of `input_planes` is made of the picture's planes."""
        layout, color, bits = picture.layout, picture.color, self.input_bits(picture)
        shape = picture.planes[index].shape
        before = _deeper(layout, color, bits, index)
        plane = PlaneRecipe("frame", index, before, shape, STILL, STILL, (before[1],) * 2)
        if not self._makes_chroma:
            return [plane]
        chroma = code_range(bits, self.uses_full_range(picture, index), is_chroma=True)
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

    def uses_full_range(self, picture: Picture, index: int) -> bool:
        return index != 0 or is_full_range(picture.color, picture.layout)

    def luma(self, picture: Picture, index: int) -> PlaneRecipe:
        """Return how luma or alpha of the output is made. The luma of RGB stays in 16 bits."""
        frame, placing, scale = picture.frame, picture.placing, self._can.scale
        codes = code_range(self.input_bits(picture), self.uses_full_range(picture, index))
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
            keeps_mean=self._makes_chroma,
        )

    def chroma(self, picture: Picture) -> list[PlaneSource]:
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
        if self._makes_chroma:
            codes = code_range(
                self.input_bits(picture), is_full_range(picture.color, source), is_chroma=True
            )
            before, scale = (codes, codes), self._can.scale
            sides = frame.height * scale, frame.width * scale
            stride = scale // self._can.form.outputs[-1].scale
            strides = stride, stride
            shifts = ((stride - 1) / 2,) * 2  # the chroma siting of models, see COLOR_FORMS
        else:
            before = _deeper(source, picture.color, max(source.bits, layout.bits), 1)
            sides = frame.height, frame.width
            strides = 1 << source.log2_chroma_h, 1 << source.log2_chroma_w
            shifts = chroma_shift(source, picture.color)[::-1]
        rows, columns = (
            Sampling.between(
                sides[axis],
                (placing.height, placing.width)[axis],
                stride_in=strides[axis],
                shift_in=shifts[axis],
                stride_out=1 << (layout.log2_chroma_h, layout.log2_chroma_w)[axis],
                shift_out=chroma_shift(layout, color)[1 - axis],
            )
            for axis in (0, 1)
        )
        return [
            PlaneRecipe(
                "network" if self._makes_chroma else "frame",
                index,
                before,
                shape,
                rows,
                columns,
                (before[1], target),
                keeps_mean=self._makes_chroma,
            )
            for index in (1, 2)
        ]

    def frame(self, picture: Picture, tile: TileFormat) -> FrameRecipe:
        """Return all that is done to a picture of Y, U, V or gray, with alpha that is opaque.

        Args:
            tile: the format of the network's tiles, of any shape.
        """
        output, layout, placing = self._output, picture.layout, picture.placing
        outputs: list[PlaneSource] = [self.luma(picture, 0), *self.chroma(picture)]
        if output.layout.has_alpha:
            opaque = (1 << output.layout.bits) - 1
            shape = placing.height, placing.width
            outputs.append(FlatPlane(opaque, shape, output.layout.bits))
        num_planes = layout.num_planes - layout.has_alpha
        return FrameRecipe(
            tuple(plane.shape for plane in picture.planes[:num_planes]),
            layout.bits,
            tuple(self.inputs(picture, 0)),
            tile,
            tuple(outputs),
            tuple(places_of(placing, output)),
            output.layout.bits,
        )

    def _target_range(self, *, is_chroma: bool) -> CodeRange:
        output = self._output
        if output.layout.kind == "rgb":
            return code_range(RGB_BITS, True, is_chroma=is_chroma)
        full_range = is_full_range(output.color, output.layout)
        return code_range(output.layout.bits, full_range, is_chroma=is_chroma)


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
