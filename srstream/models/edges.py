"""Measures how far from a picture's edges the zero padding of a network's convolutions shows.

Near an edge a flat picture is not flat to a network: beyond the edge are zeros, a different color.
The effect fades long before the end of the halo. So pictures are extended by repeating as many of
their outermost samples as make the remaining effect invisible; these are cut off again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from srstream.models.checkpoint import Weights
from srstream.models.flat_correction import LEVEL, GraphTensors, graph_tensors
from srstream.models.table import ModelSpec, ResidualGenerator, Stack

UNSEEN = 0.15 * LEVEL
"""Largest effect on a gray that may remain at one edge. Where two edges meet it may be twice as
large, which is still less than rounding."""

Values = NDArray[np.float32]


def border_of(weights: Weights) -> int:
    """Return the number of samples by which pictures must be extended on each side."""
    return border_of_graph(weights.spec, graph_tensors(weights))


def border_of_graph(spec: ModelSpec, tensors: GraphTensors) -> int:
    """Do the same as `border_of` for tensors in a graph's form."""
    side = 2 * spec.halo + 1
    widest = 0
    for shape in ((side, 1), (1, side)):
        colors = _grays(spec)
        flat = np.broadcast_to(colors[:, :, None, None], (*colors.shape, *shape))
        made = _response(spec, tensors, flat)
        cells = made.reshape(len(colors), -1, side)  # one value for each phase of a sample
        apart = np.abs(cells - cells[..., spec.halo, None]).max(axis=(0, 1))
        seen = np.flatnonzero(np.maximum(apart, apart[::-1])[: spec.halo + 1] > UNSEEN)
        widest = max(widest, int(seen[-1]) + 1 if len(seen) else 0)
    return widest


def _grays(spec: ModelSpec) -> Values:
    """Return grays between black and white, (n, planes)."""
    if spec.color_form == "luma":
        return np.linspace(16 / 255, 235 / 255, 33, dtype=np.float32)[:, None]
    if spec.color_form == "rgb":
        return np.linspace(0.0, 1.0, 5, dtype=np.float32)[:, None].repeat(3, axis=1)
    luma = np.linspace(16 / 255, 235 / 255, 13, dtype=np.float32)
    neutral = np.full_like(luma, 128 / 255)
    return np.stack([luma, neutral, neutral], axis=1)


def _response(spec: ModelSpec, tensors: GraphTensors, x: Values) -> Values:
    """Return a network's response to pictures (n, planes, H, W) by phase, (n, channels, H, W).

    Along an axis of one sample the picture repeats endlessly; along the other it ends in zeros.
    """
    network = spec.network
    if isinstance(network, Stack):
        for layer in range(len(network.widths)):
            x = _convolved(tensors, f"convolutions.{layer}", x)
            x = _prelu(tensors, f"activations.{layer}", x)
        return _convolved(tensors, f"convolutions.{len(network.widths)}", x)
    return _generated(network, tensors, x)


def _generated(network: ResidualGenerator, tensors: GraphTensors, x: Values) -> Values:
    given = x.shape
    if network.signed_input:
        x = np.asarray(2 * x - 1, np.float32)
    x = start = _prelu(tensors, "head_activation", _convolved(tensors, "head", x))
    for block in range(network.num_blocks):
        inner = _convolved(tensors, f"blocks.{block}.first", x)
        inner = _prelu(tensors, f"blocks.{block}.activation", inner)
        x = x + _convolved(tensors, f"blocks.{block}.second", inner)
    x = start + _convolved(tensors, "body", x)
    x = _shuffled(_convolved(tensors, "upsampling.0", x))
    x = _prelu(tensors, "upsampling_activations.0", x)
    x = _prelu(tensors, "upsampling_activations.1", _convolved(tensors, "upsampling.1", x))
    x = np.tanh(_convolved(tensors, "tail", x)) * np.float32(0.5)
    num, channels, rows, columns = x.shape
    cells = x.reshape(num, channels, rows // 2, 2, columns // 2, 2).transpose(0, 1, 3, 5, 2, 4)
    return cells.reshape(num, -1, *given[2:])


def _shuffled(x: Values) -> Values:
    num, channels, rows, columns = x.shape
    cells = x.reshape(num, channels // 4, 2, 2, rows, columns).transpose(0, 1, 4, 2, 5, 3)
    return cells.reshape(num, channels // 4, 2 * rows, 2 * columns)


def _convolved(tensors: GraphTensors, name: str, x: Values) -> Values:
    kernel = tensors[f"{name}.weight"]
    side = kernel.shape[-1]
    for axis in (2, 3):
        pads = [(0, 0)] * 4
        pads[axis] = (side // 2, side // 2)
        x = np.pad(x, pads, mode="wrap" if x.shape[axis] <= 2 else "constant")
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(2, 3))
    made = np.tensordot(windows, kernel, axes=([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)
    return np.asarray(made + tensors[f"{name}.bias"].reshape(-1, 1, 1), np.float32)


def _prelu(tensors: GraphTensors, name: str, x: Values) -> Values:
    return np.where(x >= 0, x, x * tensors[f"{name}.weight"].reshape(-1, 1, 1))
