"""ncnn: Winograd convolutions on the CPU, and Vulkan on GPUs of any vendor.

Everything is computed in float32. On the CPU each tile has one thread, and as many tiles as there
are cores are computed at once; a GPU computes one tile after the other.

The order in which ncnn's convolutions add up depends on a sample's position in its tile, so tiles
are not exact to the last bit (`Capabilities.tiles_are_exact`).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import Affine, Capabilities, OnDone, TileFormat
from srstream.engines.ncnn.graph import INPUT_NAME, OUTPUT_NAMES, ncnn_network
from srstream.engines.threads import ThreadSession, available_threads, check_format
from srstream.errors import EngineError
from srstream.frame import Plane
from srstream.models.blend import blend_of
from srstream.models.checkpoint import Weights, blended_weights
from srstream.models.edges import border_of
from srstream.models.table import ModelSpec, ResidualGenerator, Stack

LIVE_ACTIVATIONS = {Stack: 15, ResidualGenerator: 6}
"""Feature maps of the widest layer that exist at once, including those transformed for Winograd's
method and those that ncnn keeps for the next tile. Measured: 14 and 4.5."""

LESS_EXACT = (
    "use_winograd63_convolution",  # no faster than the smaller transforms, five times their error
    "use_fp16_packed",
    "use_fp16_storage",
    "use_fp16_arithmetic",
    "use_bf16_packed",
    "use_bf16_storage",
)
SOFTWARE = 3
"""ncnn's number for a Vulkan device that is emulated on a CPU."""

Floats = NDArray[np.float32]


class NcnnEngine:
    """The model's network in ncnn, on the first GPU with Vulkan, or else on the CPU.

    `software_vulkan` also allows a Vulkan device that is emulated on a CPU; it is slow and meant
    for tests.

    Raises:
        EngineError: ncnn cannot be loaded, or rejects the network.
        WeightsError: the weights are missing, cannot be read, or belong to another model.
    """

    capabilities: Capabilities

    def __init__(
        self,
        config: EngineConfig,
        model: ModelConfig,
        spec: ModelSpec,
        *,
        software_vulkan: bool = False,
    ) -> None:
        blend = blend_of(model, spec)
        try:
            self._ncnn = importlib.import_module("ncnn")
        except ImportError as error:
            raise EngineError(f"ncnn cannot be loaded ({error})") from error
        gpu = vulkan_device(self._ncnn, software=software_vulkan)
        num_threads = config.threads or available_threads()
        self._outputs = OUTPUT_NAMES[: len(spec.form.outputs)]
        weights = blended_weights(blend, spec)
        with _without_stderr():
            self._net = _load(self._ncnn, weights, gpu)
        self.capabilities = Capabilities(
            name="ncnn",
            device="CPU" if gpu is None else self._ncnn.get_gpu_info(gpu).device_name(),
            weights=blend.path,
            weights_sha256=blend.sha256,
            color_form=spec.color_form,
            scale=spec.scale,
            halo=spec.halo,
            border=border_of(weights),
            mixes_sets=blend.mixes_sets,
            activation_bytes_per_pixel=4
            * max(spec.network.activation_channels, 16)
            * LIVE_ACTIVATIONS[type(spec.network)],
            num_streams=num_threads if gpu is None else 1,
            num_threads=num_threads if gpu is None else 1,
            takes_any_shape=True,
            tiles_are_exact=False,
        )

    def open_session(self, tile: TileFormat, on_done: OnDone | None = None) -> ThreadSession:
        """See `Engine.open_session`. Nothing is compiled."""
        check_format(tile, self.capabilities)
        return ThreadSession(self._run, tile, self.capabilities, on_done)

    def close(self) -> None:
        """Free the weights, and the device's memory on a GPU."""
        self._net.clear()

    def _run(self, codes_CHW: Plane, tile: TileFormat) -> list[Plane]:
        color_form, peak = self.capabilities.color_form, np.float32(2**tile.bits - 1)
        to_codes = tile.from_network(color_form)
        x = _mapped(codes_CHW.astype(np.float32), tile.to_network(color_form))
        planes: list[Plane] = []
        for group in self._forward(np.ascontiguousarray(x)):
            y = _mapped(group, to_codes.of_planes(len(planes), len(group)))
            np.rint(y, out=y)
            np.clip(y, 0, peak, out=y)
            planes += [plane.astype(tile.dtype) for plane in y]
        return planes

    def _forward(self, x_CHW: Floats) -> list[Floats]:
        """Run the network; return its groups of output planes.

        A Mat made from an array does not own its memory: it may outlive the array, and a layer that
        works on it in place crashes the process, because its reference count is missing. A clone
        owns its memory. Outputs are copied before their Mat is freed.
        """
        extractor = self._net.create_extractor()
        extractor.input(INPUT_NAME, self._ncnn.Mat(x_CHW).clone())
        groups = []
        for name in self._outputs:
            code, made = extractor.extract(name)
            if code != 0:
                raise RuntimeError(
                    "there is not enough memory for it" if code == -100 else f"code {code}"
                )
            groups.append(np.array(made, np.float32, copy=True))
        return groups


def vulkan_device(ncnn: Any, *, software: bool = False) -> int | None:
    """Return the number of the first GPU in Vulkan's list; with `software`, of the first device."""
    try:
        ctypes.CDLL("libvulkan.so.1")  # without it, ncnn prints eight complaints
    except OSError:
        return None
    with _without_stderr():
        found = range(ncnn.get_gpu_count())
        kinds = {index: ncnn.get_gpu_info(index).type() for index in found}
    return next((index for index in found if software or kinds[index] != SOFTWARE), None)


def _load(ncnn: Any, weights: Weights, gpu: int | None) -> Any:
    """Load the network from files; from memory, ncnn would refer to bytes that Python may free."""
    net = ncnn.Net()
    net.opt.num_threads = 1
    for name in LESS_EXACT:
        setattr(net.opt, name, False)
    net.opt.use_vulkan_compute = gpu is not None
    if gpu is not None:
        net.set_vulkan_device(gpu)
    text, content = ncnn_network(weights)
    with tempfile.TemporaryDirectory(prefix="srstream-ncnn-") as folder:
        layers, values = Path(folder) / "net.param", Path(folder) / "net.bin"
        layers.write_text(text)
        values.write_bytes(content)
        if net.load_param(str(layers)) != 0 or net.load_model(str(values)) != 0:
            raise EngineError(f"ncnn rejects the network of model {weights.spec.name!r}")
    return net


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Silence standard error, where ncnn and drivers would disturb the progress bar."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _mapped(planes_CHW: Floats, affine: Affine) -> Floats:
    gains, offset = affine.gains, affine.offset.astype(np.float32)[:, None, None]
    if gains is not None:
        return planes_CHW * gains.astype(np.float32)[:, None, None] + offset
    mixed: Floats = np.tensordot(affine.mix.astype(np.float32), planes_CHW, axes=1) + offset
    return mixed
