"""Corrections of a float network in OpenVINO: flat pictures stay flat, the anchor stays exact."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srstream.models.flat_correction import Correction, GraphTensors, graph_shapes
from srstream.models.table import ModelSpec

Array = NDArray[np.float32]


def tensors_of(spec: ModelSpec, constants: Mapping[str, Any]) -> GraphTensors | None:
    """Return the network's tensors by name, taken from its graph's constants.

    The result is None for graphs that `srtrain` did not write, whose structure is unknown.
    """
    tensors = {}
    for name, shape in graph_shapes(spec).items():
        data = constants[name].data if name in constants else np.empty(0, np.float32)
        if data.size != np.prod(shape):
            return None
        tensors[name] = data.reshape(shape).astype(np.float32)
    return tensors


def make_flat(network: Any, spec: ModelSpec, correction: Correction) -> None:
    """Add the correction of `models/flat_correction.py` before a final PixelShuffle."""
    ops = importlib.import_module("openvino.opset13")
    parameter = network.input(0).get_node()
    channels = correction.apply(_OpenVinoOps(ops), parameter)
    first = 0
    for output, group in zip(network.outputs, spec.form.outputs, strict=True):
        result = output.get_node()
        last = first + group.num_channels
        part = channels
        if len(spec.form.outputs) > 1:
            bounds = [ops.constant(np.array([n], np.int64)) for n in (first, last, 1, 1)]
            part = ops.slice(channels, *bounds)
        first = last
        made = result.input_value(0)
        if is_pixel_shuffle(made.get_node(), group.scale):
            shuffle = made.get_node()
            total = ops.add(shuffle.input_value(0), part)
            shuffle.input(0).replace_source_output(total.output(0))
        else:
            part = ops.depth_to_space(part, "depth_first", group.scale)
            result.input(0).replace_source_output(ops.add(made, part).output(0))
    network.validate_nodes_and_infer_types()


def repeat_anchor(network: Any) -> None:
    """Replace the convolution that repeats the anchor's planes with an operation that copies them.

    A lower precision is applied to convolutions, and the anchor is the picture itself: it would
    lose up to a level in bfloat16.
    """
    ops = importlib.import_module("openvino.opset13")
    for node in network.get_ops():
        if node.get_type_name() == "Convolution" and node.get_friendly_name() == "anchor":
            kernel = node.input_value(1).get_node().data
            planes = ops.constant(kernel[:, :, 0, 0].argmax(axis=1).astype(np.int64))
            repeated = ops.gather(node.input_value(0), planes, ops.constant(np.int64(1)))
            node.output(0).replace(repeated.output(0))
    network.validate_nodes_and_infer_types()


def is_pixel_shuffle(node: Any, scale: int) -> bool:
    """Return whether a node is a PixelShuffle that enlarges by `scale`."""
    if node.get_type_name() != "DepthToSpace":
        return False
    attributes = node.get_attributes()
    return bool(attributes["mode"] == "depth_first" and attributes["block_size"] == scale)


class _OpenVinoOps:
    """The operations of `models.flat_correction.Ops` as nodes of an OpenVINO graph."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops

    def dense(self, x: Any, kernel: Array, bias: Array) -> Any:
        ops = self._ops
        weights = ops.constant(kernel.astype(np.float32)[:, :, None, None])
        x = ops.convolution(x, weights, [1, 1], [0, 0], [0, 0], [1, 1])
        return ops.add(x, ops.constant(bias.astype(np.float32)[None, :, None, None]))

    def prelu(self, x: Any, slopes: Array) -> Any:
        if not slopes.any():
            return self._ops.relu(x)
        return self._ops.prelu(x, self._ops.constant(slopes.astype(np.float32).ravel()))

    def tanh(self, x: Any) -> Any:
        return self._ops.tanh(x)

    def add(self, x: Any, y: Any) -> Any:
        return self._ops.add(x, y)

    def twice(self, x: Any) -> tuple[Any, Any]:
        return x, x
