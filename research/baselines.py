"""The networks that the literature compares with, on luma: SRCNN and VDSR.

Both work on the picture after a bicubic enlargement, which is their first, fixed layer here. So
they have the interface of every other luma network, (B, 1, H, W) to a tuple of one
(B, 1, 4H, 4W), code value / 255. No engine runs them; they are measured in PyTorch.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import cast

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from srstream.models.networks import Planes
from srstream.models.table import COLOR_FORMS, ColorForm, ColorFormName
from srstream.resampling import cubic_kernel
from trainer.data.degrade import SCALE
from trainer.networks import ResearchNetwork


@dataclass(frozen=True)
class BaselineSpec:
    """A baseline as data: convolutions on the enlarged picture with ReLU between them."""

    name: str
    layers: tuple[tuple[int, int], ...]
    """(side of the kernel, channels out) of each convolution."""
    is_residual: bool
    """Whether the network's output is added to the bicubic picture."""
    source: str
    color_form: ColorFormName = "luma"
    scale: int = SCALE

    @property
    def form(self) -> ColorForm:
        return COLOR_FORMS[self.color_form]

    @property
    def num_parameters(self) -> int:
        return sum(
            side**2 * num_in * num_out + num_out for side, num_in, num_out in self._convolutions()
        )

    @property
    def kmac_per_pixel(self) -> float:
        """Return kMAC per *low-resolution* pixel, not counting the enlargement."""
        macs = sum(side**2 * num_in * num_out for side, num_in, num_out in self._convolutions())
        return macs * self.scale**2 / 1000

    def _convolutions(self) -> list[tuple[int, int, int]]:
        """Return (side, in, out) of each convolution."""
        ins = [1, *(num_out for _, num_out in self.layers[:-1])]
        return [
            (side, num_in, num_out)
            for num_in, (side, num_out) in zip(ins, self.layers, strict=True)
        ]


BASELINES: dict[str, BaselineSpec] = {
    spec.name: spec
    for spec in [
        BaselineSpec(
            "srcnn",
            ((9, 64), (1, 32), (5, 1)),
            is_residual=False,
            source="C. Dong et al., TPAMI 38(2), 2016",
        ),
        BaselineSpec(
            "vdsr",
            (*[(3, 64)] * 19, (3, 1)),
            is_residual=True,
            source="J. Kim et al., CVPR 2016",
        ),
    ]
}


class BaselineNetwork(ResearchNetwork):
    """Bicubic enlargement, then the specification's convolutions."""

    spec: BaselineSpec

    def __init__(self, spec: BaselineSpec) -> None:
        super().__init__()
        self.spec = spec
        self.enlarge = BicubicEnlargement(spec.scale)
        num_ins = [1, *(num_out for _, num_out in spec.layers[:-1])]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(num_in, num_out, side, padding=side // 2)
            for num_in, (side, num_out) in zip(num_ins, spec.layers, strict=True)
        )
        self._initialise()

    def forward(self, lr_B1HW: Tensor) -> Planes:
        bicubic = self.enlarge(lr_B1HW)
        x = bicubic
        for convolution in self.convolutions[:-1]:
            x = functional.relu(convolution(x))
        x = self.convolutions[-1](x)
        return (x + bicubic if self.spec.is_residual else x,)

    def folded(self) -> BaselineNetwork:
        return copy.deepcopy(self).eval()

    def weights_bytes(self, recipe: str) -> bytes:
        stated = {"model": self.spec.name, "recipe": recipe}
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        return save(tensors, {"srstream": json.dumps(stated)})

    def _initialise(self) -> None:
        """Draw He's normal weights (VDSR, section 4.2); a residual starts at zero.

        SRCNN's paper draws from N(0, 0.001), from which Adam takes long to leave the gray picture.
        """
        convolutions = [cast(nn.Conv2d, convolution) for convolution in self.convolutions]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, convolution.bias))
        if self.spec.is_residual:
            nn.init.zeros_(convolutions[-1].weight)


def baseline_network(name: str) -> BaselineNetwork:
    """Return a new network of `BASELINES`."""
    return BaselineNetwork(BASELINES[name])


class BicubicEnlargement(nn.Module):
    """MATLAB's bicubic enlargement by a whole factor (see `degrade.resize_matrix`), one plane.

    Each output sample is a weighted sum of 5x5 input samples, the weights depending on its phase
    alone: a fixed convolution and a PixelShuffle. Edges are mirrored, the edge sample repeated.
    """

    kernel: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        taps = torch.arange(-2, 3, dtype=torch.float64)
        phases = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
        rows = torch.from_numpy(cubic_kernel((taps[None] - phases[:, None]).numpy()))
        kernel = torch.einsum("rh,cw->rchw", rows, rows).reshape(scale**2, 1, 5, 5)
        self.register_buffer("kernel", kernel.float(), persistent=False)

    def forward(self, lr_B1HW: Tensor) -> Tensor:
        padded = _mirrored(_mirrored(lr_B1HW, dim=2), dim=3)
        return functional.pixel_shuffle(functional.conv2d(padded, self.kernel), self.scale)


def _mirrored(x_BCHW: Tensor, dim: int) -> Tensor:
    """Add two samples at each end of an axis, in mirrored order (`x1 x0 | x0 x1 ...`)."""
    size = x_BCHW.shape[dim]
    positions = torch.arange(-2, size + 2, device=x_BCHW.device) % (2 * size)
    return x_BCHW.index_select(dim, torch.minimum(positions, 2 * size - 1 - positions))
