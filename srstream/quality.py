"""Quality measures: PSNR and SSIM of pictures, and the temporal stability of a video.

PSNR and SSIM follow the super-resolution literature. Pictures are (H, W) or (H, W, 3) arrays on a
scale of 0 to 255, uint8 or float; videos are sequences of luma planes.
"""

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.float64]
Plane = NDArray[np.float64]

PEAK = 255.0


def luma_bt601(rgb_HW3: Picture) -> Plane:
    """Convert RGB (H, W, 3) to luma (H, W) from 16 to 235, float and not rounded.

    The formula is that of MATLAB's `rgb2ycbcr`, ITU-R BT.601 in limited range:
    Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255.
    """
    weights = np.array([65.481, 128.553, 24.966]) / 255.0
    luma: Plane = rgb_HW3.astype(np.float64) @ weights + 16.0
    return luma


def shave(picture: Picture, border: int) -> Picture:
    """Cut `border` pixels off every side of a picture."""
    if border == 0:
        return picture
    return picture[border:-border, border:-border]


def psnr(a: Picture, b: Picture, border: int = 0) -> float:
    """Return the PSNR in dB, 10 log10(255^2 / mean squared error); inf for equal pictures."""
    _require_same_shape(a, b)
    difference = shave(a, border).astype(np.float64) - shave(b, border).astype(np.float64)
    mean_squared_error = float(np.mean(difference**2))
    if mean_squared_error == 0.0:
        return float("inf")
    return float(10.0 * np.log10(PEAK**2 / mean_squared_error))


def ssim(a: Picture, b: Picture, border: int = 0) -> float:
    """Return the structural similarity of two planes, in [-1, 1].

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE
    TIP 2004, as the authors' MATLAB code computes it: with an 11x11 Gaussian window of sigma 1.5,
    only where the window lies wholly inside, with K1 = 0.01 and K2 = 0.03, without downsampling.
    """
    _require_same_shape(a, b)
    x = np.ascontiguousarray(shave(a, border), dtype=np.float64)
    y = np.ascontiguousarray(shave(b, border), dtype=np.float64)
    if x.ndim != 2 or min(x.shape) < 11:
        raise ValueError(f"SSIM needs two planes of at least 11x11, not {x.shape}")
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x**2
    variance_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return float(np.mean(numerator / denominator))


STILL = 1.5
"""Largest change between two frames, in levels after a blur, for a place to count as still."""


def static_flicker(made: Sequence[Plane], true: Sequence[Plane]) -> float:
    """Return how much more a video changes than its original where that is still, in levels.

    It is the mean absolute difference between consecutive frames there, minus that of the original;
    NaN if nothing is still.
    """
    excess, weight = 0.0, 0
    for (made_a, made_b), (true_a, true_b) in zip(pairwise(made), pairwise(true), strict=True):
        change = np.abs(np.asarray(true_b, np.float64) - true_a)
        still = cv2.blur(change, (9, 9)) < STILL
        difference = np.abs(np.asarray(made_b, np.float64) - made_a) - change
        excess += float(difference[still].sum())
        weight += int(still.sum())
    return excess / weight if weight else float("nan")


def warping_error(made: Sequence[Plane], true: Sequence[Plane]) -> float:
    """Return how much consecutive frames differ after motion compensation, in levels.

    It is the root of the mean squared difference between a frame and the next one, warped back by
    the optical flow of the *original* (OpenCV's DIS). Only pixels count where that flow predicts
    the original within 10 levels, so occlusions and cuts do not. After Lai et al., "Learning Blind
    Video Temporal Consistency", ECCV 2018, equation 7. NaN if no pixel counts.
    """
    follow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    total, weight = 0.0, 0
    for (made_a, made_b), (true_a, true_b) in zip(pairwise(made), pairwise(true), strict=True):
        a, b = (np.clip(np.round(plane), 0, 255).astype(np.uint8) for plane in (true_a, true_b))
        flow = follow.calc(a, b, np.zeros((*a.shape, 2), np.float32))
        rows, columns = np.mgrid[: a.shape[0], : a.shape[1]].astype(np.float32)
        x, y = columns + flow[..., 0], rows + flow[..., 1]
        inside = (x >= 0) & (y >= 0) & (x <= a.shape[1] - 1) & (y <= a.shape[0] - 1)
        true_back = cv2.remap(np.asarray(true_b, np.float32), x, y, cv2.INTER_LINEAR)
        holds = inside & (np.abs(true_back - true_a) < 10.0)
        made_back = cv2.remap(np.asarray(made_b, np.float32), x, y, cv2.INTER_LINEAR)
        total += float(np.square(made_back - made_a, dtype=np.float64)[holds].sum())
        weight += int(holds.sum())
    return float(np.sqrt(total / weight)) if weight else float("nan")


def _window_mean(plane: Plane) -> Plane:
    window = cv2.getGaussianKernel(11, 1.5)
    filtered = cv2.sepFilter2D(plane, cv2.CV_64F, window, window)
    return np.asarray(filtered[5:-5, 5:-5], dtype=np.float64)


def _require_same_shape(a: Picture, b: Picture) -> None:
    if a.shape != b.shape:
        raise ValueError(f"pictures of different shape: {a.shape} and {b.shape}")
