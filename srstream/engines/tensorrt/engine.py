"""TensorRT on NVIDIA GPUs: half precision, with upload, compute and download at the same time.

A network is built into TensorRT's engine once (`build.py`) and cached (`engines/cache.py`).
TensorRT's own runtime (`runtime.py`) runs it on the compute stream of the ring of slots that all
engines for NVIDIA GPUs share (`engines/cuda/`). A session has one context, and one thread uses it.

PyTorch runs what the engines are not built for: tiles under `MIN_SIDE`, and codes of more bits than
half precision holds.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_dir

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.cache import EngineCache, Key
from srstream.engines.contract import Capabilities, OnDone, TileFormat
from srstream.engines.cuda.availability import check_cuda
from srstream.engines.cuda.device import CudaDevice, free_cached_memory, queued
from srstream.engines.cuda.half import HALF_BITS, TileProgram, true_float32
from srstream.engines.cuda.networks import DeviceNetworks
from srstream.engines.cuda.session import RingSession
from srstream.engines.faults import device_errors
from srstream.engines.tensorrt.build import (
    MIN_SIDE,
    build_engine,
    graph_sha256,
    import_torch_tensorrt,
    versions,
)
from srstream.engines.tensorrt.runtime import BuiltNetwork, deserialized
from srstream.errors import EngineError, EngineMemoryError
from srstream.models.blend import blend_of
from srstream.models.checkpoint import blended_weights
from srstream.models.edges import border_of
from srstream.models.networks import blended_network
from srstream.models.table import ModelSpec

logger = logging.getLogger(__name__)

SIDES = (768, 544, 384, 272, 192, 136)
"""Longest sides for which engines are built; each has half the area of the previous one."""

BYTES_PER_ACTIVATION = 2
LIVE_ACTIVATIONS = 2
"""Feature maps of the widest layer that exist at once: its input and its output."""

SHARE_OF_FREE_MEMORY = 0.8

SHARE_TO_KEEP = 0.5
"""Share of the device's memory that must be free for a built engine to be kept. With less, TensorRT
leaves out kernels that it cannot try, and the engine would be slow for good."""


class TensorRtEngine:
    """The model's network in TensorRT, on the current CUDA device.

    Raises:
        EngineError: there is no device or no driver, or torch-tensorrt is missing.
        WeightsError: the weights are missing, cannot be read, or belong to another model.
    """

    capabilities: Capabilities

    def __init__(self, config: EngineConfig, model: ModelConfig, spec: ModelSpec) -> None:
        check_cuda("tensorrt")
        import_torch_tensorrt()
        true_float32()
        blend = blend_of(model, spec)
        self.index = torch.cuda.current_device()
        self.device = CudaDevice(self.index)
        with device_errors("the GPU cannot be used"):
            self._network = blended_network(blend, spec).half().to(self.device.device)
        self._torch_networks = DeviceNetworks(blend, spec, self.device.device, torch.float16)
        self._cache = EngineCache(Path(user_cache_dir("srstream")) / "tensorrt")
        self._built: dict[int, Any] = {}
        major, minor = torch.cuda.get_device_capability(self.index)
        self._key: dict[str, str | int] = {
            "model": spec.name,
            "weights_sha256": blend.sha256,
            "dtype": "float16",
            "graph_sha256": graph_sha256(),
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
        try:
            with device_errors(f"the GPU cannot compute tiles of {rows}x{columns}"):
                return self._session(tile, on_done)
        except EngineMemoryError as error:
            free_cached_memory()
            raise EngineMemoryError(
                f"the GPU has no memory for tiles of {rows}x{columns}"
            ) from error

    def close(self) -> None:
        """Free the engines and PyTorch's cached device memory."""
        self._built.clear()
        self._torch_networks.close()
        free_cached_memory()

    def _session(self, tile: TileFormat, on_done: OnDone | None) -> RingSession:
        can, device = self.capabilities, self.device
        assert tile.shape is not None
        if min(tile.shape) < MIN_SIDE or tile.bits > HALF_BITS:
            network = self._torch_networks.for_bits(tile.bits)
            program = TileProgram(network, tile, can.color_form, device.device)
            return RingSession(tile, can.form, device, device.prepare(program), on_done)
        side = min(side for side in SIDES if side >= max(tile.shape))
        built = BuiltNetwork(self._engine(side), tile.shape, device.device)
        program = TileProgram(built, tile, can.color_form, device.device)
        session = RingSession(tile, can.form, device, queued(program), on_done)
        session.warm_up()
        return session

    def _engine(self, side: int) -> Any:
        """Build or load TensorRT's engine for tiles of up to `side` x `side`."""
        if side not in self._built:
            key: Key = {**self._key, "max_side": side}
            content = self._cache.load(key) or self._built_now(key, side)
            engine = deserialized(content)
            if engine is None:  # this driver rejects it, although the key is right
                self._cache.forget(key)
                engine = deserialized(self._built_now(key, side))
            if engine is None:
                raise EngineError("TensorRT rejects the engine that it has just built")
            self._built[side] = engine
        return self._built[side]

    def _built_now(self, key: Key, side: int) -> bytes:
        """Build the engine, and keep it unless the device's memory was short."""
        free_cached_memory()
        free, total = torch.cuda.mem_get_info(self.index)
        content = build_engine(self._network, side, self._cache.folder)
        if free >= SHARE_TO_KEEP * total:
            self._cache.save(key, content)
        else:
            logger.warning(
                "the GPU had %.1f of %.1f GiB free, so the engine may be slow and is not kept",
                free / 2**30,
                total / 2**30,
            )
        return content


def longest_side(free_bytes: int, bytes_per_pixel: int) -> int:
    """Return the longest side for which a square tile's activations fit, or the shortest side."""
    fitting = [
        side for side in SIDES if side**2 * bytes_per_pixel <= SHARE_OF_FREE_MEMORY * free_bytes
    ]
    return max(fitting, default=SIDES[-1])
