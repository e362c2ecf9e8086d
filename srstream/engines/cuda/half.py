"""The program on a device's compute stream: a network that takes and returns codes.

Codes are transferred unchanged, with one or two bytes a sample. The device scales them, converts
colors and rounds in float32; the network in between computes in half precision, but for a few steps
whose rounding would show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from srstream.engines.contract import Affine, TileFormat
from srstream.models.flat_network import FlatNetwork
from srstream.models.networks import Generator, Network
from srstream.models.table import COLOR_FORMS, ColorFormName

HALF_BITS = 10
"""Largest depth for half precision. A float16 holds 11 bits; deeper codes need float32."""

TileNetwork = Callable[[Tensor], Sequence[Tensor]]
"""A function from (1, planes, H, W) float32 to a tensor for each group of output planes."""


def true_float32() -> None:
    """Have this process's CUDA libraries compute float32 in float32.

    By default cuDNN rounds the factors of float32 convolutions to the 11 bits of TF32.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def in_half_precision(network: Network | FlatNetwork, dtype: torch.dtype) -> Network | FlatNetwork:
    """Convert a network's layers to half precision, except for those whose rounding would show.

    Input and output remain float32, and with them the sum with the input or the tanh. A generator's
    first layer, and the first and last two of the correction for flat pictures, stay in float32:
    they take the input, whose codes of 10 bits need all of float16's 11, and give the result.
    """
    network.to(dtype)
    inner = network
    if isinstance(network, FlatNetwork):
        for layer in {0, len(network.layers) - 2, len(network.layers) - 1}:
            network.layers[layer].float()
        inner = network.network
    if isinstance(inner, Generator):
        inner.head.float()
    return network


class TileProgram:
    """A network with its conversions for one format of tiles."""

    def __init__(
        self,
        network: TileNetwork,
        tile: TileFormat,
        color_form: ColorFormName,
        device: torch.device,
    ) -> None:
        self.network = network
        self.peak = float(2**tile.bits - 1)
        self._to_network = _Map(tile.to_network(color_form), device)
        to_codes, first = tile.from_network(color_form), 0
        self._to_codes = []
        for group in COLOR_FORMS[color_form].outputs:
            self._to_codes.append(_Map(to_codes.of_planes(first, group.num_planes), device))
            first += group.num_planes

    @torch.inference_mode()
    def __call__(self, codes_CHW: Tensor, outputs: Sequence[Tensor]) -> None:
        """Enlarge a tile into output buffers for codes, (planes, sH, sW) each."""
        for made, output in zip(self.codes(from_codes(codes_CHW)), outputs, strict=True):
            put_codes(output, made)

    def codes(self, values_CHW: Tensor) -> list[Tensor]:
        """Enlarge a tile of codes in float32; return the codes of each group, in float32 too."""
        x = self._to_network(values_CHW[None])
        groups = self.network(x.contiguous(memory_format=torch.channels_last))
        return [
            torch.round(to_codes(group.float())[0]).clamp_(0.0, self.peak)
            for group, to_codes in zip(groups, self._to_codes, strict=True)
        ]


class _Map:
    """An affine map of planes (B, C, H, W), without a matrix product, which might use TF32."""

    def __init__(self, affine: Affine, device: torch.device) -> None:
        gains = affine.gains
        mix = affine.mix if gains is None else gains[:, None]
        self.is_mix = gains is None
        self.mix = torch.from_numpy(mix).float().to(device)[..., None, None]
        self.offset = torch.from_numpy(affine.offset).float().to(device)[:, None, None]

    def __call__(self, planes_BCHW: Tensor) -> Tensor:
        if not self.is_mix:
            return torch.addcmul(self.offset, self.mix[:, 0], planes_BCHW)
        y = self.offset
        for index in range(self.mix.shape[1]):
            y = torch.addcmul(y, self.mix[:, index], planes_BCHW[:, index : index + 1])
        return y


def from_codes(codes: Tensor) -> Tensor:
    """Convert codes to float32: uint8, or the bits of uint16 in int16."""
    if codes.dtype == torch.int16:
        return (codes.to(torch.int32) & 0xFFFF).float()
    return codes.float()


def put_codes(output: Tensor, rounded: Tensor) -> None:
    """Write whole numbers in float32 to a buffer for codes."""
    if output.dtype == torch.int16:
        rounded = rounded.to(torch.int32)  # 40,000 becomes -25,536: the same 16 bits
    output.copy_(rounded)
