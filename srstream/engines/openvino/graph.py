"""The graphs that OpenVINO runs: a float network, wrapped to take and return codes.

Measured on two cores with a network of 8 layers of 16 at 320x180: ending the graph before the
network's PixelShuffle, with the codes rounded there, and shuffling bytes in numpy (0.25 ms) is 1.06
times as fast as OpenVINO's DepthToSpace. Rounding and shuffling commute, so the result is the same.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from srstream.engines.contract import Affine, Matrix, TileFormat
from srstream.engines.openvino.flat import is_pixel_shuffle, make_flat, repeat_anchor, tensors_of
from srstream.engines.openvino.int8 import Ranges, quantize
from srstream.engines.openvino.library import last_line
from srstream.errors import WeightsError
from srstream.models.blend import Blend, WeightFile
from srstream.models.flat_correction import correction_of_graph
from srstream.models.table import COLOR_FORMS, ColorFormName, ModelSpec


def engine_network(core: Any, blend: Blend, spec: ModelSpec, ranges: Ranges | None = None) -> Any:
    """Build the float network that the engine runs.

    Its files are blended, it is quantized to 8 bits if `ranges` are given, and flat input stays
    flat (`models/flat_correction.py`).

    Raises:
        WeightsError: a file is not an ONNX graph, or the files belong to different networks.
        EngineError: the ranges belong to another network.
    """
    network = blended_network(core, blend)
    tensors = tensors_of(spec, constants_of(network))
    correction = None if tensors is None else correction_of_graph(spec, tensors)
    if ranges is not None:
        quantize(network, ranges)
    repeat_anchor(network)
    if correction is not None:
        make_flat(network, spec, correction)
    return network


def blended_network(core: Any, blend: Blend) -> Any:
    """Read the float network whose constants are the weighted mean of the files' constants.

    Raises:
        WeightsError: a file is not an ONNX graph, or the files belong to different networks.
    """
    network = _read_network(core, blend.files[0])
    if len(blend.files) == 1:
        return network
    ops = importlib.import_module("openvino.opset13")
    others = [constants_of(_read_network(core, file)) for file in blend.files[1:]]
    constants = constants_of(network)
    for file, other in zip(blend.files[1:], others, strict=True):
        for name in constants.keys() ^ other.keys():
            raise WeightsError(f"{file.path}: belongs to another network: only one has {name!r}")
    for name, constant in constants.items():
        parts = [constant.data, *(other[name].data for other in others)]
        for file, part in zip(blend.files, parts, strict=True):
            if part.shape != parts[0].shape or part.dtype != parts[0].dtype:
                raise WeightsError(f"{file.path}: belongs to another network: {name!r} differs")
        mixed = sum(
            file.share * part.astype(np.float64)
            for file, part in zip(blend.files, parts, strict=True)
        )
        replacement = ops.constant(np.asarray(mixed, constant.data.dtype), name=name)
        constant.output(0).replace(replacement.output(0))
    return network


def _read_network(core: Any, file: WeightFile) -> Any:
    try:
        return core.read_model(file.content)
    except RuntimeError as error:
        raise WeightsError(
            f"{file.path}: not an ONNX graph that OpenVINO can read ({last_line(error)})"
        ) from error


def constants_of(network: Any) -> dict[str, Any]:
    """Return the floating-point constants by their names in the ONNX file."""
    return {
        node.get_friendly_name(): node
        for node in network.get_ops()
        if node.get_type_name() == "Constant" and np.issubdtype(node.data.dtype, np.floating)
    }


def integer_graph(openvino: Any, network: Any, tile: TileFormat, color_form: ColorFormName) -> Any:
    """Wrap a float network to take and return codes.

    The input is (1, planes, H, W), u8 or u16; H and W stay open for tiles of any shape. There is an
    output for each plane group. If the group ends with a PixelShuffle and RGB needs no conversion,
    the output is (1, H, W, channels), the codes before that shuffle; otherwise it is
    (1, planes, sH, sW). Outputs have the input's type, or i32 for tiles of any shape.
    """
    ops = importlib.import_module("openvino.opset13")
    form = COLOR_FORMS[color_form]
    to_codes = tile.from_network(color_form)
    integer = openvino.Type.u8 if tile.bits <= 8 else openvino.Type.u16
    sides = tile.shape or (-1, -1)
    shape = openvino.PartialShape([1, form.num_input_planes, *sides])
    codes = ops.parameter(shape, integer)
    values = _mapped(ops, ops.convert(codes, openvino.Type.f32), tile.to_network(color_form))
    network.reshape(shape)
    for target in network.input(0).get_target_inputs():
        target.replace_source_output(values.output(0))
    if len(network.outputs) != len(form.outputs):
        raise RuntimeError(f"it has {len(network.outputs)} outputs")
    outputs = []
    first = 0
    for output, group in zip(network.outputs, form.outputs, strict=True):
        result = output.get_node().input_value(0)
        made = [s * group.scale if s > 0 else -1 for s in sides]
        expected = openvino.PartialShape([1, group.num_planes, *made])
        if not result.get_partial_shape().compatible(expected):
            raise RuntimeError(f"an output has the shape {result.get_partial_shape()}")
        group_to_codes = to_codes.of_planes(first, group.num_planes)
        first += group.num_planes
        # An operation that treats each plane separately may precede the shuffle.
        ends_with_shuffle = group_to_codes.gains is not None and is_pixel_shuffle(
            result.get_node(), group.scale
        )
        repeat = group.scale**2 if ends_with_shuffle else 1
        if ends_with_shuffle:
            result = result.get_node().input_value(0)
        mapped = _mapped(ops, result, group_to_codes, repeat)
        rounded = ops.clamp(ops.round(mapped, "half_to_even"), 0.0, float(2**tile.bits - 1))
        # With an open shape, OpenVINO's conversion to 8 or 16 bits takes a tenth of the total time,
        # and that to 32 bits takes none; the session then converts to codes.
        converted = ops.convert(rounded, integer if tile.shape else openvino.Type.i32)
        if ends_with_shuffle:
            converted = ops.transpose(converted, ops.constant(np.array([0, 2, 3, 1], np.int32)))
        outputs.append(ops.result(converted))
    return openvino.Model(outputs, [codes], "srstream")


def _mapped(ops: Any, planes: Any, affine: Affine, repeat: int = 1) -> Any:
    """Apply an affine map as constants: gains or a 1x1 convolution, and an offset.

    `repeat` is the number of successive channels of each plane.
    """
    gains = affine.gains
    if gains is None:
        kernel = ops.constant(affine.mix.astype(np.float32)[:, :, None, None])
        mapped = ops.convolution(planes, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
    else:
        mapped = ops.multiply(planes, _column(ops, gains, repeat))
    if not affine.offset.any():
        return mapped
    return ops.add(mapped, _column(ops, affine.offset, repeat))


def _column(ops: Any, values: Matrix, repeat: int) -> Any:
    """Return a constant for each channel, or a single one if all are equal."""
    if (values == values[0]).all():
        return ops.constant(np.array(values[0], np.float32))
    return ops.constant(np.repeat(values, repeat).astype(np.float32)[None, :, None, None])
