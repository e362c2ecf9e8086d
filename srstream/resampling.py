"""Resampling of planes with exact phase, and the correction of an enlarged plane's local mean.

Interpolation is bicubic, on any grid. The cases that videos need (enlarging by a whole factor,
shifting, reducing by a whole factor) are convolutions of each phase, and read integer codes without
a copy in floating point. Shapes: H and W are rows and columns of a plane.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from srstream.frame import Plane

Matrix = npt.NDArray[np.floating[Any]]
FloatPlane = npt.NDArray[np.float32]

LOCAL_MEAN_SIDE = 9
"""Side of the square over which `missing_mean` averages, in samples of the source."""

BLOCK_ROWS = 32
"""Rows that are resampled at a time, few enough to stay in the processor's cache."""

BLOCK_SIDE = 32
"""Side of the blocks in which a local mean is corrected, in samples of the source."""

MAX_PHASES = 128
"""Largest factor by which a plane is enlarged phase by phase: OpenCV merges no more channels."""

SMALLEST_MISSING = 1 / 64
"""A mean that is off by less, in codes, is left as it is where the plane is resampled."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Positions of new samples along an axis: sample j at `j * step + offset` of the old ones."""

    step: float
    offset: float

    @classmethod
    def between(
        cls,
        num_in: int,
        num_out: int,
        *,
        stride_in: int = 1,
        shift_in: float = 0.0,
        stride_out: int = 1,
        shift_out: float = 0.0,
    ) -> Sampling:
        """Return the sampling from `num_in` to `num_out` *luma* samples along this axis.

        Both pictures cover the same extent. `stride` is the distance between a plane's samples and
        `shift` the position of the first, in luma samples of its picture: 2 and 0 for left-sited
        4:2:0 chroma along x.
        """
        ratio = num_in / num_out
        first = (shift_out + 0.5) * ratio - 0.5
        return cls(step=stride_out * ratio / stride_in, offset=(first - shift_in) / stride_in)


STILL = Sampling(1.0, 0.0)
"""The sampling that keeps every sample where it is."""


def to_codes(values_HW: FloatPlane, peak: int) -> Plane:
    """Round floats in code units half to even and clamp them to [0, peak], without wrapping."""
    depth = cv2.CV_8U if peak <= 255 else cv2.CV_16U
    zero: Any = 0.0  # OpenCV's type stubs do not allow a scalar here
    codes: Any = cv2.add(values_HW, zero, dtype=depth)
    if peak not in (255, 65535):
        np.minimum(codes, peak, out=codes)
    plane: Plane = codes
    return plane


def resample_plane(
    plane_HW: Plane | FloatPlane,
    shape: tuple[int, int],
    rows: Sampling,
    columns: Sampling,
    peak: int,
    missing_hw: FloatPlane | None = None,
) -> Plane:
    """Resample a plane to a grid of `shape` (rows, columns) by bicubic interpolation.

    The kernel is Catmull-Rom (a = -0.5), which keeps straight ramps straight. Where `step` exceeds
    1 it is stretched by `step`, which antialiases as MATLAB's `imresize` does. Edge samples are
    repeated. The result is rounded half to even and clamped to [0, peak].

    Args:
        missing_hw: what is added before rounding, on a coarse grid of the same extent.
    """
    height, width = plane_HW.shape
    if (height, width) == shape and rows == columns == STILL:
        return _with_missing(plane_HW, missing_hw, peak)
    if shape[1] * height < shape[0] * width:
        values = _along_rows(_along_columns(plane_HW, shape[1], columns), shape[0], rows)
    else:
        values = _along_rows(plane_HW, shape[0], rows)
        factor = _whole_factor(width, shape[1], columns)
        if factor > 1 and missing_hw is None:  # interleaving codes moves a quarter of the bytes
            return _interleaved(
                [to_codes(each, peak) for each in _columns_of(values, factor, columns)], shape
            )
        values = _along_columns(values, shape[1], columns)
    if missing_hw is not None and _peak_of(missing_hw) >= SMALLEST_MISSING:
        values = np.asarray(cv2.add(values, cv2.resize(missing_hw, shape[::-1])), np.float32)
    return to_codes(values, peak)


