"""PyTorch, the reference for the other engines: it runs on any device and is fast on none.

The network is built from the `.safetensors` file next to the `.onnx` file. One thread computes the
tiles one after the other, in float32.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import Affine, Capabilities, OnDone, TileFormat
from srstream.engines.cuda.half import true_float32
from srstream.engines.faults import device_errors
from srstream.engines.threads import ThreadSession, check_format
from srstream.frame import Plane
from srstream.models.blend import blend_of
from srstream.models.checkpoint import blended_weights
from srstream.models.edges import border_of
from srstream.models.flat_network import FlatNetwork, blended_network
from srstream.models.networks import Network
from srstream.models.table import ModelSpec

LIVE_ACTIVATIONS = 4
"""Feature maps of the widest layer that exist at once, including PyTorch's scratch memory."""


class PyTorchEngine:
    """The model's network in PyTorch, on a CUDA device if there is one, or else on the CPU.

    Args:
        device: where it computes, if not there.

    Raises:
        DeviceFaultError: the GPU is broken for this process.
        WeightsError: the weights are missing, cannot be read or aren't the model's.
    """

    capabilities: Capabilities

    def __init__(
        self,
        config: EngineConfig,
        model: ModelConfig,
        spec: ModelSpec,
        device: torch.device | None = None,
    ) -> None:
        blend = blend_of(model, spec)
        true_float32()
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        num_threads = config.threads or torch.get_num_threads()
        torch.set_num_threads(num_threads)
        network = blended_network(blend, spec)
        on_cuda = self.device.type == "cuda"
        with device_errors("the GPU cannot be used"):
            self.network: Network | FlatNetwork = network.to(self.device)
        self.capabilities = Capabilities(
            name="pytorch",
            device=torch.cuda.get_device_name() if on_cuda else "CPU",
            weights=blend.path,
            weights_sha256=blend.sha256,
            color_form=spec.color_form,
            scale=spec.scale,
            halo=spec.halo,
            border=border_of(blended_weights(blend, spec)),
            mixes_sets=blend.mixes_sets,
            activation_bytes_per_pixel=4
            * max(spec.network.activation_channels, 16)
            * LIVE_ACTIVATIONS,
            num_streams=1,
            num_threads=num_threads,
            takes_any_shape=False,
            tiles_are_exact=not on_cuda,
            is_deterministic=not on_cuda,
        )

    def open_session(self, tile: TileFormat, on_done: OnDone | None = None) -> ThreadSession:
        """See `Engine.open_session`; nothing is compiled."""
        check_format(tile, self.capabilities)
        return ThreadSession(self.run, tile, self.capabilities, on_done)

    def close(self) -> None:
        """Do nothing: the object itself holds all memory."""

    def run(self, codes_CHW: Plane, tile: TileFormat) -> list[Plane]:
        """Compute the output planes of a tile's codes (planes, H, W)."""
        color_form, peak = self.capabilities.color_form, float(2**tile.bits - 1)
        to_codes = tile.from_network(color_form)
        codes = torch.from_numpy(codes_CHW.astype(np.int32))[None]
        with torch.inference_mode():
            x = _mapped(codes.to(self.device).float(), tile.to_network(color_form))
            planes: list[Plane] = []
            for group in self.network(x):
                y = _mapped(group, to_codes.of_planes(len(planes), group.shape[1]))
                rounded = torch.round(y).clamp(0.0, peak).cpu().numpy()
                planes += [plane.copy() for plane in rounded[0].astype(tile.dtype)]
        return planes


def _mapped(planes_BCHW: Tensor, affine: Affine) -> Tensor:
    mix, offset = (torch.from_numpy(m).to(planes_BCHW) for m in (affine.mix, affine.offset))
    return torch.einsum("oi,bihw->bohw", mix, planes_BCHW) + offset[:, None, None]
