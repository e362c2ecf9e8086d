"""OpenVINO on the CPU: integer planes in, integer planes out, nothing in float on Python's side.

Measured on two cores with a network of 8 layers of 16 at 320x180: two streams of one thread are
1.05 to 1.2 times as fast as one of two. Ending the graph before the network's PixelShuffle, with
the codes rounded there, and shuffling bytes in numpy (0.25 ms) is 1.06 times as fast as
OpenVINO's DepthToSpace; rounding and shuffling commute, so the result is the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import logging
import os
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_dir

from srstream.config import EngineConfig, ModelConfig, Precision
from srstream.engines.contract import (
    Affine,
    Capabilities,
    Matrix,
    OnDone,
    Ticket,
    TileFormat,
    check_tile,
)
from srstream.engines.notify import DoneNotifier
from srstream.engines.openvino.flat import is_pixel_shuffle, make_flat, repeat_anchor, tensors_of
from srstream.engines.openvino.int8 import Ranges, quantise, ranges_of
from srstream.errors import EngineError, WeightsError
from srstream.frame import Plane
from srstream.models.blend import Blend, WeightFile, blend_of
from srstream.models.edges import border_of_graph
from srstream.models.flat import correction_of_graph
from srstream.models.table import COLOUR_FORMS, Colour, ModelSpec, PlaneGroup

logger = logging.getLogger(__name__)

CACHE_FORMAT = 6
"""Raise it when the graph built around the network changes: cached blobs are then left alone."""

MAX_CACHED_GRAPHS = 200

HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
"""What is not quantised is computed in float32."""

LIVE_ACTIVATIONS = 4
"""Feature maps that are alive at once at the most: in, out, the quantised codes, and slack."""


def import_openvino() -> Any:
    """The `openvino` module, imported without its telemetry.

    `import openvino` imports `openvino.tools.ovc`, which reports the import to Google Analytics
    unless a consent file in the home directory says no; with `openvino_telemetry` hidden it takes
    its own do-nothing stub instead. Nobody asked for that connection.
    """
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    with _hidden_module("openvino_telemetry"):
        return importlib.import_module("openvino")


@contextlib.contextmanager
def _hidden_module(name: str) -> Iterator[None]:
    loaded = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # Python's way to make an import fail
    try:
        yield
    finally:
        if loaded is None:
            del sys.modules[name]
        else:
            sys.modules[name] = loaded


def available_threads() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OpenVinoEngine:
    """The model's network on all cores, or on `config.threads` of them.

    Raises:
        EngineError: OpenVINO doesn't load.
        WeightsError: the weights are missing or cannot be read.
    """

    capabilities: Capabilities

    def __init__(
        self,
        config: EngineConfig,
        model: ModelConfig,
        spec: ModelSpec,
        cache_dir: Path | None = None,
    ) -> None:
        self.blend, self.spec = blend_of(model, spec), spec
        self.weights = self.blend.path
        try:
            self.openvino = import_openvino()
            self.core = self.openvino.Core()
            device = str(self.core.get_property("CPU", "FULL_DEVICE_NAME"))
        except (ImportError, RuntimeError) as error:
            raise EngineError(f"OpenVINO cannot be loaded ({_first_line(error)})") from error
        self.precision = config.precision
        self.ranges = ranges_of(self.blend) if config.precision == "int8" else None
        if config.precision not in self._precisions():
            raise EngineError(
                f"this processor does not compute in {config.precision}; leave --precision out"
            )
        tensors = tensors_of(spec, _constants(blended_network(self.core, self.blend)))
        self.cache_dir = cache_dir or Path(user_cache_dir("srstream")) / "openvino"
        num_threads = config.threads or available_threads()
        self.capabilities = Capabilities(
            name="openvino",
            device=device.strip(),
            weights=self.weights,
            weights_sha256=self.blend.sha256,
            colour=spec.colour,
            scale=spec.scale,
            halo=spec.halo,
            border=0 if tensors is None else border_of_graph(spec, tensors),
            mixes_sets=self.blend.mixes_sets,
            activation_bytes_per_pixel=4
            * max(spec.network.activation_channels, 16)
            * LIVE_ACTIVATIONS,
            num_streams=num_threads,
            num_threads=num_threads,
            precision=config.precision,
            # An RGB network's 9x9 convolutions are summed up in an order that depends on the shape.
            takes_any_shape=spec.colour != "rgb",
        )

    def open_session(self, tile: TileFormat, on_done: OnDone | None = None) -> OpenVinoSession:
        """See `Engine.open_session`. Takes 0.2 s the first time, 0.05 s from the cache."""
        can = self.capabilities
        if not can.min_bits <= tile.bits <= can.max_bits or min(tile.shape or (1,)) < 1:
            raise EngineError(
                f"no session can be opened for tiles {tile.shape} of {tile.bits} bits"
            )
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": str(can.num_streams),
            "INFERENCE_NUM_THREADS": str(can.num_threads),
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
        }
        what: list[object] = [CACHE_FORMAT, self.openvino.__version__, can.device, can.colour]
        what.append(self.ranges)
        what.append(can.weights_sha256)
        what += [tile, sorted(options.items())]
        key = hashlib.sha256(repr(what).encode()).hexdigest()
        blob_path = self.cache_dir / f"{key}.blob"
        compiled = self._from_cache(blob_path, options)
        if compiled is None:
            compiled = self._compile(tile, options)
            self._to_cache(blob_path, compiled)
        return OpenVinoSession(self.openvino, compiled, tile, can, on_done)

    def close(self) -> None:
        """Nothing outlives the object."""

    def _precisions(self) -> set[str]:
        """What the processor computes in at its full speed."""
        names = {"FP32": "float32", "BF16": "bfloat16", "INT8": "int8"}
        can = self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return {names[name] for name in can if name in names}

    def _compile(self, tile: TileFormat, options: dict[str, str]) -> Any:
        network = engine_network(self.core, self.blend, self.spec, self.ranges)
        try:
            graph = integer_graph(self.openvino, network, tile, self.capabilities.colour)
        except (RuntimeError, IndexError, AttributeError) as error:
            raise WeightsError(
                f"{self.weights}: isn't a {self.capabilities.scale}x network on "
                f"{self.capabilities.colour} ({_first_line(error)})"
            ) from error
        try:
            return self.core.compile_model(graph, "CPU", options)
        except RuntimeError as error:
            shape = "any shape" if tile.shape is None else f"{tile.shape[1]}x{tile.shape[0]}"
            raise EngineError(
                f"OpenVINO cannot compile {self.weights.name} for tiles of {shape} "
                f"({_first_line(error)})"
            ) from error

    def _from_cache(self, path: Path, options: dict[str, str]) -> Any | None:
        """The compiled graph; None if there is none or it is damaged.

        OpenVINO loads a blob with a flipped bit without a word, hence the checksum in front.
        """
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, blob = content[:32], content[32:]
        if hashlib.sha256(blob).digest() == digest:
            with contextlib.suppress(RuntimeError):
                return self.core.import_model(io.BytesIO(blob), "CPU", options)
        logger.warning("%s: cached graph is damaged; compiling it again", path)
        return None

    def _to_cache(self, path: Path, compiled: Any) -> None:
        """Keeps the compiled graph; a cache that can't be written costs time, nothing else."""
        try:
            blob = compiled.export_model().getvalue()
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as temporary:
                temporary.write(hashlib.sha256(blob).digest() + blob)
            os.replace(temporary.name, path)
            self._prune_cache()
        except (OSError, RuntimeError) as error:
            logger.info("%s: compiled graph wasn't cached (%s)", path, _first_line(error))

    def _prune_cache(self) -> None:
        """A folder of pictures of all sizes must not fill the disk with compiled graphs."""
        blobs = sorted(self.cache_dir.glob("*.blob"), key=lambda blob: blob.stat().st_mtime)
        for blob in blobs[:-MAX_CACHED_GRAPHS]:
            blob.unlink(missing_ok=True)


