"""A folded network in ncnn's format: a text that lists the layers, and a file of their weights.

The input `in` is float32 (planes, H, W). The output is `sr`, and also `chroma_sr` if U and V come
out at half of Y's size. Values are those of `models/networks.py`. The numbered settings of layers
are documented in ncnn's `docs/developer-guide/operators.md`; 31 turns off ways to compute a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from srstream.models.checkpoint import Tensors, Weights
from srstream.models.flat_correction import correction_of
from srstream.models.subpixel_tail import tail_before_shuffle
from srstream.models.table import ModelSpec, PlaneGroup, ResidualGenerator, Stack

INPUT_NAME = "in"
OUTPUT_NAMES = ("sr", "chroma_sr")

MAGIC = 7767517
ADD, SUBTRACT, MULTIPLY = 0, 1, 2
NO_MATRIX_PRODUCT = 32

Array = NDArray[np.float32]


class _Graph:
    """The layers in the order in which they are added, and their weights."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.layers: list[str] = []
        self.num_blobs = 0
        self.weights = bytearray()

    @property
    def text(self) -> str:
        return "\n".join([str(MAGIC), f"{len(self.layers)} {self.num_blobs}", *self.layers, ""])

    def layer(
        self,
        kind: str,
        inputs: list[str],
        outputs: list[str],
        settings: dict[int, float] | None = None,
    ) -> str:
        """Add a layer named after its first output, and return that name."""
        words = [kind, outputs[0], str(len(inputs)), str(len(outputs)), *inputs, *outputs]
        words += [f"{key}={value}" for key, value in (settings or {}).items()]
        self.layers.append(" ".join(words))
        self.num_blobs += len(outputs)
        return outputs[0]

    def convolution(
        self,
        name: str,
        x: str,
        *,
        kernel: Array | None = None,
        bias: Array | None = None,
        switched_off: int = 0,
    ) -> str:
        """Add a convolution that keeps the size, with the tensors of that name or those given."""
        kernel = self.tensors[f"{name}.weight"] if kernel is None else kernel
        bias = self.tensors[f"{name}.bias"] if bias is None else bias
        self.weights += bytes(4)  # the flag for uncompressed weights
        self._store(kernel)
        self._store(bias)
        num_out, _, side, _ = kernel.shape
        settings = {0: num_out, 1: side, 4: side // 2, 5: 1, 6: kernel.size}
        return self.layer("Convolution", [x], [name], {**settings, 31: switched_off})

    def prelu(self, name: str, x: str, *, repeat: int = 1) -> str:
        """Add a PReLU. Each slope serves `repeat` channels, which are later shuffled into one."""
        return self.slopes(name, x, np.repeat(self.tensors[f"{name}.weight"], repeat))

    def slopes(self, name: str, x: str, slopes: Array) -> str:
        """Add a PReLU with these slopes."""
        self._store(slopes)
        return self.layer("PReLU", [x], [name], {0: slopes.size})

    def twice(self, x: str) -> tuple[str, str]:
        """Split a blob in two, since each blob can have only one reader."""
        first, second = f"{x}.first", f"{x}.second"
        self.layer("Split", [x], [first, second])
        return first, second

    def sum(self, name: str, x: str, y: str) -> str:
        return self.layer("BinaryOp", [x, y], [name], {0: ADD})

    def with_number(self, name: str, x: str, operation: int, number: float) -> str:
        return self.layer("BinaryOp", [x], [name], {0: operation, 1: 1, 2: number})

    def parts(self, x: str, groups: Sequence[PlaneGroup], name: str) -> list[str]:
        """Slice the channels into those of each group."""
        if len(groups) == 1:
            return [x]
        parts = [f"{name}.{index}" for index in range(len(groups))]
        sizes = ",".join(str(group.num_channels) for group in groups)
        self.layer("Slice", [x], parts)
        self.layers[-1] += f" -23300={len(groups)},{sizes}"
        return parts

    def shuffle(self, name: str, x: str, scale: int) -> str:
        return self.layer("PixelShuffle", [x], [name], {0: scale})

    def _store(self, array: Array) -> None:
        self.weights += np.ascontiguousarray(array, "<f4").tobytes()


def ncnn_network(weights: Weights) -> tuple[str, bytes]:
    """Write the network's layers and weights, with the correction that keeps flat pictures flat."""
    spec, correction = weights.spec, correction_of(weights)
    groups = spec.form.outputs
    graph = _Graph(weights.tensors)
    x = graph.layer("Input", [], [INPUT_NAME])
    parts: list[str] = []
    if correction is not None:
        x, given = graph.twice(x)
        parts = graph.parts(correction.apply(_FlatOps(graph), given), groups, "flat")
    if isinstance(spec.network, ResidualGenerator):
        x = graph.shuffle("shuffled_last", _generator(graph, spec.network, x), 2)
        if parts:
            x = graph.sum("sum_flat", x, graph.shuffle("shuffled_flat", parts[0], 4))
        graph.layer("Noop", [x], [OUTPUT_NAMES[0]])
        return graph.text, bytes(graph.weights)
    assert isinstance(spec.network, Stack)
    made = graph.parts(_stack(graph, spec, spec.network, x), groups, "channels")
    if parts:
        made = [graph.sum(f"{m}.sum", m, part) for m, part in zip(made, parts, strict=True)]
    for part, group, name in zip(made, groups, OUTPUT_NAMES, strict=False):
        graph.shuffle(name, part, group.scale)
    return graph.text, bytes(graph.weights)


class _FlatOps:
    """The operations of `models.flat_correction.Ops` as layers."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph

    def dense(self, x: str, kernel: Array, bias: Array) -> str:
        return self._graph.convolution(self._name(), x, kernel=kernel[:, :, None, None], bias=bias)

    def prelu(self, x: str, slopes: Array) -> str:
        return self._graph.slopes(self._name(), x, slopes)

    def tanh(self, x: str) -> str:
        return self._graph.layer("TanH", [x], [self._name()])

    def add(self, x: str, y: str) -> str:
        return self._graph.sum(self._name(), x, y)

    def twice(self, x: str) -> tuple[str, str]:
        return self._graph.twice(x)

    def _name(self) -> str:
        return f"flat{len(self._graph.layers)}"


def _stack(graph: _Graph, spec: ModelSpec, network: Stack, x: str) -> str:
    """Add convolutions with PReLU between them, and the anchor as a 1x1 convolution."""
    x, anchor = graph.twice(x)
    for layer in range(len(network.widths)):
        x = graph.convolution(f"convolutions.{layer}", x)
        x = graph.prelu(f"activations.{layer}", x)
    x = graph.convolution(f"convolutions.{len(network.widths)}", x)
    anchors = spec.form.anchor_planes
    kernel = np.zeros((len(anchors), spec.form.num_input_planes, 1, 1), np.float32)
    kernel[range(len(anchors)), anchors] = 1.0
    bias = np.zeros(len(anchors), np.float32)
    anchor = graph.convolution("anchor", anchor, kernel=kernel, bias=bias)
    return graph.sum("anchored", x, anchor)


def _generator(graph: _Graph, network: ResidualGenerator, x: str) -> str:
    """Add all of a generator except the last shuffle, which comes last (`networks.Generator`).

    Computed as a matrix product, the tail would take 6 GB for a 320x180 frame and 10 times as long.
    """
    if network.signed_input:
        x = graph.with_number("doubled", x, MULTIPLY, 2.0)
        x = graph.with_number("signed", x, SUBTRACT, 1.0)
    x = graph.prelu("head_activation", graph.convolution("head", x))
    start, x = graph.twice(x)
    for block in range(network.num_blocks):
        skip, inner = graph.twice(x)
        inner = graph.convolution(f"blocks.{block}.first", inner)
        inner = graph.prelu(f"blocks.{block}.activation", inner)
        inner = graph.convolution(f"blocks.{block}.second", inner)
        x = graph.sum(f"sum{block}", skip, inner)
    x = graph.sum("long_skip", start, graph.convolution("body", x))
    x = graph.convolution("upsampling.0", x)
    x = graph.prelu("upsampling_activations.0", graph.shuffle("shuffled", x, 2))
    x = graph.convolution("upsampling.1", x)
    x = graph.prelu("upsampling_activations.1", x, repeat=4)
    kernel, bias = tail_before_shuffle(graph.tensors)
    x = graph.convolution("tail", x, kernel=kernel, bias=bias, switched_off=NO_MATRIX_PRODUCT)
    x = graph.layer("TanH", [x], ["tanh"])
    x = graph.with_number("halved", x, MULTIPLY, 0.5)
    return graph.with_number("unsigned", x, ADD, 0.5)
