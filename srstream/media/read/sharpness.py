"""Measures how much detail is left in the luma plane of a decoded frame.

Shape legend: H, W are rows and columns of a plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from srstream.frame import Plane
from srstream.models.restore_auto import Detail

WINDOW = (720, 1280)
"""The largest size, in rows and columns, of the central area that is measured."""


def detail_of(luma_HW: Plane, bits: int, *, is_interlaced: bool = False) -> Detail:
    """Return the detail of a luma plane; of its top field alone if the frame is interlaced."""
    rows_HW = luma_HW[::2] if is_interlaced else luma_HW
    values_HW = _middle(rows_HW).astype(np.float32) / np.float32(1 << (bits - 8))
    slopes, curvatures = [], []
    for along in (values_HW, values_HW.T):
        before, here, after = along[:-2], along[1:-1], along[2:]
        slopes.append(_mean_square(after - before))
        curvatures.append(_mean_square(after + before - 2 * here))
    return Detail(_root_of_mean(slopes), _root_of_mean(curvatures))


def mean_detail(details: Sequence[Detail]) -> Detail:
    """Return the mean detail of several frames; zero detail if there are none."""
    return Detail(
        _root_of_mean([detail.slope**2 for detail in details]),
        _root_of_mean([detail.curvature**2 for detail in details]),
    )


def _middle(plane_HW: Plane) -> Plane:
    rows, columns = (min(side, most) for side, most in zip(plane_HW.shape, WINDOW, strict=True))
    top, left = (plane_HW.shape[0] - rows) // 2, (plane_HW.shape[1] - columns) // 2
    middle: Plane = plane_HW[top : top + rows, left : left + columns]
    return middle


def _mean_square(values: npt.NDArray[np.float32]) -> float:
    flat = np.ascontiguousarray(values).ravel()
    return float(np.dot(flat, flat)) / max(flat.size, 1)


def _root_of_mean(squares: Sequence[float]) -> float:
    return math.sqrt(sum(squares) / max(len(squares), 1))
