"""Color: matrices and ranges of ITU-T H.273, and chroma siting.

Shapes: H and W are rows and columns of a plane. Codes are integers as stored in the file; `bits` is
their depth. No other module converts numeric ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from srstream.errors import RefusedError
from srstream.frame import ColorSpec, Plane, PlaneLayout
from srstream.resampling import Matrix, Sampling, resample_plane, to_codes

LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.601, 625 lines (BT.470BG)
    6: (0.299, 0.114),  # BT.601, 525 lines
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020, non-constant luminance
}
"""(KR, KB) by MatrixCoefficients, H.273 table 4."""

YCGCO = 8
BT601 = 6
UNSPECIFIED = 2

BLOCK_ROWS = 32
"""Rows that are mixed at a time, few enough to stay in the processor's cache."""

LEFT, CENTER, TOP_LEFT, TOP, BOTTOM_LEFT, BOTTOM = 1, 2, 3, 4, 5, 6
"""Chroma sitings, numbered as in libav's AVChromaLocation."""


def rgb_to_yuv_matrix(matrix: int) -> Matrix:
    """Return the (3, 3) matrix from R'G'B' in [0, 1] to Y' in [0, 1], U and V in [-0.5, 0.5].

    It follows H.273 equations 38 to 40, and for YCgCo 57 to 59, in the order Y, Cg, Co. An
    unspecified matrix counts as BT.601.

    Raises:
        RefusedError: the coefficients mean identity, constant luminance or ICtCp, which no such
            matrix can express.
    """
    if matrix == YCGCO:
        return np.array([[0.25, 0.5, 0.25], [-0.25, 0.5, -0.25], [0.5, 0.0, -0.5]])
    weights = LUMA_WEIGHTS.get(BT601 if matrix == UNSPECIFIED else matrix)
    if weights is None:
        raise RefusedError(
            f"matrix coefficients {matrix} (ITU-T H.273) cannot be converted from or to RGB; "
            f"known are {', '.join(map(str, (*LUMA_WEIGHTS, YCGCO)))}."
        )
    kr, kb = weights
    luma = np.array([kr, 1 - kr - kb, kb])
    blue, red = np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0])
    return np.stack([luma, (blue - luma) / (2 * (1 - kb)), (red - luma) / (2 * (1 - kr))])


def same_matrix(old: int, new: int) -> bool | None:
    """Return whether two matrix coefficients mean one matrix; None if one cannot be converted."""
    if old == new:
        return True
    try:
        return bool(np.allclose(rgb_to_yuv_matrix(old), rgb_to_yuv_matrix(new)))
    except RefusedError:
        return None


def is_full_range(color: ColorSpec, layout: PlaneLayout) -> bool:
    """Return whether codes use the full range.

    An unspecified range means limited for yuv and full for rgb and gray, as in libav.
    """
    if color.full_range is not None:
        return color.full_range
    return layout.kind != "yuv"


@dataclass(frozen=True, slots=True)
class CodeRange:
    """The code range of a plane: a code is `zero` plus the value times `span`.

    Values of luma, alpha, R, G and B lie in [0, 1], those of chroma in [-0.5, 0.5].
    """

    zero: float
    """The code of black, or of neutral chroma."""
    span: float
    """The distance in codes between values that are 1 apart."""
    peak: int
    """The largest code, 2**bits - 1."""


def code_range(bits: int, full_range: bool, *, is_chroma: bool = False) -> CodeRange:
    """Return the range of codes of `bits` by H.273 equations 20 to 37."""
    peak = (1 << bits) - 1
    unit = 1 << (bits - 8)
    if full_range:
        return CodeRange(float(1 << (bits - 1)) if is_chroma else 0.0, float(peak), peak)
    return (
        CodeRange(128.0 * unit, 224.0 * unit, peak)
        if is_chroma
        else CodeRange(16.0 * unit, 219.0 * unit, peak)
    )


def convert_codes(plane_HW: Plane, source: CodeRange, target: CodeRange) -> Plane:
    """Express the same values in other codes, rounded half to even and clamped.

    Between two depths of limited range this is a shift by whole bits.
    """
    if source == target:
        return plane_HW
    gain = target.span / source.span
    dtype = np.uint8 if target.peak <= 255 else np.uint16
    shift = np.log2(gain)
    if shift == int(shift) and shift >= 0 and target.zero == source.zero * gain:
        return np.left_shift(plane_HW, int(shift), dtype=dtype)
    scaled = plane_HW * np.float32(gain) + np.float32(target.zero - source.zero * gain)
    return to_codes(scaled, target.peak)


def rgb_to_yuv444(
    planes_GBR: tuple[Plane, Plane, Plane],
    bits: int,
    matrix: int = BT601,
    *,
    full_range: bool = True,
) -> tuple[Plane, Plane, Plane]:
    """Convert G, B, R codes of `bits` to Y, U, V of 16 bits in full range, (H, W) each.

    The round trip is exact up to 12 bits; codes of 16 bits come back within two.
    """
    source, luma = code_range(bits, full_range), code_range(16, True)
    chroma = code_range(16, True, is_chroma=True)
    mix = rgb_to_yuv_matrix(matrix)[:, [1, 2, 0]] * (65535.0 / source.span)
    offset = np.array([luma.zero, chroma.zero, chroma.zero]) - mix.sum(axis=1) * source.zero
    return _mix_planes(planes_GBR, mix, offset, 65535)


