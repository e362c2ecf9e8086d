"""The ONNX graph of a folded network, written operator by operator.

Input `y`: float32 (batch, 1, height, width), code value / 255 in whatever range the video has.
Output `sr`: float32 (batch, 1, scale height, scale width), not clamped. All three are dynamic.
"""

from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from srstream.errors import WeightsError
from srstream.models.checkpoint import Weights, check_tensors

OPSET = 17
IR_VERSION = 8
INPUT_NAME = "y"
OUTPUT_NAME = "sr"


class _Graph:
    """Nodes and constants, in the order they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: NDArray[np.float32]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output


def onnx_model(weights: Weights) -> onnx.ModelProto:
    """Conv, PRelu, ..., Conv, Add, DepthToSpace; checked by `onnx.checker`.

    The nearest-neighbour anchor is the one-channel input, broadcast over the sub-pixel channels.
    Measured in OpenVINO, this costs what leaving it out would; so do a 1x1 convolution, a 17th
    channel of the last one and a Resize behind the shuffle. DepthToSpace in mode CRD is PyTorch's
    PixelShuffle.
    """
    spec, tensors = weights.spec, weights.tensors
    check_tensors(spec, tensors, "weights to export")
    graph = _Graph()
    x = INPUT_NAME
    for layer in range(spec.layers):
        kernel = graph.constant(f"kernel{layer}", tensors[f"convolutions.{layer}.weight"])
        bias = graph.constant(f"bias{layer}", tensors[f"convolutions.{layer}.bias"])
        padding = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        x = graph.node("Conv", [x, kernel, bias], f"convolution{layer}", **padding)
        if layer < spec.layers - 1:
            slopes = tensors[f"activations.{layer}.weight"][:, None, None]
            slope = graph.constant(f"slope{layer}", slopes)
            x = graph.node("PRelu", [x, slope], f"activation{layer}")
    x = graph.node("Add", [x, INPUT_NAME], "anchored")
    graph.node("DepthToSpace", [x], OUTPUT_NAME, blocksize=spec.scale, mode="CRD")

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            spec.name,
            [_picture(INPUT_NAME, "height", "width")],
            [_picture(OUTPUT_NAME, f"{spec.scale}*height", f"{spec.scale}*width")],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="srstream",
    )
    helper.set_model_props(model, weights.metadata())
    onnx.checker.check_model(model, full_check=True)
    return model


def onnx_metadata(content: bytes, origin: str) -> dict[str, str]:
    """What an exported file says of itself, or `WeightsError` if srstream did not write it."""
    try:
        model = onnx.load_from_string(content)
    except DecodeError as error:
        raise WeightsError(f"{origin}: not an ONNX file: {error}") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if not {"model", "scale", "halo", "colour", "recipe"} <= metadata.keys():
        raise WeightsError(f"{origin}: an ONNX file, but not one that srtrain exported")
    return metadata


def _picture(name: str, height: str, width: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, height, width])
