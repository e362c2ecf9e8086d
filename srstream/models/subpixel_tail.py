"""Moves a generator's last convolution before its last PixelShuffle, for engines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from srstream.models.checkpoint import Tensors

Array = NDArray[np.float32]


def tail_before_shuffle(tensors: Tensors) -> tuple[Array, Array]:
    """Rewrite the tail (out, in, 9, 9) as (4 out, 4 in, 5, 5) with a bias (4 out,).

    It is the same as `networks.tail_before_shuffle`, but in numpy, since engines need no PyTorch.
    """
    kernel, bias = tensors["tail.weight"], tensors["tail.bias"]
    num_out, num_in = kernel.shape[:2]
    padded = np.pad(kernel, ((0, 0), (0, 0), (1, 1), (1, 1)))
    phases = [
        padded[:, :, 1 - row : 11 - row, 1 - column : 11 - column]
        .reshape(num_out, num_in, 5, 2, 5, 2)
        .transpose(0, 1, 3, 5, 2, 4)
        .reshape(num_out, 4 * num_in, 5, 5)
        for row in (0, 1)
        for column in (0, 1)
    ]
    return np.stack(phases, axis=1).reshape(4 * num_out, 4 * num_in, 5, 5), np.repeat(bias, 4)