def missing_mean(made_HW: Plane | FloatPlane, source_hw: Plane | FloatPlane) -> FloatPlane:
    """Return what an enlarged plane lacks of its source's local mean, (h, w) as the source.

    Each sample of the source covers a whole number of enlarged samples. The result is the
    difference between the two, averaged over `LOCAL_MEAN_SIDE` samples of the source each way.
    """
    sides = (LOCAL_MEAN_SIDE, LOCAL_MEAN_SIDE)
    height, width = source_hw.shape
    return np.asarray(cv2.blur(source_hw - _area_means(made_HW, height, width), sides), np.float32)


def with_local_mean(made_HW: Plane | Matrix, source_hw: Plane | Matrix) -> FloatPlane:
    """Give an enlarged plane the local mean of its source; the result is float and not clamped.

    So the detail is the network's and the color is the source's, even where a network has rarely
    seen that color.
    """
    made = made_HW.astype(np.float32)
    rows, columns = made.shape
    missing = missing_mean(made, source_hw.astype(np.float32))
    return np.asarray(made + cv2.resize(missing, (columns, rows)), np.float32)


def _area_means(made_HW: Any, height: int, width: int) -> FloatPlane:
    """Return the mean of the samples that each of (height, width) equal rectangles covers."""
    factor = made_HW.shape[0] // height
    if made_HW.dtype != np.uint8 or not 2 <= factor <= 256:
        means = cv2.resize(
            made_HW.astype(np.float32, copy=False), (width, height), interpolation=cv2.INTER_AREA
        )
        return np.asarray(means, np.float32)
    # Adding rows as integers first leaves only a part of them to be converted.
    sums: Any = cv2.add(made_HW[0::factor], made_HW[1::factor], dtype=cv2.CV_16U)
    for row in range(2, factor):
        cv2.add(sums, made_HW[row::factor], dst=sums, dtype=cv2.CV_16U)
    sums = cv2.resize(sums.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    sums *= np.float32(1 / factor)
    return np.asarray(sums, np.float32)


def _with_missing(plane_HW: Any, missing_hw: FloatPlane | None, peak: int) -> Plane:
    """Add what is missing to a plane whose samples stay where they are.

    Whole codes to which less than half a code is added round to themselves, so only blocks where
    more is missing are computed. The plane itself is returned if there are none.
    """
    if plane_HW.dtype == np.float32:
        if missing_hw is not None:
            plane_HW = plane_HW + cv2.resize(missing_hw, plane_HW.shape[::-1])
        return to_codes(plane_HW, peak)
    if missing_hw is None:
        codes: Plane = plane_HW
        return codes
    made = plane_HW
    height, width = missing_hw.shape
    y_factor, x_factor = plane_HW.shape[0] // height, plane_HW.shape[1] // width
    for row, column in _blocks(np.abs(missing_hw) >= 0.5):
        # A sample more on each side, so that interpolation sees what it would in the whole plane.
        top, left = max(row - 1, 0), max(column - 1, 0)
        part = missing_hw[top : row + BLOCK_SIDE + 1, left : column + BLOCK_SIDE + 1]
        added = cv2.resize(part, (part.shape[1] * x_factor, part.shape[0] * y_factor))
        added = added[(row - top) * y_factor :, (column - left) * x_factor :]
        seen = plane_HW[
            row * y_factor : (row + BLOCK_SIDE) * y_factor,
            column * x_factor : (column + BLOCK_SIDE) * x_factor,
        ]
        codes = to_codes(added[: seen.shape[0], : seen.shape[1]] + seen, peak)
        made = plane_HW.copy() if made is plane_HW else made
        made[row * y_factor :, column * x_factor :][: seen.shape[0], : seen.shape[1]] = codes
    result: Plane = made
    return result


def _blocks(places: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield (row, column) of each block of `BLOCK_SIDE` whose interpolated values see a place."""
    # A place is seen one sample further on each side.
    near = cv2.dilate(places.astype(np.uint8), np.ones((3, 3), np.uint8))
    for row in range(0, near.shape[0], BLOCK_SIDE):
        band = near[row : row + BLOCK_SIDE]
        hits = np.add.reduceat(band.any(axis=0), np.arange(0, near.shape[1], BLOCK_SIDE))
        yield from ((row, int(hit) * BLOCK_SIDE) for hit in np.flatnonzero(hits))


def _peak_of(missing_hw: FloatPlane) -> float:
    return float(np.abs(missing_hw).max())


# --- matrices -------------------------------------------------------------------------------------


def sampling_matrix(num_in: int, num_out: int, sampling: Sampling) -> FloatPlane:
    """Return the matrix (num_out, num_in) that resamples an axis as `resample_plane` does."""
    index, weights = _row_weights(num_in, num_out, sampling)
    matrix = np.zeros((num_out, num_in), np.float32)
    for taps, shares in zip(index, weights, strict=True):
        np.add.at(matrix, (np.arange(num_out), taps), shares)
    return matrix


def mean_matrix(num: int) -> FloatPlane:
    """Return the matrix (num, num) of the means along an axis that `missing_mean` takes."""
    matrix, reach = np.zeros((num, num), np.float32), LOCAL_MEAN_SIDE // 2
    for place in range(num):
        for at in range(place - reach, place + reach + 1):
            source = cv2.borderInterpolate(at, num, cv2.BORDER_REFLECT_101)
            matrix[place, source] += np.float32(1 / LOCAL_MEAN_SIDE)
    return matrix


# --- one axis -------------------------------------------------------------------------------------


def _along_rows(plane_HW: Any, num_out: int, sampling: Sampling) -> Any:
    """Resample every column; the result is float and not clamped, or the plane itself."""
    num_in, width = plane_HW.shape
    if num_in == num_out and sampling == STILL:
        return plane_HW
    factor = _whole_factor(num_in, num_out, sampling)
    if factor:
        result = np.empty((num_in, factor, width), np.float32)
        for phase, taps in enumerate(_enlarging_taps(factor, sampling.offset)):
            result[:, phase] = _filtered(plane_HW, taps, across=False)
        return result.reshape(num_in * factor, width)[:num_out]
    step = _whole_step(num_in, num_out, sampling)
    if step:
        phases = [plane_HW[phase::step] for phase in range(step)]
        made = _summed(phases, _reducing_taps(step, sampling.offset), across=False)
        for rows in (slice(0, _EDGE), slice(num_out - _EDGE, num_out)):
            made[rows] = _gathered(plane_HW, num_out, sampling, rows)
        return made
    result = np.empty((num_out, width), np.float32)
    for start in range(0, num_out, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, num_out))
        result[rows] = _gathered(plane_HW, num_out, sampling, rows)
    return result


def _along_columns(plane_HW: Any, num_out: int, sampling: Sampling) -> Any:
    """Resample every row; the result is float and not clamped, or the plane itself."""
    height, num_in = plane_HW.shape
    if num_in == num_out and sampling == STILL:
        return plane_HW
    factor = _whole_factor(num_in, num_out, sampling)
    if factor:
        return _interleaved(_columns_of(plane_HW, factor, sampling), (height, num_out))
    step = _whole_step(num_in, num_out, sampling)
    if step:
        phases = cv2.split(np.ascontiguousarray(plane_HW).reshape(height, num_out, step))
        whole = _summed(phases, _reducing_taps(step, sampling.offset), across=True)
        for columns in (slice(0, _EDGE), slice(num_out - _EDGE, num_out)):
            whole[:, columns] = _gathered(plane_HW.T, num_out, sampling, columns).T
        return whole
    return _transposed(_along_rows(_transposed(plane_HW), num_out, sampling))


def _columns_of(plane_HW: Any, factor: int, sampling: Sampling) -> list[FloatPlane]:
    """Return every `factor`-th column of an enlarged plane, for each of their phases."""
    taps = _enlarging_taps(factor, sampling.offset)
    return [_filtered(plane_HW, each, across=True) for each in taps]


def _interleaved(phases: Sequence[Any], shape: tuple[int, int]) -> Any:
    """Return a plane of `shape` from every n-th of its columns."""
    merged: Any = cv2.merge(phases) if len(phases) > 1 else phases[0]
    return np.ascontiguousarray(merged.reshape(shape[0], -1)[:, : shape[1]])


def _transposed(plane: Any) -> Any:
    """Return the transposed plane, contiguous; this is several times as fast as a numpy copy."""
    return cv2.transpose(plane)


def _filtered(plane_HW: Any, taps: Taps, *, across: bool) -> FloatPlane:
    """Convolve each row (`across`) or each column; edge samples are repeated."""
    weights, anchor = taps
    place = (anchor, 0) if across else (0, anchor)
    border = cv2.BORDER_REPLICATE
    made: Any
    if plane_HW.dtype == np.float32:
        kernel = weights[None] if across else weights[:, None]
        made = cv2.filter2D(plane_HW, cv2.CV_32F, kernel, anchor=place, borderType=border)
    else:  # the faster one for integers
        x, y = (weights, _ONE) if across else (_ONE, weights)
        made = cv2.sepFilter2D(plane_HW, cv2.CV_32F, x, y, anchor=place, borderType=border)
    return np.asarray(made, np.float32)


def _summed(phases: Sequence[Any], taps: Sequence[Taps], *, across: bool) -> FloatPlane:
    total = _filtered(phases[0], taps[0], across=across)
    for phase, its in zip(phases[1:], taps[1:], strict=True):
        total += _filtered(phase, its, across=across)
    return total


def _gathered(plane_HW: Any, num_out: int, sampling: Sampling, rows: slice) -> FloatPlane:
    """Return some rows of the result, for any sampling."""
    index, weights = _row_weights(plane_HW.shape[0], num_out, sampling)
    total = np.zeros((rows.stop - rows.start, plane_HW.shape[1]), np.float32)
    for tap in range(index.shape[0]):
        part = plane_HW[index[tap, rows]].astype(np.float32, copy=False)
        part *= weights[tap, rows, None]
        total += part
    return total


# --- weights --------------------------------------------------------------------------------------

Taps = tuple[FloatPlane, int]
"""Weights of neighboring samples, and which of them belongs to the sample of the same number."""

_ONE = np.ones(1, np.float32)


_EDGE = 3
"""Samples at each end of a plane reduced by a whole step that may depend on repeated ones."""


def _whole_factor(num_in: int, num_out: int, sampling: Sampling) -> int:
    """Return by which whole number a sampling enlarges a plane, 1 if it shifts it; 0 if by none."""
    factor = round(1 / sampling.step)
    is_whole = 1 <= factor <= MAX_PHASES and factor * sampling.step == 1
    return factor if is_whole and num_out <= factor * num_in else 0


def _whole_step(num_in: int, num_out: int, sampling: Sampling) -> int:
    """Return by which whole number a sampling reduces a plane; 0 if by none, or if it is small."""
    step = int(sampling.step)
    is_whole = step >= 2 and step == sampling.step and num_in == step * num_out
    return step if is_whole and num_out > 2 * _EDGE and abs(sampling.offset) <= step else 0


@lru_cache(maxsize=64)
def _enlarging_taps(factor: int, offset: float) -> list[Taps]:
    """Return the taps of each phase of a plane that is enlarged by a whole factor."""
    found = []
    for phase in range(factor):
        position = phase / factor + offset
        reach = int(np.ceil(abs(position))) + 2
        found.append(_trimmed(cubic_kernel(position - np.arange(-reach, reach + 1.0)), reach))
    return found


@lru_cache(maxsize=64)
def _reducing_taps(step: int, offset: float) -> list[Taps]:
    """Return the taps on every `step`-th sample, for each of their phases."""
    reach = int(np.ceil(abs(offset) / step)) + 3
    places = np.arange(-reach, reach + 1.0)
    weights = [cubic_kernel((offset - p - step * places) / step) for p in range(step)]
    total = sum(each.sum() for each in weights)
    return [_trimmed(each / total, reach) for each in weights]


def _trimmed(weights: npt.NDArray[np.float64], anchor: int) -> Taps:
    used = np.flatnonzero(weights)
    first, last = min(int(used[0]), anchor), max(int(used[-1]), anchor)
    return np.ascontiguousarray(weights[first : last + 1], np.float32), anchor - first


@lru_cache(maxsize=64)
def _row_weights(
    num_in: int, num_out: int, sampling: Sampling
) -> tuple[npt.NDArray[np.intp], FloatPlane]:
    """Return source rows and their weights, (taps, num_out) each."""
    stretch = max(1.0, sampling.step)
    center = np.arange(num_out) * sampling.step + sampling.offset
    num_taps = int(np.ceil(4 * stretch))
    first = np.floor(center - 2 * stretch).astype(np.intp) + 1
    index = first + np.arange(num_taps)[:, None]
    weights = cubic_kernel((center - index) / stretch)
    weights /= weights.sum(axis=0)
    return np.clip(index, 0, num_in - 1), weights.astype(np.float32)


def cubic_kernel(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the Catmull-Rom kernel (cubic convolution, a = -0.5) at a distance in samples.

    R. G. Keys, "Cubic Convolution Interpolation for Digital Image Processing", IEEE Transactions
    on Acoustics, Speech, and Signal Processing 29(6), 1981, equation 15.
    """
    x = np.abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
