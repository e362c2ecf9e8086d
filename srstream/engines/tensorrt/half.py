"""The program on a device's compute stream: a half-precision network that takes and returns codes.

Codes are transferred unchanged, with one or two bytes a sample. The device scales them, converts
colors and rounds in float32; the network in between computes in float16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from srstream.engines.contract import Affine, TileFormat
from srstream.models.table import COLOR_FORMS, ColorFormName

HalfNetwork = Callable[[Tensor], Sequence[Tensor]]
"""A function from (1, planes, H, W) float16 to such a tensor for each group of output planes."""


class TileProgram:
    """A network with its conversions for one format of tiles."""

    def __init__(
        self,
        network: HalfNetwork,
        tile: TileFormat,
        color_form: ColorFormName,
        device: torch.device,
    ) -> None:
        self.network = network
        self.peak = float(2**tile.bits - 1)
        self._to_network = _on(device, tile.to_network(color_form))
        to_codes, first = tile.from_network(color_form), 0
        self._to_codes = []
        for group in COLOR_FORMS[color_form].outputs:
            self._to_codes.append(_on(device, to_codes.of_planes(first, group.num_planes)))
            first += group.num_planes

    @torch.inference_mode()
    def __call__(self, codes_CHW: Tensor, outputs: Sequence[Tensor]) -> None:
        """Enlarge a tile into output buffers for codes, (planes, sH, sW) each."""
        x = _mapped(_from_codes(codes_CHW)[None], *self._to_network)
        groups = self.network(x.half().contiguous())
        for group, to_codes, output in zip(groups, self._to_codes, outputs, strict=True):
            y = _mapped(group.float(), *to_codes)
            _put_codes(output, torch.round(y[0]).clamp_(0.0, self.peak))


def _from_codes(codes: Tensor) -> Tensor:
    """Convert codes to float32: uint8, or the bits of uint16 in int16."""
    if codes.dtype == torch.int16:
        return (codes.to(torch.int32) & 0xFFFF).float()
    return codes.float()


def _put_codes(output: Tensor, rounded: Tensor) -> None:
    if output.dtype == torch.int16:
        rounded = rounded.to(torch.int32)  # 40,000 becomes -25,536: the same 16 bits
    output.copy_(rounded)


def _mapped(planes_BCHW: Tensor, mix: Tensor, offset: Tensor) -> Tensor:
    return torch.einsum("oi,bihw->bohw", mix, planes_BCHW) + offset[:, None, None]


def _on(device: torch.device, affine: Affine) -> tuple[Tensor, Tensor]:
    return (
        torch.from_numpy(affine.mix).float().to(device),
        torch.from_numpy(affine.offset).float().to(device),
    )
