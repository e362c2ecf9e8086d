"""Networks that tell real pictures from made ones: logits out, higher is more real."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

Norm = Literal["batch", "spectral"]

POOLED_SIDE = 6
"""Features are averaged to this side if any crop is allowed; a crop of 96 leaves this side."""


def make_discriminator(
    kind: Literal["srgan", "unet"], *, width: int, norm: Norm, crop: int | None
) -> Discriminator | UNetDiscriminator:
    """Return a new discriminator; `width` is the number of channels of its first convolution."""
    if kind == "unet":
        return UNetDiscriminator(width)
    return Discriminator(width, norm=norm, crop=crop)


class Discriminator(nn.Module):
    """SRGAN's discriminator (Ledig et al., CVPR 2017, figure 4): (B, 3, H, W) RGB to (B, 1) logits.

    Eight 3x3 convolutions of `width` to 8 `width` channels, every second with stride 2, BN on all
    but the first, LeakyReLU(0.2); a dense layer of 16 `width`, LeakyReLU, one logit. With `crop`,
    the dense layer takes the features directly, so pictures must have that side (a multiple of 16);
    without, the features are averaged to 6x6 and any picture works. With `norm="spectral"`, every
    layer has spectral norm instead of BN (Miyato et al., ICLR 2018).
    """

    def __init__(self, width: int = 64, *, norm: Norm = "batch", crop: int | None = None) -> None:
        super().__init__()
        self.crop = crop
        channels = [3, *(width * factor for factor in (1, 1, 2, 2, 4, 4, 8, 8))]
        self.stages = nn.ModuleList(
            _convolution(num_in, num_out, stride=1 + index % 2, norm=norm if index else None)
            for index, (num_in, num_out) in enumerate(pairwise(channels))
        )
        if norm == "spectral":
            spectral_norm(cast(nn.Sequential, self.stages[0])[0])
        side = POOLED_SIDE if crop is None else crop // 16
        dense = [nn.Linear(8 * width * side**2, 16 * width), nn.Linear(16 * width, 1)]
        self.dense = nn.ModuleList(spectral_norm(d) if norm == "spectral" else d for d in dense)

    def features(self, rgb_B3HW: Tensor) -> list[Tensor]:
        """Return the activations of each stride-2 convolution, from fine to coarse."""
        if self.crop is not None and rgb_B3HW.shape[2:] != (self.crop, self.crop):
            raise ValueError(f"{tuple(rgb_B3HW.shape[2:])} came to a discriminator for {self.crop}")
        x, features = 2 * rgb_B3HW - 1, []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[1::2]

    def forward(self, rgb_B3HW: Tensor) -> Tensor:
        x = self.features(rgb_B3HW)[-1]
        if self.crop is None:
            x = functional.adaptive_avg_pool2d(x, POOLED_SIDE)
        hidden = functional.leaky_relu(self.dense[0](x.flatten(1)), 0.2)
        logits: Tensor = self.dense[1](hidden)
        return logits


class UNetDiscriminator(nn.Module):
    """A U-Net with spectral norm that judges each pixel: (B, 3, H, W) to (B, 1, H, W) logits.

    It goes down by 2 three times and up again, with skips added (as in Wang et al., Real-ESRGAN,
    ICCV Workshops 2021); sides must be multiples of 8.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(
            spectral_norm(nn.Conv2d(width * f, 2 * width * f, 4, 2, 1, bias=False))
            for f in (1, 2, 4)
        )
        self.up = nn.ModuleList(
            spectral_norm(nn.Conv2d(2 * width * f, width * f, 3, 1, 1, bias=False))
            for f in (4, 2, 1)
        )
        self.tail = nn.ModuleList(
            spectral_norm(nn.Conv2d(width, width, 3, 1, 1, bias=False)) for _ in range(2)
        )
        self.logits = nn.Conv2d(width, 1, 3, padding=1)

    def features(self, rgb_B3HW: Tensor) -> list[Tensor]:
        """Return the output of each step down, from fine to coarse."""
        x, features = functional.leaky_relu(self.head(2 * rgb_B3HW - 1), 0.2), []
        features.append(x)
        for convolution in self.down:
            x = functional.leaky_relu(convolution(x), 0.2)
            features.append(x)
        return features

    def forward(self, rgb_B3HW: Tensor) -> Tensor:
        *skips, x = self.features(rgb_B3HW)
        for convolution in self.up:
            x = functional.interpolate(x, scale_factor=2, mode="bilinear")
            x = functional.leaky_relu(convolution(x), 0.2) + skips.pop()
        for convolution in self.tail:
            x = functional.leaky_relu(convolution(x), 0.2)
        logits: Tensor = self.logits(x)
        return logits


def _convolution(num_in: int, num_out: int, *, stride: int, norm: Norm | None) -> nn.Sequential:
    convolution = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=norm != "batch")
    layers: list[nn.Module] = [convolution]
    if norm == "spectral":
        layers = [spectral_norm(convolution)]
    if norm == "batch":
        layers.append(nn.BatchNorm2d(num_out))
    return nn.Sequential(*layers, nn.LeakyReLU(0.2))