def engine_network(core: Any, blend: Blend, spec: ModelSpec, ranges: Ranges | None = None) -> Any:
    """The float network as the engine runs it: mixed, in 8 bits with `ranges`, flat where it is
    to be.

    Raises:
        WeightsError: a file is no ONNX graph, or they aren't of one network.
        EngineError: the ranges are of another network.
    """
    network = blended_network(core, blend)
    tensors = tensors_of(spec, _constants(network))
    correction = None if tensors is None else correction_of_graph(spec, tensors)
    if ranges is not None:
        quantise(network, ranges)
    repeat_anchor(network)
    if correction is not None:
        make_flat(network, spec, correction)
    return network


def blended_network(core: Any, blend: Blend) -> Any:
    """The float network whose constants are the weighted mean of the files' constants.

    Raises:
        WeightsError: a file is no ONNX graph, or they aren't of one network.
    """
    network = _read_network(core, blend.files[0])
    if len(blend.files) == 1:
        return network
    ops = importlib.import_module("openvino.opset13")
    others = [_constants(_read_network(core, file)) for file in blend.files[1:]]
    constants = _constants(network)
    for file, other in zip(blend.files[1:], others, strict=True):
        for name in constants.keys() ^ other.keys():
            raise WeightsError(f"{file.path}: isn't of the same network: {name!r} is in one only")
    for name, constant in constants.items():
        parts = [constant.data, *(other[name].data for other in others)]
        for file, part in zip(blend.files, parts, strict=True):
            if part.shape != parts[0].shape or part.dtype != parts[0].dtype:
                raise WeightsError(f"{file.path}: isn't of the same network: {name!r} differs")
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
            f"{file.path}: is no ONNX graph OpenVINO can read ({_first_line(error)})"
        ) from error


