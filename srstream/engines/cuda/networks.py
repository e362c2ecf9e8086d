"""A model's network on a device, in the number formats that depths need."""

from __future__ import annotations

from typing import Any

import torch

from srstream.engines.cuda.half import HALF_BITS, in_half_precision
from srstream.models.blend import Blend
from srstream.models.flat_network import FlatNetwork, blended_network
from srstream.models.networks import Network
from srstream.models.table import ModelSpec


class DeviceNetworks:
    """The network of a blend of weights.

    Args:
        dtype: the half-precision format for codes of up to `HALF_BITS`. Deeper codes are computed
            in float32, which takes several times as long.
    """

    def __init__(
        self, blend: Blend, spec: ModelSpec, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._blend, self._spec = blend, spec
        self._device, self.dtype = device, dtype
        self._networks: dict[torch.dtype, Network | FlatNetwork] = {}

    def for_bits(self, bits: int) -> Network | FlatNetwork:
        """Return the network for codes of this depth."""
        dtype = self.dtype if bits <= HALF_BITS else torch.float32
        if dtype not in self._networks:
            network = self._made(self._blend, dtype).to(self._device)
            untyped: Any = network
            untyped.to(memory_format=torch.channels_last)
            self._networks[dtype] = network
        return self._networks[dtype]

    def refit(self, blend: Blend) -> bool:
        """Copy the weights of another blend into the parameters, whose addresses stay the same.

        Returns:
            False, with nothing changed, if the blend's network has other layers. Its correction for
            flat pictures may be missing or be larger.
        """
        made = {dtype: self._made(blend, dtype) for dtype in self._networks}
        if not all(_are_alike(made[dtype], old) for dtype, old in self._networks.items()):
            return False
        with torch.no_grad():
            for dtype, old in self._networks.items():
                values = made[dtype].state_dict()
                for name, parameter in old.state_dict().items():
                    parameter.copy_(values[name])
        self._blend = blend
        return True

    def close(self) -> None:
        """Drop the networks."""
        self._networks.clear()

    def _made(self, blend: Blend, dtype: torch.dtype) -> Network | FlatNetwork:
        network = blended_network(blend, self._spec)
        return network if dtype == torch.float32 else in_half_precision(network, dtype)


def _are_alike(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    shapes, others = (
        {name: value.shape for name, value in module.state_dict().items()}
        for module in (one, other)
    )
    return shapes == others
