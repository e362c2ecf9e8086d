"""Converts a picture to the form of a model's input and output.

Y, U and V are BT.601 in limited range, 8 bits, as the literature measures luma. The matrix of a
video makes little difference to a network that never sees RGB.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from srstream.models.table import ColorFormName
from srstream.quality import luma_bt601
from srstream.resampling import Sampling, resample_plane

Codes = NDArray[np.uint8]
"""(planes, H, W)."""

FineCodes = NDArray[np.uint16]
"""(planes, H, W), in 256ths of a code: values not yet rounded to codes."""

InputCodes = NDArray[np.unsignedinteger[Any]]
"""Either of them."""

Values = NDArray[np.float32]
"""(planes, H, W), code values."""

FRACTIONS = 256

Yuv = tuple[Codes, Codes, Codes]
"""A 4:2:0 frame: (H, W) and twice (H / 2, W / 2)."""

Picture = NDArray[np.uint8]
"""(H, W, 3), RGB, full range."""

LEFT_SITED, CENTRE_SITED = 0.0, 0.5
"""Horizontal position of a 4:2:0 chroma sample, in luma samples from the left one of its two."""

CHROMA_SHARES = 0.5, 0.35, 0.15
"""Of the patches: chroma of left-sited 4:2:0, of 4:2:0 sited in the middle, of 4:4:4."""

FROM_RGB = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]
)
"""BT.601, from RGB in 0 to 1 to Y - 16, U - 128 and V - 128 (ITU-R BT.601-7, section 2.5)."""


def round_to_codes(values: NDArray[Any]) -> Codes:
    """Round half up and clip, as MATLAB converts."""
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def fine_codes(values: NDArray[Any]) -> FineCodes:
    """Round to a 256th of a code and clip."""
    return np.round(np.clip(values, 0, 255) * FRACTIONS).astype(np.uint16)


def code_values(planes: InputCodes) -> Values:
    """Return the values of whole codes, or of fine ones."""
    values = planes.astype(np.float32)
    return values / np.float32(FRACTIONS) if planes.dtype == np.uint16 else values


def yuv444(rgb_HW3: Picture | NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert to (3, H, W): Y in 16 to 235, U and V in 16 to 240, not rounded."""
    u, v = (rgb_HW3 @ (weights / 255.0) + 128.0 for weights in FROM_RGB[1:])
    return np.stack([luma_bt601(rgb_HW3), u, v])


def rgb_of(yuv_3HW: NDArray[np.float64]) -> Codes:
    """Convert BT.601 in limited range to (3, H, W) RGB."""
    return round_to_codes(rgb_values(yuv_3HW))


def rgb_values(yuv_3HW: NDArray[np.floating]) -> NDArray[np.float64]:
    """Convert like `rgb_of`, without rounding or clipping."""
    offset = np.array([16.0, 128.0, 128.0])
    mix = np.linalg.inv(FROM_RGB / 255.0)
    return np.asarray(np.einsum("oi,ihw->ohw", mix, yuv_3HW - offset[:, None, None]))


def input_variants(
    lr_HW3: Picture | NDArray[np.float64],
    color: ColorFormName,
    *,
    subsampled: bool = False,
    exact: bool = False,
) -> tuple[tuple[float, InputCodes], ...]:
    """Return the variants of a model's low-resolution input, each with its share of the patches.

    A `yuv420` model gets chroma that was upsampled to the luma grid from 4:2:0 in either usual
    siting, and now and then from 4:4:4. So does an `rgb` model with `subsampled`. With `exact`,
    all are fine codes that no intermediate step rounds.
    """
    codes: Callable[[NDArray[Any]], InputCodes] = fine_codes if exact else round_to_codes
    if color == "luma":
        return ((1.0, codes(luma_bt601(lr_HW3))[None]),)
    if color == "rgb" and not subsampled:
        return ((1.0, np.ascontiguousarray(codes(lr_HW3).transpose(2, 0, 1))),)
    yuv_3HW = yuv444(lr_HW3)
    made = (
        chroma_through_420(yuv_3HW, LEFT_SITED, exact=exact),
        chroma_through_420(yuv_3HW, CENTRE_SITED, exact=exact),
        codes(yuv_3HW),
    )
    variants = tuple(zip(CHROMA_SHARES, made, strict=True))
    if color == "yuv420":
        return variants
    return tuple((share, codes(rgb_values(code_values(planes)))) for share, planes in variants)


