"""Codes in, codes out, around a network in half precision: what runs on a device's compute stream.

Codes go up and come down as they are, one or two bytes a sample; scaling, colour and quantisation
are done on the device, in float32, the network in between in float16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from srstream.engines.contract import Matrix, TileFormat

HalfNetwork = Callable[[Tensor], Sequence[Tensor]]
"""(1, planes, H, W) float16 to a tensor of the same kind for each group of output planes."""


class TileProgram:
    """A network between the codes of one format of tiles."""

    def __init__(self, network: HalfNetwork, tile: TileFormat, device: torch.device) -> None:
        self.network = network
        self.peak = float(2**tile.bits - 1)
        self.to_rgb = self.to_yuv = None
        if tile.matrix is not None:
            self.to_rgb = _on(device, *tile.yuv_to_rgb())
            self.to_yuv = _on(device, *tile.rgb_to_yuv())

    @torch.inference_mode()
    def __call__(self, codes_CHW: Tensor, outputs: Sequence[Tensor]) -> None:
        """Enlarges a tile into buffers for codes, (planes, sH, sW) each."""
        x = _from_codes(codes_CHW)[None] * (1.0 / self.peak)
        if self.to_rgb is not None:
            x = _mixed(x, *self.to_rgb)
        for group, output in zip(self.network(x.half().contiguous()), outputs, strict=True):
            y = group.float()
            if self.to_yuv is not None:
                y = _mixed(y, *self.to_yuv)
            _put_codes(output, torch.round(y[0] * self.peak).clamp_(0.0, self.peak))


def _from_codes(codes: Tensor) -> Tensor:
    """uint8, or the bits of uint16 in int16, as float32."""
    if codes.dtype == torch.int16:
        return (codes.to(torch.int32) & 0xFFFF).float()
    return codes.float()


def _put_codes(output: Tensor, rounded: Tensor) -> None:
    if output.dtype == torch.int16:
        rounded = rounded.to(torch.int32)  # 40,000 becomes -25,536: the same 16 bits
    output.copy_(rounded)


def _mixed(planes_B3HW: Tensor, mix: Tensor, offset: Tensor) -> Tensor:
    return torch.einsum("oi,bihw->bohw", mix, planes_B3HW) + offset[:, None, None]


def _on(device: torch.device, mix: Matrix, offset: Matrix) -> tuple[Tensor, Tensor]:
    return (
        torch.from_numpy(mix).float().to(device),
        torch.from_numpy(offset).float().to(device),
    )
