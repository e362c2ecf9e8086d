"""Quantization of a network's inner convolutions to 8-bit integers, for OpenVINO.

Weights are quantized symmetrically for each channel, and activations by the ranges measured on
pictures (`STEM.int8.json` next to the `.onnx` file, written by `srtrain calibrate`). The first
convolution and the sum with the anchor stay in float: they take 5 % of the time, and quantizing
them would cost three times as much quality as quantizing all the rest.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from srstream.errors import EngineError
from srstream.models.blend import Blend, WeightFile

Ranges = dict[str, tuple[float, float]]
"""The smallest and the largest input value of each quantized convolution, by name."""

SUFFIX = ".int8.json"

WEIGHT_LEVELS, ACTIVATION_LEVELS = 255, 256


def ranges_path(weights: Path) -> Path:
    """Return the path of the ranges of a weight file."""
    return weights.with_suffix(SUFFIX)


def ranges_of(blend: Blend) -> Ranges:
    """Read ranges that are wide enough for every file of a blend.

    Raises:
        EngineError: a file has no ranges, or ranges of other weights.
    """
    found = [_read(file) for file in blend.files]
    return {
        name: (min(ranges[name][0] for ranges in found), max(ranges[name][1] for ranges in found))
        for name in found[0]
    }


def ranges_json(onnx_content: bytes, ranges: Ranges, num_pictures: int) -> str:
    """Return the content of a ranges file."""
    stated = {
        "onnx_sha256": hashlib.sha256(onnx_content).hexdigest(),
        "num_pictures": num_pictures,
        "activations": {name: [round(n, 5) for n in pair] for name, pair in ranges.items()},
    }
    return json.dumps(stated, indent=1) + "\n"


def _read(file: WeightFile) -> Ranges:
    path = ranges_path(file.path)
    advice = "use --precision float32 or bfloat16, or make them with srtrain calibrate"
    try:
        stated = json.loads(path.read_bytes())
        ranges = {name: (float(low), float(high)) for name, (low, high) in _items(stated)}
        digest = stated["onnx_sha256"]
    except FileNotFoundError:
        raise EngineError(
            f"{file.path}: there are no int8 ranges ({path.name}); {advice}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{path}: cannot be read as int8 ranges ({error}); {advice}") from error
    if digest != hashlib.sha256(file.content).hexdigest():
        raise EngineError(f"{path}: these int8 ranges belong to other weights; {advice}")
    return ranges


def _items(stated: dict[str, Any]) -> list[tuple[str, list[float]]]:
    return list(stated["activations"].items())


def quantize(network: Any, ranges: Ranges) -> None:
    """Insert quantization into an OpenVINO network; its plugin then computes in integers.

    Raises:
        EngineError: `ranges` names a convolution that the network does not have.
    """
    ops = importlib.import_module("openvino.opset13")
    convolutions = {
        node.get_friendly_name().split("/")[0]: node
        for node in network.get_ops()
        if node.get_type_name() == "Convolution"
    }
    for name, (low, high) in ranges.items():
        if name not in convolutions:
            raise EngineError(f"int8: the network has no convolution {name!r}")
        node = convolutions[name]
        kernel = node.input_value(1).get_node().data
        bound = np.abs(kernel).max(axis=(1, 2, 3), keepdims=True).astype(np.float32)
        weights = _fake_quantized(ops, ops.constant(kernel), -bound, bound, WEIGHT_LEVELS)
        # One of the levels is exactly zero: padding and PReLU depend on it.
        step = (high - low) / (ACTIVATION_LEVELS - 1)
        below = round(-low / step)
        bounds = (-below * step, (ACTIVATION_LEVELS - 1 - below) * step)
        least, largest = (np.full((1, 1, 1, 1), n, np.float32) for n in bounds)
        values = _fake_quantized(ops, node.input_value(0), least, largest, ACTIVATION_LEVELS)
        node.input(0).replace_source_output(values.output(0))
        node.input(1).replace_source_output(weights.output(0))
    network.validate_nodes_and_infer_types()


def _fake_quantized(ops: Any, value: Any, low: Any, high: Any, levels: int) -> Any:
    bounds = [ops.constant(low), ops.constant(high)]
    return ops.fake_quantize(value, *bounds, *bounds, levels)