def _constants(network: Any) -> dict[str, Any]:
    """The floating-point constants by the names that the ONNX file gives them."""
    return {
        node.get_friendly_name(): node
        for node in network.get_ops()
        if node.get_type_name() == "Constant" and np.issubdtype(node.data.dtype, np.floating)
    }


def integer_graph(openvino: Any, network: Any, tile: TileFormat, colour: Colour) -> Any:
    """Wraps a float network: codes in, codes out.

    Input (1, planes, H, W), u8 or u16; H and W stay open for tiles of any shape. For each plane
    group an output: either (1, H, W, channels), the codes before the group's closing PixelShuffle,
    or, where it doesn't close with one or RGB is still to be converted, (1, planes, sH, sW). They
    are of the input's type, or i32 for tiles of any shape.
    """
    ops = importlib.import_module("openvino.opset13")
    form = COLOUR_FORMS[colour]
    to_codes = tile.from_network(colour)
    integer = openvino.Type.u8 if tile.bits <= 8 else openvino.Type.u16
    sides = tile.shape or (-1, -1)
    shape = openvino.PartialShape([1, form.num_input_planes, *sides])
    codes = ops.parameter(shape, integer)
    values = _mapped(ops, ops.convert(codes, openvino.Type.f32), tile.to_network(colour))
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
        # What is done to each plane alone may be done before the planes' shuffle.
        ends_with_shuffle = group_to_codes.gains is not None and is_pixel_shuffle(
            result.get_node(), group.scale
        )
        repeat = group.scale**2 if ends_with_shuffle else 1
        if ends_with_shuffle:
            result = result.get_node().input_value(0)
        mapped = _mapped(ops, result, group_to_codes, repeat)
        rounded = ops.clamp(ops.round(mapped, "half_to_even"), 0.0, float(2**tile.bits - 1))
        # Where the shape is open OpenVINO's conversion to 8 or 16 bits takes a tenth of the whole
        # time, the one to 32 none; the session makes codes of them.
        converted = ops.convert(rounded, integer if tile.shape else openvino.Type.i32)
        if ends_with_shuffle:
            converted = ops.transpose(converted, ops.constant(np.array([0, 2, 3, 1], np.int32)))
        outputs.append(ops.result(converted))
    return openvino.Model(outputs, [codes], "srstream")


def _mapped(ops: Any, planes: Any, affine: Affine, repeat: int = 1) -> Any:
    """With constants: one gain, a gain for each plane, or a 1x1 convolution, and what is added.

    `repeat`: how many channels of each plane follow one another.
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
    """A constant for each channel, or one where all are alike."""
    if (values == values[0]).all():
        return ops.constant(np.array(values[0], np.float32))
    return ops.constant(np.repeat(values, repeat).astype(np.float32)[None, :, None, None])


def shuffled_planes(codes_HWC: Plane, group: PlaneGroup) -> list[Plane]:
    """The group's planes of the codes before its PixelShuffle."""
    step = group.scale**2
    return [
        pixel_shuffle(codes_HWC[..., first : first + step], group.scale)
        for first in range(0, group.num_channels, step)
    ]


