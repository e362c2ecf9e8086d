"""Matrices, ranges and the phase of resampling, on codes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srstream.color import (
    BOTTOM,
    CENTER,
    LEFT,
    LUMA_WEIGHTS,
    TOP_LEFT,
    YCGCO,
    black_levels,
    chroma_shift,
    code_range,
    convert_codes,
    rgb_to_yuv444,
    rgb_to_yuv_matrix,
    yuv444_to_rgb,
)
from srstream.errors import RefusedError
from srstream.frame import ColorSpec, PlaneLayout
from srstream.resampling import Sampling, resample_plane

YUV420 = PlaneLayout("yuv", 8, 1, 1)


def random_planes(bits, low=0, high=None):
    rng = np.random.default_rng(bits)
    dtype = np.uint8 if bits == 8 else np.uint16
    return tuple(rng.integers(low, high or 1 << bits, (64, 96), dtype=dtype) for _ in range(3))


@pytest.mark.parametrize("matrix", [*LUMA_WEIGHTS, YCGCO, 2])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_rgb_comes_back_exactly(matrix, bits):
    planes = random_planes(bits)
    back = yuv444_to_rgb(rgb_to_yuv444(planes, bits, matrix), bits, matrix)
    worst = max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(planes, back, strict=True))
    assert worst <= (2 if bits == 16 else 0)


@pytest.mark.parametrize("bits", [8, 10])
def test_limited_rgb_comes_back_exactly(bits):
    planes = random_planes(bits, 16 << (bits - 8), 236 << (bits - 8))
    yuv = rgb_to_yuv444(planes, bits, 1, full_range=False)
    back = yuv444_to_rgb(yuv, bits, 1, full_range=False)
    assert all(np.array_equal(a, b) for a, b in zip(planes, back, strict=True))


def test_primaries_have_the_standards_values():
    """Red in BT.709 and BT.601, 8 bits limited: the numbers of any textbook."""
    red = (np.uint8([[0]]), np.uint8([[0]]), np.uint8([[255]]))
    for matrix, expected in ((1, (63, 102, 240)), (6, (81, 90, 240))):
        y, u, v = rgb_to_yuv444(red, 8, matrix)
        limited = [convert_codes(y, code_range(16, True), code_range(8, False))]
        for plane in (u, v):
            limited.append(
                convert_codes(
                    plane,
                    code_range(16, True, is_chroma=True),
                    code_range(8, False, is_chroma=True),
                )
            )
        assert [int(plane[0, 0]) for plane in limited] == list(expected)


def test_grey_has_no_colour():
    for matrix in (*LUMA_WEIGHTS, YCGCO):
        mixed = rgb_to_yuv_matrix(matrix) @ np.ones(3)
        assert np.allclose(mixed, (1, 0, 0))


@pytest.mark.parametrize("matrix", [0, 3, 10, 14])
def test_what_is_no_matrix_is_refused(matrix):
    with pytest.raises(RefusedError, match=f"matrix coefficients {matrix} "):
        rgb_to_yuv444(random_planes(8), 8, matrix)


@given(st.booleans(), st.booleans(), st.integers(9, 16))
def test_codes_come_back_from_every_depth(full_range, is_chroma, bits):
    codes = np.arange(256, dtype=np.uint8)[None]
    small = code_range(8, full_range, is_chroma=is_chroma)
    large = code_range(bits, full_range, is_chroma=is_chroma)
    deep = convert_codes(codes, small, large)
    assert np.array_equal(convert_codes(deep, large, small), codes)
    if not full_range:
        assert np.array_equal(deep, codes.astype(np.uint16) << (bits - 8))


def test_ranges_are_converted_and_clamped():
    full, limited = code_range(8, True), code_range(8, False)
    codes = np.uint8([[0, 16, 128, 235, 255]])
    assert convert_codes(codes, limited, full).tolist() == [[0, 0, 130, 255, 255]]
    assert convert_codes(codes, full, limited).tolist() == [[16, 30, 126, 218, 235]]


def test_unspecified_siting_is_left_for_video_and_centre_for_pictures():
    assert chroma_shift(YUV420, ColorSpec()) == (0.0, 0.5)
    assert chroma_shift(YUV420, ColorSpec(full_range=True)) == (0.5, 0.5)
    assert chroma_shift(YUV420, ColorSpec(chroma_location=CENTER)) == (0.5, 0.5)
    assert chroma_shift(YUV420, ColorSpec(chroma_location=TOP_LEFT)) == (0.0, 0.0)
    assert chroma_shift(YUV420, ColorSpec(chroma_location=BOTTOM)) == (0.5, 1.0)
    assert chroma_shift(PlaneLayout("yuv", 8), ColorSpec(chroma_location=LEFT)) == (0.0, 0.0)
    assert chroma_shift(PlaneLayout("yuv", 8, 2, 0), ColorSpec(full_range=True)) == (1.5, 0.0)


@pytest.mark.parametrize("peak", [255, 1023, 65535])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling.between(320, 1280, stride_in=2, stride_out=2),
        Sampling.between(320, 1280, stride_in=2, shift_in=0.5, stride_out=2, shift_out=0.5),
        Sampling.between(320, 1280, stride_in=4, stride_out=2),
        Sampling.between(320, 900, stride_in=2, stride_out=2),
        Sampling.between(320, 200, stride_in=2, stride_out=1),
        Sampling.between(160, 70),
    ],
)
def test_a_ramp_stays_at_its_place(peak, sampling):
    """Value = a * x at every sample of the source; so it must be at every sample of the result."""
    dtype = np.uint8 if peak == 255 else np.uint16
    slope = peak // 200
    ramp = np.tile((np.arange(160) * slope).astype(dtype), (40, 1))
    num_out = int(150 / sampling.step)
    still = Sampling(1.0, 0.0)
    expected = (np.arange(num_out) * sampling.step + sampling.offset) * slope
    inside = (expected > 6 * slope) & (expected < 150 * slope)
    across = resample_plane(ramp, (40, num_out), still, sampling, peak)
    down = resample_plane(np.ascontiguousarray(ramp.T), (num_out, 40), sampling, still, peak)
    assert np.abs(across[7] - expected)[inside].max() <= 0.5 + 1e-3 * slope
    assert np.array_equal(across.T, down)


def test_left_sited_chroma_stays_left_sited():
    """Chroma sample k at luma 2k, enlarged 4x: sample j at luma 2j of the enlarged picture."""
    sampling = Sampling.between(320, 1280, stride_in=2, stride_out=2)
    luma_of_output_0 = (0 + 0.5) / 4 - 0.5
    assert sampling.offset == luma_of_output_0 / 2
    assert sampling.step == 0.25


def enlarged(plane, shape, peak):
    rows, columns = (Sampling.between(*sides) for sides in zip(plane.shape, shape, strict=True))
    return resample_plane(plane, shape, rows, columns, peak)


def test_enlarging_agrees_with_opencv_where_the_kernel_is_the_same():
    """A linear ramp inside, and constants, are all that two cubic kernels agree on exactly."""
    flat = np.full((30, 40), 77, np.uint8)
    assert np.array_equal(enlarged(flat, (120, 160), 255), np.full((120, 160), 77))
    smooth = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (90, 160), "u1"), (0, 0), 4)
    ours = enlarged(smooth, (360, 640), 255)
    theirs = cv2.resize(smooth, (640, 360), interpolation=cv2.INTER_CUBIC)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_edges_overshoot_without_wrapping():
    edge = np.zeros((16, 16), np.uint8)
    edge[:, 8:] = 255
    large = enlarged(edge, (64, 64), 255)
    assert set(np.unique(large[:, :20])) == {0}
    assert set(np.unique(large[:, -20:])) == {255}
    deep = enlarged(edge.astype(np.uint16) * 4 + (edge > 0) * np.uint16(3), (64, 64), 1023)
    assert deep.max() == 1023


def test_down_is_antialiased():
    """Stripes finer than the result can show turn gray, instead of to other stripes."""
    stripes = np.tile(np.uint8([0, 255]), (64, 60))
    smaller = resample_plane(stripes, (64, 50), Sampling(1.0, 0.0), Sampling.between(120, 50), 255)
    assert np.abs(smaller[:, 4:-4].astype(int) - 128).max() <= 16


def test_black_is_black_in_its_range():
    assert black_levels(YUV420, ColorSpec(full_range=False)) == [16, 128, 128]
    deep = PlaneLayout("yuv", 10, 1, 1, has_alpha=True)
    assert black_levels(deep, ColorSpec(full_range=True)) == [0, 512, 512, 1023]
    assert black_levels(PlaneLayout("rgb", 8), ColorSpec()) == [0, 0, 0]
    assert black_levels(PlaneLayout("gray", 8), ColorSpec(full_range=False)) == [16]