def input_shares(color: ColorFormName, *, subsampled: bool) -> tuple[float, ...]:
    """Return the shares of the patches that `input_variants` states, in their order."""
    is_single = color == "luma" or (color == "rgb" and not subsampled)
    return (1.0,) if is_single else CHROMA_SHARES


def target_planes(hr_HW3: Picture, color: ColorFormName) -> tuple[Codes, ...]:
    """Return the model's target: one array for each plane group of its color form."""
    if color == "luma":
        return (round_to_codes(luma_bt601(hr_HW3))[None],)
    if color == "rgb":
        return (np.ascontiguousarray(hr_HW3.transpose(2, 0, 1)),)
    y_HW, *chroma = yuv444(hr_HW3)
    halved = [halve(plane, CENTRE_SITED) for plane in chroma]
    return round_to_codes(y_HW)[None], round_to_codes(np.stack(halved))


def halve(plane_HW: NDArray[np.float64], siting: float) -> NDArray[np.float64]:
    """Halve chroma in size, rounding sizes up; the result is float.

    Each sample is the mean of the 2x2 around it, or of 3x2 weighted 1:2:1 for left siting.
    """
    plane_HW = np.pad(plane_HW, [(0, side % 2) for side in plane_HW.shape], mode="edge")
    height, width = plane_HW.shape
    if siting == LEFT_SITED:
        padded = np.pad(plane_HW, ((0, 0), (1, 1)), mode="edge")
        plane_HW = (padded[:, :-2] + 2.0 * padded[:, 1:-1] + padded[:, 2:]) / 4.0
        columns = plane_HW[:, ::2]
        return (columns[::2] + columns[1::2]) / 2.0
    return np.asarray(
        cv2.resize(plane_HW, (width // 2, height // 2), interpolation=cv2.INTER_AREA), np.float64
    )


def chroma_through_420(
    yuv_3HW: NDArray[np.float64], siting: float, *, exact: bool = False
) -> InputCodes:
    """Return a model's input from a 4:2:0 video: U and V halved, rounded and upsampled."""
    codes: Callable[[NDArray[Any]], InputCodes] = fine_codes if exact else round_to_codes
    halved = [codes(halve(plane, siting)) for plane in yuv_3HW[1:]]
    return on_luma_grid([codes(yuv_3HW[0]), *halved], siting)


def as_yuv420(rgb_HW3: Picture) -> Yuv:
    """Convert to left-sited limited-range 4:2:0, like most video; odd sides lose a sample."""
    height, width = (side // 2 * 2 for side in rgb_HW3.shape[:2])
    yuv = yuv444(rgb_HW3[:height, :width])
    u, v = (round_to_codes(halve(plane, LEFT_SITED)) for plane in yuv[1:])
    return round_to_codes(yuv[0]), u, v


def decoded_input(planes: Sequence[Codes], color: ColorFormName) -> Codes:
    """Return (C, H, W), a model's input from a decoded, left-sited 4:2:0 frame."""
    if color == "luma":
        return planes[0][None]
    yuv = on_luma_grid(planes, LEFT_SITED)
    return yuv if color == "yuv420" else rgb_of(yuv.astype(np.float64))


PlaneCodes = TypeVar("PlaneCodes", bound=InputCodes)


def on_luma_grid(planes: Sequence[PlaneCodes], siting: float) -> PlaneCodes:
    """Return (3, H, W) from a 4:2:0 frame's planes, (H, W) and twice (H / 2, W / 2)."""
    y_HW, *chroma = planes
    height, width = y_HW.shape
    peak = int(np.iinfo(y_HW.dtype).max)
    rows = Sampling.between(height, height, stride_in=2, shift_in=CENTRE_SITED)
    columns = Sampling.between(width, width, stride_in=2, shift_in=siting)
    brought = [resample_plane(c, (height, width), rows, columns, peak) for c in chroma]
    return cast(PlaneCodes, np.stack([y_HW, *brought]))
