"""PyTorch's network on NVIDIA GPUs: half precision, one CUDA graph a slot, nothing to build.

The network runs in a ring of slots (`ring.py`, `device.py`), with its conversions from codes and
back (`half.py`). A session is ready in about the time of a few tiles. It needs PyTorch alone.
"""

from __future__ import annotations

import weakref

import torch

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import Capabilities, OnDone, TileFormat
from srstream.engines.cuda.availability import check_cuda
from srstream.engines.cuda.device import CudaDevice, free_cached_memory, memory_errors
from srstream.engines.cuda.frames import LARGEST_FRAME_PIXELS, FrameProgram, RingFrames
from srstream.engines.cuda.half import TileProgram, true_float32
from srstream.engines.cuda.host import HostDevice
from srstream.engines.cuda.networks import DeviceNetworks
from srstream.engines.cuda.session import RingSession
from srstream.engines.faults import device_errors
from srstream.engines.threads import check_format
from srstream.engines.tiles import TileGrid
from srstream.engines.whole_frames import FrameRecipe
from srstream.errors import EngineError
from srstream.models.blend import Blend, blend_of
from srstream.models.checkpoint import blended_weights
from srstream.models.edges import border_of
from srstream.models.table import ModelSpec

HALF_DTYPES = {"float32": torch.float16, "bfloat16": torch.bfloat16}
"""Number formats by `EngineConfig.precision`, whose default leaves the choice to the engine."""

BYTES_PER_ACTIVATION = 2
LIVE_ACTIVATIONS = 3
"""Feature maps of the widest layer that exist at once: input, output, and cuDNN's workspace."""

BYTES_PER_OUTPUT = 16 * 3 * (4 + 4 + 2)
"""Working memory for the result of one input pixel: float32 twice, and codes."""

LARGEST_TILE_PIXELS = 1152 * 2048
"""Largest tile to use: a frame of 1080 rows with its border. Not tuned on a GPU yet."""

SHARE_OF_FREE_MEMORY = 0.5
"""Several jobs share a device, each with its sessions."""


class CudaEngine:
    """The model's network in PyTorch, on the current CUDA device.

    Args:
        device: for tests: `cpu` runs the same program on the CPU, without graphs or streams.

    Raises:
        EngineError: there is no device or no driver.
        DeviceFaultError: the device is broken for this process.
        WeightsError: the weights are missing, cannot be read, or belong to another model.
    """

    capabilities: Capabilities
    max_frame_pixels = LARGEST_FRAME_PIXELS

    def __init__(
        self,
        config: EngineConfig,
        model: ModelConfig,
        spec: ModelSpec,
        device: torch.device | None = None,
    ) -> None:
        on_gpu = device is None or device.type == "cuda"
        if on_gpu:
            check_cuda("cuda")
        self._spec = spec
        blend = blend_of(model, spec)
        true_float32()
        self._sessions: weakref.WeakSet[RingSession | RingFrames] = weakref.WeakSet()
        with device_errors("the GPU cannot be used"):
            self._device = CudaDevice(torch.cuda.current_device()) if on_gpu else HostDevice()
            dtype = HALF_DTYPES[config.precision]
            self._networks = DeviceNetworks(blend, spec, self._device.device, dtype)
            self._networks.for_bits(8)
            self.capabilities = self._capabilities(blend, dtype)

    def open_session(self, tile: TileFormat, on_done: OnDone | None = None) -> RingSession:
        """See `Engine.open_session`. It runs a few tiles and captures a graph for each slot."""
        check_format(tile, self.capabilities)
        if tile.shape is None:
            raise EngineError("engine 'cuda' takes tiles of a fixed shape only")
        rows, columns = tile.shape
        with memory_errors(f"tiles of {rows}x{columns}"):
            session = self._session(tile, on_done)
        self._sessions.add(session)
        return session

    def open_frames(
        self, recipe: FrameRecipe, grid: TileGrid, on_done: OnDone | None = None
    ) -> RingFrames:
        """See `FrameEngine.open_frames`. It runs a few frames, and captures their parts."""
        check_format(recipe.tile, self.capabilities)
        rows, columns = recipe.shapes[0]
        with memory_errors(f"frames of {columns}x{rows}"):
            session = self._frames(recipe, grid, on_done)
        self._sessions.add(session)
        return session

    def refit(self, model: ModelConfig) -> bool:
        """Exchange the weights, also in all open sessions, without building anything anew.

        Returns:
            False, with nothing changed, if the new network has other layers; then open an engine.

        Raises:
            EngineError: a session has tiles in flight, which would be computed with both.
            WeightsError: the new weights cannot be used; the old ones stay.
        """
        if not all(session.is_idle for session in self._sessions):
            raise EngineError("weights cannot be exchanged while tiles are in the engine")
        blend = blend_of(model, self._spec)
        with device_errors("the GPU cannot take other weights"):
            if not self._networks.refit(blend):
                return False
            if self._device.device.type == "cuda":
                torch.cuda.current_stream(self._device.device).synchronize()
            self.capabilities = self._capabilities(blend, self._networks.dtype)
        return True

    def close(self) -> None:
        """Free the networks and PyTorch's cached device memory."""
        self._networks.close()
        free_cached_memory()

    def _session(self, tile: TileFormat, on_done: OnDone | None) -> RingSession:
        can, device = self.capabilities, self._device
        network = self._networks.for_bits(tile.bits)
        program = TileProgram(network, tile, can.color_form, device.device)
        return RingSession(tile, can.form, device, program, device.recorder(), on_done)

    def _frames(self, recipe: FrameRecipe, grid: TileGrid, on_done: OnDone | None) -> RingFrames:
        can, device = self.capabilities, self._device
        network = TileProgram(
            self._networks.for_bits(recipe.tile.bits), recipe.tile, can.color_form, device.device
        )
        program = FrameProgram(recipe, grid, can.border, can.form, network, device.device)
        record = device.recorder()
        return RingFrames(program, device, record, record, on_done)

    def _capabilities(self, blend: Blend, dtype: torch.dtype) -> Capabilities:
        spec = self._spec
        bytes_per_pixel = BYTES_PER_OUTPUT + BYTES_PER_ACTIVATION * LIVE_ACTIVATIONS * max(
            spec.network.activation_channels, 16
        )
        return Capabilities(
            name="cuda",
            device=device_name(self._device.device),
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
            precision=str(dtype).removeprefix("torch."),
            tiles_are_exact=False,
            preferred_tile_pixels=largest_tile(self._device.device, bytes_per_pixel),
        )


def device_name(device: torch.device) -> str:
    """Return the name of a device, which says so if it is no GPU."""
    if device.type == "cpu":
        return "CPU in place of a GPU, for tests"
    return torch.cuda.get_device_name(device)


def largest_tile(device: torch.device, bytes_per_pixel: int) -> int:
    """Return the number of pixels of the largest tile for which there is memory now."""
    if device.type == "cpu":
        return LARGEST_TILE_PIXELS
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(LARGEST_TILE_PIXELS, int(SHARE_OF_FREE_MEMORY * free) // bytes_per_pixel))
