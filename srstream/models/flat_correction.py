"""A correction that makes a network's output flat wherever its input is flat.

A convolution of a constant is the constant times the sum of the kernel's taps. So away from the
edges, a network's response to a flat picture of color v is that of its *twin* to v: the same
network with one number in place of each kernel, which is a function of a single sample. The
twin has one value for each phase, that is, for each of the samples into which a sample is enlarged.
These values need not be v: mixtures of two sets of weights that are each flat draw lines of up to
two levels.

If v - twin(v) is added to a network, where v is each sample's own input, the network is flat
wherever its input is, whatever its weights are. The correction depends on no other sample, so
halos, tiles and reuse stay unchanged.

The twin of a network on one plane is a function of one number. It is approximated by straight lines
between knots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from srstream.models.checkpoint import Weights, expected_shapes
from srstream.models.subpixel_tail import tail_before_shuffle
from srstream.models.table import ModelSpec, ResidualGenerator, Stack

Array = NDArray[np.float32]
GraphTensors = Mapping[str, Array]
"""A network's tensors in the form that engines' graphs use; see `graph_tensors`."""

LEVEL = 1 / 255
NEGLIGIBLE = 0.1 * LEVEL
"""Largest error of a network that counts as flat by itself. Such values round to the right code in
8 and 10 bits."""

KNOT_ERROR = 0.04 * LEVEL
"""Largest error of the straight lines between knots."""

LARGEST = 65535 / 65280
"""Value of the largest code of 16 bits in limited range; the smallest code has the value 0."""

X = TypeVar("X")


class Ops(Protocol[X]):
    """The operations that make up functions of one sample, for one engine."""

    def dense(self, x: X, kernel: Array, bias: Array) -> X:
        """Apply a 1x1 convolution: `kernel` (out, in) times the channels, plus `bias` (out,)."""
        ...

    def prelu(self, x: X, slopes: Array) -> X: ...

    def tanh(self, x: X) -> X: ...

    def add(self, x: X, y: X) -> X: ...

    def twice(self, x: X) -> tuple[X, X]:
        """Return the value twice, for graphs in which each value has one reader."""
        ...


@dataclass(frozen=True)
class Correction:
    """A function of each sample alone that is added to a network's output."""

    apply: Callable[[Ops[Any], Any], Any]
    """The function from the network's input planes to each group's channels before PixelShuffle."""

    def values(self, colors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the correction of colors (n, planes) as (n, channels)."""
        made: NDArray[np.float64] = self.apply(_NumpyOps(), colors.astype(np.float64))
        return made


def correction_of(weights: Weights, *, lines_multiple: int = 1) -> Correction | None:
    """Return the correction of a network; None if the network is flat by itself.

    Args:
        lines_multiple: the number of straight lines of a network on one plane is a multiple of
            this. Lines that are not needed add nothing.
    """
    return correction_of_graph(weights.spec, graph_tensors(weights), lines_multiple=lines_multiple)


def correction_of_graph(
    spec: ModelSpec, tensors: GraphTensors, *, lines_multiple: int = 1
) -> Correction | None:
    """Do the same as `correction_of` for tensors in a graph's form."""
    twin = (
        _stack_twin(spec, spec.network, tensors)
        if isinstance(spec.network, Stack)
        else _generator_twin(spec, spec.network, tensors)
    )
    if np.abs(twin.values(_colors(spec))).max() <= NEGLIGIBLE:
        return None
    return _straight_lines(twin, lines_multiple) if spec.form.num_input_planes == 1 else twin


def graph_tensors(weights: Weights) -> GraphTensors:
    """Return tensors in a graph's form: a generator's tail comes before the last PixelShuffle.

    The activation before it has a slope for each channel.
    """
    tensors = dict(weights.tensors)
    if isinstance(weights.spec.network, ResidualGenerator):
        tensors["tail.weight"], tensors["tail.bias"] = tail_before_shuffle(weights.tensors)
        last = "upsampling_activations.1.weight"
        tensors[last] = np.repeat(tensors[last], 4)
    return tensors


def graph_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shapes of `graph_tensors` by name."""
    shapes = expected_shapes(spec)
    if isinstance(spec.network, ResidualGenerator):
        planes, wide = spec.form.num_input_planes, spec.network.channels
        shapes["tail.weight"] = (4 * planes, 4 * wide, 5, 5)
        shapes["tail.bias"] = (4 * planes,)
        shapes["upsampling_activations.1.weight"] = (4 * wide,)
    return shapes


def _stack_twin(spec: ModelSpec, network: Stack, tensors: GraphTensors) -> Correction:
    """Return the negated response of a stack. The anchor is v itself, so it cancels out."""
    last = len(network.widths)

    def apply(ops: Ops[X], x: X) -> X:
        for layer in range(last):
            x = ops.dense(x, *_summed(tensors, f"convolutions.{layer}"))
            x = ops.prelu(x, tensors[f"activations.{layer}.weight"])
        kernel, bias = _summed(tensors, f"convolutions.{last}")
        return ops.dense(x, -kernel, -bias)

    return Correction(apply)


def _generator_twin(
    spec: ModelSpec, network: ResidualGenerator, tensors: GraphTensors
) -> Correction:
    """Return the input minus the response of a generator.

    After the first PixelShuffle a flat picture repeats every two samples each way, so a convolution
    is a matrix from the four samples of a cell to four.
    """
    kernel, bias = _summed(tensors, "head")
    if network.signed_input:
        kernel, bias = 2 * kernel, bias - kernel.sum(axis=1)
    upsampling, upsampling_bias = _over_cells(tensors, "upsampling.1")
    tail, tail_bias = _over_cells(tensors, "tail")
    planes = spec.form.num_input_planes
    # From (plane, position in the half cell, the half cell) to rows and columns of the whole cell.
    order = np.arange(16 * planes).reshape(planes, 2, 2, 2, 2).transpose(0, 3, 1, 4, 2).ravel()
    tail, tail_bias = tail[order], tail_bias[order]
    repeated = np.repeat(np.eye(planes, dtype=np.float32), 16, axis=0)
    halved = -0.5 * np.eye(16 * planes, dtype=np.float32)
    offset = np.full(16 * planes, -0.5, np.float32)

    def apply(ops: Ops[X], x: X) -> X:
        x, given = ops.twice(x)
        x = ops.prelu(ops.dense(x, kernel, bias), tensors["head_activation.weight"])
        x, start = ops.twice(x)
        for block in range(network.num_blocks):
            inner, x = ops.twice(x)
            inner = ops.dense(inner, *_summed(tensors, f"blocks.{block}.first"))
            inner = ops.prelu(inner, tensors[f"blocks.{block}.activation.weight"])
            x = ops.add(x, ops.dense(inner, *_summed(tensors, f"blocks.{block}.second")))
        x = ops.add(start, ops.dense(x, *_summed(tensors, "body")))
        x = ops.dense(x, *_summed(tensors, "upsampling.0"))
        x = ops.prelu(x, np.repeat(tensors["upsampling_activations.0.weight"].ravel(), 4))
        x = ops.dense(x, upsampling, upsampling_bias)
        x = ops.prelu(x, np.repeat(tensors["upsampling_activations.1.weight"].ravel(), 4))
        x = ops.tanh(ops.dense(x, tail, tail_bias))
        given = ops.dense(given, repeated, np.zeros_like(offset))
        return ops.add(given, ops.dense(x, halved, offset))

    return Correction(apply)


def _summed(tensors: GraphTensors, name: str) -> tuple[Array, Array]:
    """Return a convolution's matrix (out, in) for constant channels, and its bias."""
    kernel = tensors[f"{name}.weight"].astype(np.float64).sum(axis=(2, 3))
    return kernel.astype(np.float32), tensors[f"{name}.bias"]


def _over_cells(tensors: GraphTensors, name: str) -> tuple[Array, Array]:
    """Return a convolution's matrix and bias for pictures that repeat every two samples each way.

    They are (4 out, 4 in) and (4 out,); each channel has its cell's four samples in succession.
    """
    kernel = tensors[f"{name}.weight"].astype(np.float64)
    num_out, num_in, side, _ = kernel.shape
    cells = np.zeros((num_out, 2, 2, num_in, 2, 2))
    for row, column, down, right in np.ndindex(2, 2, side, side):
        to = (row + down - side // 2) % 2, (column + right - side // 2) % 2
        cells[:, row, column, :, to[0], to[1]] += kernel[:, :, down, right]
    matrix = cells.reshape(4 * num_out, 4 * num_in).astype(np.float32)
    return matrix, np.repeat(tensors[f"{name}.bias"], 4)


def _colors(spec: ModelSpec) -> NDArray[np.float64]:
    """Return the colors to test a network on, (n, planes): grays and a coarse grid of the rest."""
    if spec.color_form == "luma":
        return np.linspace(0.0, LARGEST, 1025)[:, None]
    grays = np.linspace(0.0, LARGEST, 33)
    grid = np.stack(np.meshgrid(*[np.linspace(0.0, 1.0, 3)] * 3), axis=-1).reshape(-1, 3)
    neutral = grays if spec.color_form == "rgb" else np.full_like(grays, 128 / 255)
    return np.concatenate([np.stack([grays, neutral, neutral], axis=1), grid])


def _straight_lines(twin: Correction, multiple: int) -> Correction:
    """Replace a twin of one plane by lines between few knots, found greedily.

    Their number is a multiple of `multiple`; the last ones may be lines of slope 0.
    """
    values = np.linspace(0.0, LARGEST, 4097)
    wanted = twin.values(values[:, None])
    chosen = [0, len(values) - 1]
    while True:
        made = np.stack(
            [np.interp(values, values[chosen], wanted[chosen, n]) for n in range(wanted.shape[1])],
            axis=1,
        )
        errors = np.abs(made - wanted).max(axis=1)
        if errors.max() <= KNOT_ERROR:
            break
        chosen = sorted([*chosen, int(errors.argmax())])
    slopes = np.diff(wanted[chosen], axis=0) / np.diff(values[chosen])[:, None]
    kernel = np.diff(slopes, axis=0, prepend=0.0).T.astype(np.float32)
    starts = -values[chosen[:-1]].astype(np.float32)
    unused = -len(starts) % multiple
    kernel, starts = np.pad(kernel, ((0, 0), (0, unused))), np.pad(starts, (0, unused))
    ones, zeros = np.ones((len(starts), 1), np.float32), np.zeros(len(starts), np.float32)
    offset = wanted[0].astype(np.float32)

    def apply(ops: Ops[X], x: X) -> X:
        ramps = ops.prelu(ops.dense(x, ones, starts), zeros)
        return ops.dense(ramps, kernel, offset)

    return Correction(apply)


class _NumpyOps:
    """The operations in numpy, on (n, channels) in double precision."""

    def dense(self, x: Any, kernel: Array, bias: Array) -> Any:
        return x @ kernel.T.astype(np.float64) + bias

    def prelu(self, x: Any, slopes: Array) -> Any:
        return np.where(x >= 0, x, x * slopes.ravel())

    def tanh(self, x: Any) -> Any:
        return np.tanh(x)

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def twice(self, x: Any) -> tuple[Any, Any]:
        return x, x
