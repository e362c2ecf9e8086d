"""TensorRT on NVIDIA GPUs: half precision, with upload, compute and download at the same time.

A network is built into TensorRT's engine once (`build.py`) and cached for all weights of its
architecture (`engines.py`, `weights.py`). TensorRT's own runtime (`runtime.py`) runs it on the
compute stream of the ring of slots that all engines for NVIDIA GPUs share (`engines/cuda/`). A
session has one context, and one thread uses it.

PyTorch runs what the engines are not built for: tiles under `MIN_SIDE`, and codes of more bits than
half precision holds.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import torch
from platformdirs import user_cache_dir

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.cache import Key
from srstream.engines.contract import Capabilities, OnDone, TileFormat
from srstream.engines.cuda.availability import check_cuda
from srstream.engines.cuda.device import (
    CudaDevice,
    Recorder,
    free_cached_memory,
    memory_errors,
    queued,
)
from srstream.engines.cuda.frames import LARGEST_FRAME_PIXELS, FrameProgram, RingFrames
from srstream.engines.cuda.half import HALF_BITS, TileProgram, true_float32
from srstream.engines.cuda.networks import DeviceNetworks
from srstream.engines.cuda.session import RingSession
from srstream.engines.faults import device_errors
from srstream.engines.tensorrt.build import (
    MIN_SIDE,
    import_torch_tensorrt,
    versions,
)
from srstream.engines.tensorrt.engines import TensorRtEngines
from srstream.engines.tensorrt.runtime import BuiltNetwork
from srstream.engines.tensorrt.weights import graph_sha256
from srstream.engines.tiles import TileGrid
from srstream.engines.whole_frames import FrameRecipe
from srstream.errors import EngineError
from srstream.models.blend import Blend, blend_of
from srstream.models.checkpoint import blended_weights
from srstream.models.edges import border_of
from srstream.models.flat_network import FlatNetwork, blended_network
from srstream.models.networks import Network
from srstream.models.table import ModelSpec

SIDES = (768, 544, 384, 272, 192, 136)
"""Longest sides for which engines are built; each has half the area of the previous one."""

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
    max_frame_pixels = LARGEST_FRAME_PIXELS

    def __init__(self, config: EngineConfig, model: ModelConfig, spec: ModelSpec) -> None:
        check_cuda("tensorrt")
        import_torch_tensorrt()
        true_float32()
        self._spec = spec
        self._blend = blend = blend_of(model, spec)
        self.index = torch.cuda.current_device()
        self.device = CudaDevice(self.index)
        self._sessions: weakref.WeakSet[RingSession | RingFrames] = weakref.WeakSet()
        with device_errors("the GPU cannot be used"):
            network = self._network_of(blend)
        self._torch_networks = DeviceNetworks(blend, spec, self.device.device, torch.float16)
        major, minor = torch.cuda.get_device_capability(self.index)
        key: Key = {
            "model": spec.name,
            "dtype": "float16",
            "graph_sha256": graph_sha256(),
            "batch": 1,
            "min_side": MIN_SIDE,
            "device": torch.cuda.get_device_name(self.index),
            "compute_capability": f"{major}.{minor}",
            **versions(),
        }
        folder = Path(user_cache_dir("srstream")) / "tensorrt"
        self._engines = TensorRtEngines(network, blend.sha256, key, folder)
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
            tiles_are_exact=False,
            is_deterministic=True,
        )

    def open_session(self, tile: TileFormat, on_done: OnDone | None = None) -> RingSession:
        """See `Engine.open_session`. The first one of a size takes seconds to minutes to build."""
        if tile.shape is None or min(tile.shape) < 1 or max(tile.shape) > SIDES[0]:
            raise EngineError(
                f"engine 'tensorrt' takes tiles of up to {SIDES[0]} rows and columns, "
                f"not {tile.shape}"
            )
        rows, columns = tile.shape
        with memory_errors(f"tiles of {rows}x{columns}"):
            session = self._session(tile, on_done)
        self._sessions.add(session)
        return session

    def open_frames(
        self, recipe: FrameRecipe, grid: TileGrid, on_done: OnDone | None = None
    ) -> RingFrames:
        """See `FrameEngine.open_frames`. What is around TensorRT's network runs as CUDA graphs."""
        can, device = self.capabilities, self.device
        rows, columns = recipe.shapes[0]
        with memory_errors(f"frames of {columns}x{rows}"):
            network, record = self._program(replace(recipe.tile, shape=grid.tile_shape))
            program = FrameProgram(recipe, grid, can.border, can.form, network, device.device)
            session = RingFrames(program, device, device.recorder(), record, on_done)
            session.warm_up()
        self._sessions.add(session)
        return session

    def refit(self, model: ModelConfig) -> bool:
        """Exchange the weights, also in all open sessions, without building anything anew.

        Returns:
            False, with nothing changed, if the new network has other layers, or TensorRT cannot
            exchange the weights of an engine that is open; then open another engine.

        Raises:
            EngineError: a session has tiles in flight, which would be computed with both; or
                TensorRT does not take the weights, and the old ones stay.
            DeviceFaultError: TensorRT does not take the old weights either.
            WeightsError: the new weights cannot be used; the old ones stay.
        """
        if not all(session.is_idle for session in self._sessions):
            raise EngineError("weights cannot be exchanged while tiles are in the engine")
        blend = blend_of(model, self._spec)
        with device_errors("the GPU cannot take other weights"):
            network = self._network_of(blend)
            if not self._engines.can_take(network) or not self._torch_networks.refit(blend):
                return False
            try:
                self._engines.refit(network, blend.sha256)
            except Exception:
                self._torch_networks.refit(self._blend)
                raise
            torch.cuda.current_stream(self.device.device).synchronize()
        self._blend = blend
        self.capabilities = replace(
            self.capabilities,
            weights=blend.path,
            weights_sha256=blend.sha256,
            border=border_of(blended_weights(blend, self._spec)),
            mixes_sets=blend.mixes_sets,
        )
        return True

    def close(self) -> None:
        """Free the engines and PyTorch's cached device memory."""
        self._engines.close()
        self._torch_networks.close()
        free_cached_memory()

    def _session(self, tile: TileFormat, on_done: OnDone | None) -> RingSession:
        program, record = self._program(tile)
        session = RingSession(tile, self.capabilities.form, self.device, program, record, on_done)
        session.warm_up()
        return session

    def _program(self, tile: TileFormat) -> tuple[TileProgram, Recorder]:
        """Return the network with its conversions for a format, and what queues it."""
        assert tile.shape is not None
        form, device = self.capabilities.color_form, self.device
        if min(tile.shape) < MIN_SIDE or tile.bits > HALF_BITS:
            network = self._torch_networks.for_bits(tile.bits)
            return TileProgram(network, tile, form, device.device), device.recorder()
        side = min(side for side in SIDES if side >= max(tile.shape))
        built = BuiltNetwork(self._engines.for_side(side), tile.shape, device.device)
        return TileProgram(built, tile, form, device.device), queued

    def _network_of(self, blend: Blend) -> Network | FlatNetwork:
        return blended_network(blend, self._spec).half().to(self.device.device)


def longest_side(free_bytes: int, bytes_per_pixel: int) -> int:
    """Return the longest side for which a square tile's activations fit, or the shortest side."""
    fitting = [
        side for side in SIDES if side**2 * bytes_per_pixel <= SHARE_OF_FREE_MEMORY * free_bytes
    ]
    return max(fitting, default=SIDES[-1])
