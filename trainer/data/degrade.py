"""Reduces resolution as the literature does, by MATLAB's antialiased bicubic."""

import numpy as np
from numpy.typing import NDArray

from srstream.resampling import cubic_kernel

SCALE = 4
"""The scale of all current networks and baselines."""


def resize_matrix(num_in: int, num_out: int) -> NDArray[np.float64]:
    """Return the (num_out, num_in) matrix that resizes one axis like MATLAB's bicubic `imresize`.

    Pixel centers lie at half integers; when shrinking, the kernel is stretched by the factor
    (antialiasing); positions outside are mirrored at the edge; each row sums to one. The MATLAB
    documentation of `imresize` describes all four.
    """
    scale = num_out / num_in
    stretch = max(1.0, 1.0 / scale)
    centres = (np.arange(num_out) + 0.5) / scale - 0.5
    num_taps = int(np.ceil(4.0 * stretch)) + 2
    first = np.floor(centres - 2.0 * stretch).astype(np.int64)
    positions = first[:, None] + np.arange(num_taps)
    weights = cubic_kernel((positions - centres[:, None]) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    period = positions % (2 * num_in)
    mirrored = np.minimum(period, 2 * num_in - 1 - period)
    matrix = np.zeros((num_out, num_in))
    np.add.at(matrix, (np.arange(num_out)[:, None], mirrored), weights)
    return matrix


def bicubic_resize(
    picture: NDArray[np.uint8] | NDArray[np.float64], height: int, width: int
) -> NDArray[np.float64]:
    """Resize a (H, W) or (H, W, C) picture; the result is float, neither rounded nor clipped."""
    rows = resize_matrix(picture.shape[0], height)
    columns = resize_matrix(picture.shape[1], width)
    by_rows = np.tensordot(rows, picture.astype(np.float64), axes=(1, 0))
    by_both = np.tensordot(columns, by_rows, axes=(1, 1))
    return np.ascontiguousarray(np.swapaxes(by_both, 0, 1))


def to_uint8(picture: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Round half up and clip, as MATLAB converts."""
    return np.clip(np.floor(picture + 0.5), 0, 255).astype(np.uint8)


def downscale(rgb_HW3: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Return the low-resolution RGB picture, uint8. Both sides must be multiples of `scale`."""
    return to_uint8(downscale_exactly(rgb_HW3, scale))


def downscale_exactly(rgb_HW3: NDArray[np.uint8], scale: int) -> NDArray[np.float64]:
    """Return the same as `downscale`, neither rounded nor clipped."""
    height, width = rgb_HW3.shape[:2]
    if height % scale or width % scale:
        raise ValueError(f"{width}x{height} is not a multiple of {scale}")
    return bicubic_resize(rgb_HW3, height // scale, width // scale)