def pixel_shuffle(codes_HWC: Plane, scale: int) -> Plane:
    """(H, W, scale**2) to (scale H, scale W): channel s*i + j goes to row i, column j of a cell.

    Moves the `scale` codes of a cell's row at once, as one wide integer where there is one.
    """
    rows, columns, _ = codes_HWC.shape
    wide = {2: np.uint16, 4: np.uint32, 8: np.uint64}.get(scale * codes_HWC.itemsize)
    shape = rows * scale, columns * scale
    plane: Plane
    if wide is None:
        plane = codes_HWC.reshape(rows, columns, scale, scale).transpose(0, 2, 1, 3).reshape(shape)
        return plane
    moved: Any = np.ascontiguousarray(codes_HWC.view(wide).transpose(0, 2, 1))
    plane = moved.view(codes_HWC.dtype).reshape(shape)
    return plane


class OpenVinoTicket:
    """One tile in flight: its request first, then its result."""

    def __init__(self, request: Any, shape: tuple[int, ...]) -> None:
        self.request = request
        self.shape = shape
        self.planes: tuple[Plane, ...] | None = None

    def is_done(self) -> bool:
        request = self.request
        try:
            return request is None or bool(request.wait_for(0))
        except RuntimeError:
            return True  # it failed, and `result` says how

    def wait(self) -> None:
        """Until the tile is done, in whatever thread."""
        request = self.request
        if request is not None:
            request.wait()


class OpenVinoSession:
    """See `Session`."""

    def __init__(
        self,
        openvino: Any,
        compiled: Any,
        tile: TileFormat,
        capabilities: Capabilities,
        on_done: OnDone | None = None,
    ) -> None:
        self.format = tile
        self.form = capabilities.form
        self.num_in_flight = capabilities.num_streams + 1  # one waits, so that no stream does
        self._idle = [compiled.create_infer_request() for _ in range(self.num_in_flight)]
        self._in_flight: deque[OpenVinoTicket] = deque()
        self._compiled = compiled
        self._notifier = None if on_done is None else DoneNotifier(on_done)
        if self._notifier is not None:
            weakref.finalize(self, self._notifier.close)

    def submit(self, tile: Sequence[Plane]) -> OpenVinoTicket:
        """See `Session.submit`."""
        check_tile(tile, self.format, self.form)
        if not self._idle:
            if not self._in_flight:
                raise EngineError("the engine's session is closed")
            self._collect(self._in_flight[0])
        request = self._idle.pop()
        ticket = OpenVinoTicket(request, tile[0].shape)
        try:
            tensor = request.get_input_tensor()
            if self.format.shape is None:
                tensor.shape = [1, len(tile), *ticket.shape]
            for index, plane_HW in enumerate(tile):
                tensor.data[0, index] = plane_HW
            request.start_async()
        except RuntimeError as error:
            self._idle.append(request)
            raise EngineError(f"OpenVINO took no tile ({_first_line(error)})") from error
        self._in_flight.append(ticket)
        if self._notifier is not None:
            self._notifier.expect(ticket.wait)
        return ticket

    def result(self, ticket: Ticket) -> tuple[Plane, ...]:
        """See `Session.result`."""
        assert isinstance(ticket, OpenVinoTicket)
        if ticket.request is not None:
            self._collect(ticket)
        if ticket.planes is None:
            raise EngineError("this tile was collected before, or its engine failed or was closed")
        planes, ticket.planes = ticket.planes, None
        return planes

    def close(self) -> None:
        """See `Session.close`."""
        while self._in_flight:
            with contextlib.suppress(EngineError):
                self._collect(self._in_flight[0])
        self._idle.clear()
        self._compiled = None
        if self._notifier is not None:
            self._notifier.close()
            self._notifier = None

    def _collect(self, ticket: OpenVinoTicket) -> None:
        """Waits for a tile, takes its result out of the request, and frees that for the next."""
        request, ticket.request = ticket.request, None
        self._in_flight.remove(ticket)
        self._idle.append(request)
        try:
            request.wait()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on a tile ({_first_line(error)})") from error
        planes: list[Plane] = []
        for index, group in enumerate(self.form.outputs):
            codes = request.get_output_tensor(index).data[0]
            codes = codes.astype(self.format.dtype, copy=False)
            if codes.shape == (*ticket.shape, group.num_channels):
                planes += shuffled_planes(codes, group)
            else:
                planes += list(codes.copy())
        ticket.planes = tuple(planes)


def _first_line(error: BaseException) -> str:
    """The part of an OpenVINO message that a person can use: its last line that isn't empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