def yuv444_to_rgb(
    planes_YUV: tuple[Plane, Plane, Plane],
    bits: int,
    matrix: int = BT601,
    *,
    full_range: bool = True,
) -> tuple[Plane, Plane, Plane]:
    """Convert Y, U, V of 16 bits in full range to G, B, R codes of `bits`, clamped."""
    target, chroma = code_range(bits, full_range), code_range(16, True, is_chroma=True)
    mix = np.linalg.inv(rgb_to_yuv_matrix(matrix))[[1, 2, 0]] * (target.span / 65535.0)
    offset = target.zero - mix @ np.array([0.0, chroma.zero, chroma.zero])
    return _mix_planes(planes_YUV, mix, offset, target.peak)


def with_matrix(
    planes_YUV: Sequence[Plane], layout: PlaneLayout, color: ColorSpec, matrix: int
) -> tuple[Plane, ...]:
    """Convert Y, U, V of a picture described by `color` to another matrix, in 16 bits.

    Range, siting and the size of the planes stay the same; an alpha plane is converted to 16 bits.
    Gray is gray in any matrix, so the new U and V depend only on U and V. The new Y depends on all
    three, with U and V resampled to its grid.

    Raises:
        RefusedError: one of the matrices has no RGB conversion; see `rgb_to_yuv_matrix`.
    """
    mix = rgb_to_yuv_matrix(matrix) @ np.linalg.inv(rgb_to_yuv_matrix(color.matrix))
    full = is_full_range(color, layout)
    luma, chroma = code_range(16, full), code_range(16, full, is_chroma=True)
    chroma_in = code_range(layout.bits, full, is_chroma=True)
    y, *differences = (
        convert_codes(planes_YUV[0], code_range(layout.bits, full), luma),
        *(convert_codes(plane, chroma_in, chroma) for plane in planes_YUV[1:3]),
    )
    x_shift, y_shift = chroma_shift(layout, color)
    height, width = y.shape
    rows = Sampling.between(height, height, stride_in=1 << layout.log2_chroma_h, shift_in=y_shift)
    columns = Sampling.between(width, width, stride_in=1 << layout.log2_chroma_w, shift_in=x_shift)
    made = y.astype(np.float32)
    for plane, share in zip(differences, mix[0, 1:] * luma.span / chroma.span, strict=True):
        placed = resample_plane(plane, y.shape, rows, columns, chroma.peak)
        made += (placed - np.float32(chroma.zero)) * np.float32(share)
    u, v = (plane.astype(np.float32) - np.float32(chroma.zero) for plane in differences)
    mixed = [
        to_codes(np.asarray(u * row[1] + v * row[2] + chroma.zero, np.float32), chroma.peak)
        for row in mix[1:].astype(np.float32)
    ]
    rest = [
        convert_codes(plane, code_range(layout.bits, True), code_range(16, True))
        for plane in planes_YUV[3:]
    ]
    return (to_codes(made, luma.peak), *mixed, *rest)


def _mix_planes(
    planes: tuple[Plane, Plane, Plane], mix: Matrix, offset: Matrix, peak: int
) -> tuple[Plane, Plane, Plane]:
    affine = np.column_stack([mix, offset]).astype(np.float32)
    dtype = np.uint8 if peak <= 255 else np.uint16
    first, second, third = (np.empty(planes[0].shape, dtype) for _ in range(3))
    for start in range(0, len(first), BLOCK_ROWS):  # never holds the whole picture in float
        rows = slice(start, start + BLOCK_ROWS)
        stacked = cv2.merge([plane[rows] for plane in planes]).astype(np.float32)
        mixed = cv2.split(cv2.transform(stacked, affine))
        for target, values in zip((first, second, third), mixed, strict=True):
            target[rows] = to_codes(values, peak)  # type: ignore[arg-type]
    return first, second, third


def chroma_shift(layout: PlaneLayout, color: ColorSpec) -> tuple[float, float]:
    """Return the position (x, y) of chroma sample (0, 0), in luma samples from luma sample (0, 0).

    Unspecified siting means left (MPEG-2, H.264, HEVC) in limited range and center (JPEG) in full
    range.
    """
    location = color.chroma_location
    if location == 0:
        location = CENTER if is_full_range(color, layout) else LEFT
    middle_x = ((1 << layout.log2_chroma_w) - 1) / 2
    middle_y = ((1 << layout.log2_chroma_h) - 1) / 2
    x = 0.0 if location in (LEFT, TOP_LEFT, BOTTOM_LEFT) else middle_x
    y = {TOP_LEFT: 0.0, TOP: 0.0, BOTTOM_LEFT: 2 * middle_y, BOTTOM: 2 * middle_y}.get(
        location, middle_y
    )
    return x, y


def black_levels(layout: PlaneLayout, color: ColorSpec) -> list[int]:
    """Return the code of opaque black in each plane."""
    full_range = is_full_range(color, layout)
    luma = code_range(layout.bits, full_range)
    chroma = code_range(layout.bits, full_range, is_chroma=True)
    levels = [int(luma.zero)] if layout.kind == "gray" else [int(luma.zero)] * 3
    if layout.kind == "yuv":
        levels[1:] = [int(chroma.zero)] * 2
    if layout.has_alpha:
        levels.append(luma.peak)
    return levels
