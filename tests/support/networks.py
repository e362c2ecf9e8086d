"""A made network of the shipped ones' shape, for tests of what is around a network."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from srstream.models.checkpoint import (
    Weights,
    expected_shapes,
    load_weights,
    safetensors_bytes,
)
from srstream.models.networks import network_from_weights
from srstream.models.onnx_graph import onnx_model
from srstream.models.table import ModelSpec, ResidualGenerator, Stack

SCALE = 4


def made_network(path: Path, *, layers: int = 3, channels: int = 16, seed: int = 0) -> Path:
    """Random 3x3 convolutions with PReLU, added to the nearest-neighbor anchor, then shuffled.

    Its halo is `layers`; its mean is that of its input within a few codes.
    """
    rng = np.random.default_rng(seed)
    nodes, weights = [], []
    widths = [1, *[channels] * (layers - 1), SCALE**2]
    value = "y"
    for layer, (num_in, num_out) in enumerate(pairwise(widths)):
        is_last = layer == layers - 1
        kernel = rng.normal(size=(num_out, num_in, 3, 3)) * (2 / (9 * num_in)) ** 0.5
        if is_last:
            kernel *= 0.15
            kernel -= kernel.mean(axis=0)
        arrays = {f"w{layer}": kernel, f"b{layer}": rng.normal(size=num_out) * 0.01}
        if is_last:
            arrays[f"b{layer}"] -= arrays[f"b{layer}"].mean()
        weights += [numpy_helper.from_array(a.astype("f4"), n) for n, a in arrays.items()]
        inputs = [value, f"w{layer}", f"b{layer}"]
        nodes.append(helper.make_node("Conv", inputs, [f"c{layer}"], pads=[1, 1, 1, 1]))
        value = f"c{layer}"
        if not is_last:
            slopes = (np.linspace(0.2, 0.3, num_out) + 0.003 * layer).reshape(-1, 1, 1)
            weights.append(numpy_helper.from_array(slopes.astype("f4"), f"s{layer}"))
            nodes.append(helper.make_node("PRelu", [value, f"s{layer}"], [f"p{layer}"]))
            value = f"p{layer}"
    nodes += [
        helper.make_node("Concat", ["y"] * SCALE**2, ["anchor"], axis=1),
        helper.make_node("Add", [value, "anchor"], ["sum"]),
        helper.make_node("DepthToSpace", ["sum"], ["sr"], blocksize=SCALE, mode="CRD"),
    ]
    return _save(path, nodes, weights)


def model_network(path: Path, spec: ModelSpec, *, seed: int = 0, flat: bool = True) -> Path:
    """Random weights for a model of any color form, as `srtrain` exports them.

    A stack's output is about its input enlarged; a generator's is that through a tanh, so of less
    contrast. Both are deterministic. A stack is `flat`: it makes of a constant that constant.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_shapes(spec).items():
        scale = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) == 4 else 0.01
        tensors[name] = rng.normal(size=shape) * scale
        if name.startswith(("activations", "head_activation", "blocks")) and len(shape) == 1:
            tensors[name] = np.linspace(0.2, 0.3, shape[0]) + 0.01 * rng.random()
    if isinstance(spec.network, Stack):
        last = f"convolutions.{len(spec.network.widths)}"
        kernel = 0.15 * tensors[f"{last}.weight"]
        axes = (2, 3) if flat else (1, 2, 3)
        tensors[f"{last}.weight"] = kernel - kernel.mean(axis=axes, keepdims=True)
        tensors[f"{last}.bias"] *= not flat
    else:
        _pass_through(tensors, spec.network)
    as_float32 = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    weights = Weights(spec, as_float32, "made")
    path.write_bytes(onnx_model(weights).SerializeToString())
    path.with_suffix(".safetensors").write_bytes(safetensors_bytes(weights))
    return path


def flat_response(path: Path, spec: ModelSpec, colours: np.ndarray) -> list[np.ndarray]:
    """What the network makes of flat pictures, (n, planes), far from their edges.

    By PyTorch, as it is in its file: for each group of output planes the cell of one sample,
    (n, planes, scale, scale).
    """
    network = network_from_weights(load_weights(path.with_suffix(".safetensors"), spec))
    side = 2 * spec.halo + 1
    flat = torch.from_numpy(np.asarray(colours, np.float32))[:, :, None, None]
    groups = network(flat.expand(-1, -1, side, side))
    middle = [slice(g.scale * spec.halo, g.scale * (spec.halo + 1)) for g in spec.form.outputs]
    return [made[..., m, m].numpy() for made, m in zip(groups, middle, strict=True)]


def repeating_network(path: Path, spec: ModelSpec) -> Path:
    """A stack that is nothing but its anchor: each sample repeated."""
    tensors = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes(spec).items()}
    path.write_bytes(onnx_model(Weights(spec, tensors, "made")).SerializeToString())
    return path


def biased_network(path: Path, spec: ModelSpec, bias: float) -> Path:
    """A stack that is its anchor and something added to every sample."""
    tensors = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes(spec).items()}
    tensors[f"convolutions.{len(spec.network.widths)}.bias"] += np.float32(bias)
    path.write_bytes(onnx_model(Weights(spec, tensors, "made")).SerializeToString())
    return path


def _pass_through(tensors: dict[str, np.ndarray], network: ResidualGenerator) -> None:
    """The first three channels carry the picture to the tail, the others add a little noise."""
    for name, tensor in tensors.items():
        if "activation" in name:
            tensor[:3] = 1.0
            tensor[3:] = 0.2
        elif tensor.ndim == 4:
            tensor *= 0.05
    picture = range(3)
    tensors["head.weight"][picture, picture, 4, 4] = 1.0
    tensors["tail.weight"][picture, picture, 4, 4] = 1.0
    for step in range(2):
        kernel = tensors[f"upsampling.{step}.weight"]
        for plane in picture:
            kernel[4 * plane : 4 * plane + 4, plane, 1, 1] += 1.0


def nearest_network(path: Path) -> Path:
    """Repeats every sample 4x4 times, without a PixelShuffle at its end."""
    sizes = numpy_helper.from_array(np.array([1, 1, SCALE, SCALE], "f4"), "sizes")
    resize = helper.make_node(
        "Resize",
        ["y", "", "sizes"],
        ["sr"],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    return _save(path, [resize], [sizes])


def black_network(path: Path) -> Path:
    """What a broken engine may do: everything comes out black."""
    zero = numpy_helper.from_array(np.zeros((16, 1, 3, 3), "f4"), "w")
    return _save(
        path,
        [
            helper.make_node("Conv", ["y", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("DepthToSpace", ["c"], ["sr"], blocksize=SCALE, mode="CRD"),
        ],
        [zero],
    )


def _save(path: Path, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> Path:
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 1, "H", "W"])],
        [helper.make_tensor_value_info("sr", TensorProto.FLOAT, ["B", 1, "H4", "W4"])],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path
