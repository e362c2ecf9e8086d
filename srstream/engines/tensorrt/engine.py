"""TensorRT on NVIDIA GPUs: half precision, with upload, compute and download at the same time.

A network is built into TensorRT's engine once (`build.py`) and cached (`engines/cache.py`).
TensorRT's own runtime runs it on the compute stream of a ring of slots (`ring.py`, `cuda.py`);
`half.py` converts from codes and back. A session has one context, and one thread uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from platformdirs import user_cache_dir
from torch import Tensor

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.cache import EngineCache, Key
from srstream.engines.contract import Capabilities, OnDone, Ticket, TileFormat, check_tile
from srstream.engines.tensorrt.build import MIN_SIDE, build_engine, import_torch_tensorrt, versions
from srstream.engines.tensorrt.cuda import CudaDevice
from srstream.engines.tensorrt.half import TileProgram
from srstream.engines.tensorrt.ring import NUM_SLOTS, Device, Execute, Ring, RingTicket
from srstream.errors import EngineError, EngineMemoryError
from srstream.frame import Plane
from srstream.models.blend import blend_of
from srstream.models.checkpoint import blended_weights
from srstream.models.edges import border_of
from srstream.models.networks import blended_network
from srstream.models.table import ColorForm, ModelSpec

SIDES = (768, 544, 384, 272, 192, 136)
"""Longest sides for which engines are built; each has half the area of the previous one."""

FLAT_FORMAT = 1
"""Version of `models/flat_correction.py` around the network. Raise it with every change."""

BYTES_PER_ACTIVATION = 2
LIVE_ACTIVATIONS = 2
"""Feature maps of the widest layer that exist at once: its input and its output."""

SHARE_OF_FREE_MEMORY = 0.8


class TensorRtEngine:
    """The model's network in TensorRT, on the current CUDA device.

    Raises:
        EngineError: there is no device or no driver, or torch-tensorrt is missing.
        WeightsError: the weights are missing, cannot be read, or belong to another model.
    """

    capabilities: Capabilities

    def __init__(self, config: EngineConfig, model: ModelConfig, spec: ModelSpec) -> None:
        if not torch.cuda.is_available():
            raise EngineError(
                "engine 'tensorrt' needs an NVIDIA GPU with its driver, and PyTorch sees none; "
                "use --engine openvino on a CPU"
            )
        import_torch_tensorrt()
        blend = blend_of(model, spec)
        self.index = torch.cuda.current_device()
        self.device = CudaDevice(self.index)
        self._network = blended_network(blend, spec).half().to(self.device.device)
        self._cache = EngineCache(Path(user_cache_dir("srstream")) / "tensorrt")
        self._built: dict[int, Any] = {}
        major, minor = torch.cuda.get_device_capability(self.index)
        self._key: dict[str, str | int] = {
            "model": spec.name,
            "weights_sha256": blend.sha256,
            "dtype": "float16",
            "flat": FLAT_FORMAT,
            "batch": 1,
            "min_side": MIN_SIDE,
            "device": torch.cuda.get_device_name(self.index),
            "compute_capability": f"{major}.{minor}",
            **versions(),
        }
        bytes_per_pixel = (
            BYTES_PER_ACTIVATION * max(spec.network.activation_channels, 16) * LIVE_ACTIVATIONS
        )
        free, _ = torch.cuda.mem_get_info(self.index)
        self.capabilities = Capabilities(
            name="tensorrt",
            device=torch.cuda.get_device_name(self.index),
            weights=blend.path,
            weights_sha256=blend.sha256,
            color_form=spec.color_form,
            scale=spec.scale,
            halo=spec.halo,
            border=border_of(blended_weights(blend, spec)),
            mixes_sets=blend.mixes_sets,
            activation_bytes_per_pixel=bytes_per_pixel,
            num_streams=1,
            num_threads=1,
            precision="float16",
            max_tile_side=longest_side(free, bytes_per_pixel),
            is_deterministic=True,
        )

    def open_session(self, tile: TileFormat, on_done: OnDone | None = None) -> RingSession:
        """See `Engine.open_session`. The first one of a size takes seconds to minutes to build."""
        if tile.shape is None or min(tile.shape) < MIN_SIDE or max(tile.shape) > SIDES[0]:
            raise EngineError(
                f"engine 'tensorrt' takes tiles of {MIN_SIDE} to {SIDES[0]} rows and columns, "
                f"not {tile.shape}"
            )
        side = min(side for side in SIDES if side >= max(tile.shape))
        try:
            return self._session(self._engine(side), tile, on_done)
        except (EngineError, torch.cuda.OutOfMemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            raise EngineMemoryError(
                f"the GPU has no memory for tiles of {tile.shape[0]}x{tile.shape[1]}"
            ) from error

    def close(self) -> None:
        """Free the engines and PyTorch's cached device memory."""
        self._built.clear()
        torch.cuda.empty_cache()

    def _session(self, engine: Any, tile: TileFormat, on_done: OnDone | None) -> RingSession:
        assert tile.shape is not None
        network = BuiltNetwork(engine, tile.shape, self.device.device)
        program = TileProgram(network, tile, self.capabilities.color_form, self.device.device)

        def execute(codes: Tensor, outputs: Sequence[Tensor], stream: torch.cuda.Stream) -> None:
            with torch.cuda.stream(stream):
                program(codes, outputs)

        session = RingSession(tile, self.capabilities.form, self.device, execute, on_done)
        session.warm_up()
        return session

    def _engine(self, side: int) -> Any:
        """Build or load TensorRT's engine for tiles of up to `side` x `side`."""
        if side not in self._built:
            key: Key = {**self._key, "max_side": side}
            content = self._cache.get(key, lambda: build_engine(self._network, side))
            engine = deserialized(content)
            if engine is None:  # this driver rejects it, although the key is right
                self._cache.forget(key)
                content = self._cache.get(key, lambda: build_engine(self._network, side))
                engine = deserialized(content)
            if engine is None:
                raise EngineError("TensorRT rejects the engine that it has just built")
            self._built[side] = engine
        return self._built[side]


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether the error, or one that caused it, is a lack of device memory."""
    while error is not None:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return True
        error = error.__cause__
    return False


def longest_side(free_bytes: int, bytes_per_pixel: int) -> int:
    """Return the longest side for which a square tile's activations fit, or the shortest side."""
    fitting = [
        side for side in SIDES if side**2 * bytes_per_pixel <= SHARE_OF_FREE_MEMORY * free_bytes
    ]
    return max(fitting, default=SIDES[-1])


