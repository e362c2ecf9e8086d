"""A network in PyTorch that keeps flat pictures flat, whatever its weights are.

Shapes and values are those of `models/networks.py`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from srstream.models.blend import Blend
from srstream.models.checkpoint import blended_weights
from srstream.models.flat_correction import Array, Correction, correction_of
from srstream.models.networks import Network, Planes, for_layer, in_dtype, network_from_weights
from srstream.models.table import ModelSpec

LINES_MULTIPLE = 16
"""The straight lines of the correction for flat pictures come in this multiple here. So most blends
have the same layers, and a GPU's graph or engine of one takes the weights of another."""


def blended_network(blend: Blend, spec: ModelSpec) -> Network | FlatNetwork:
    """Make the folded network of a blend (see `blended_weights`), flat on flat pictures."""
    weights = blended_weights(blend, spec)
    network = network_from_weights(weights)
    correction = correction_of(weights, lines_multiple=LINES_MULTIPLE)
    return network if correction is None else FlatNetwork(network, correction)


class FlatNetwork(nn.Module):
    """A network with the correction that keeps flat pictures flat (`models/flat_correction.py`)."""

    def __init__(self, network: Network, correction: Correction) -> None:
        super().__init__()
        self.spec = network.spec
        self.network = network
        self._correction = correction
        ops = _BuildingOps()
        correction.apply(ops, torch.zeros(1, self.spec.form.num_input_planes, 1, 1))
        self.layers = nn.ModuleList(ops.layers)
        self.eval().requires_grad_(False)

    def forward(self, lr_BCHW: Tensor) -> Planes:
        groups = self.spec.form.outputs
        channels = self._correction.apply(_RunningOps(self.layers), lr_BCHW)
        parts = channels.split([group.num_channels for group in groups], dim=1)
        return tuple(
            made + in_dtype(functional.pixel_shuffle(part, group.scale), made.dtype)
            for made, part, group in zip(self.network(lr_BCHW), parts, groups, strict=True)
        )


class _TorchOps:
    """The weightless operations of `models.flat_correction.Ops`, on (B, channels, H, W)."""

    def tanh(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def twice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class _BuildingOps(_TorchOps):
    """Operations that create a layer each time they are called."""

    def __init__(self) -> None:
        self.layers: list[nn.Module] = []

    def dense(self, x: Tensor, kernel: Array, bias: Array) -> Tensor:
        num_out, num_in = kernel.shape
        layer = nn.Conv2d(num_in, num_out, 1)
        layer.load_state_dict(
            {"weight": torch.tensor(kernel)[:, :, None, None], "bias": torch.tensor(bias)}
        )
        return self._added(layer, x)

    def prelu(self, x: Tensor, slopes: Array) -> Tensor:
        layer = nn.PReLU(slopes.size)
        layer.load_state_dict({"weight": torch.tensor(slopes.ravel())})
        return self._added(layer, x)

    def _added(self, layer: nn.Module, x: Tensor) -> Tensor:
        self.layers.append(layer)
        return cast(Tensor, layer(x))


class _RunningOps(_TorchOps):
    """Operations that use the layers in the order in which they were created."""

    def __init__(self, layers: nn.ModuleList) -> None:
        self._layers = iter(layers)

    def dense(self, x: Tensor, kernel: Array, bias: Array) -> Tensor:
        return self._next(x)

    def prelu(self, x: Tensor, slopes: Array) -> Tensor:
        return self._next(x)

    def _next(self, x: Tensor) -> Tensor:
        layer = next(self._layers)
        return cast(Tensor, layer(for_layer(x, layer)))