def deserialized(content: bytes) -> Any | None:
    """Load TensorRT's engine; None if it belongs to another version or device."""
    import tensorrt

    runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
    return runtime.deserialize_cuda_engine(content)


class BuiltNetwork:
    """A `HalfNetwork`: TensorRT's engine with a context for tiles of one shape.

    It runs on PyTorch's current stream. The next call overwrites its outputs.
    """

    def __init__(self, engine: Any, shape: tuple[int, int], device: torch.device) -> None:
        import tensorrt

        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == tensorrt.TensorIOMode.INPUT]
        (self._input,) = inputs
        self._engine = engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise torch.cuda.OutOfMemoryError("TensorRT has no memory for its context")
        planes = engine.get_tensor_shape(self._input)[1]
        self._context.set_input_shape(self._input, (1, planes, *shape))
        self._outputs = {
            name: torch.empty(
                tuple(self._context.get_tensor_shape(name)), dtype=torch.float16, device=device
            )
            for name in names
            if name != self._input
        }
        for name, output in self._outputs.items():
            self._context.set_tensor_address(name, output.data_ptr())

    def __call__(self, lr_1CHW: Tensor) -> Sequence[Tensor]:
        self._context.set_tensor_address(self._input, lr_1CHW.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT did not accept the tile")
        return list(self._outputs.values())


class RingSession:
    """A `Session` whose tiles go through a ring of slots."""

    num_in_flight = NUM_SLOTS

    def __init__(
        self,
        tile: TileFormat,
        form: ColorForm,
        device: Device,
        execute: Execute,
        on_done: OnDone | None = None,
    ) -> None:
        assert tile.shape is not None
        rows, columns = tile.shape
        self.format = tile
        self._form = form
        shapes_out = [
            (group.num_planes, group.scale * rows, group.scale * columns) for group in form.outputs
        ]
        shape_in = (form.num_input_planes, rows, columns)
        self._ring = Ring(device, shape_in, shapes_out, tile.dtype, execute, NUM_SLOTS, on_done)

    def warm_up(self) -> None:
        """Run a tile of zeros, so that everything a first tile allocates is allocated now."""
        assert self.format.shape is not None
        black = np.zeros(self.format.shape, self.format.dtype)
        self.result(self.submit([black] * self._form.num_input_planes))

    def submit(self, tile: Sequence[Plane]) -> RingTicket:
        """See `Session.submit`."""
        check_tile(tile, self.format, self._form)
        return self._ring.submit(tile)

    def result(self, ticket: Ticket) -> tuple[Plane, ...]:
        """See `Session.result`."""
        assert isinstance(ticket, RingTicket)
        return self._ring.result(ticket)

    def close(self) -> None:
        """See `Session.close`."""
        self._ring.close()
