"""The networks, in PyTorch.

Shapes: B batch, C channels, H and W height and width; `lr_BCHW` is the input, `sr_BCHW` the
output at `scale` times its size. Values are code values / 255, in whatever range the video has
(limited or full), float; the output is not clamped.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from srstream.models.checkpoint import Tensors, Weights
from srstream.models.table import ModelSpec

SOBEL_X = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
SOBEL_Y = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


class EdgeBlock(nn.Module):
    """A 3x3 convolution re-parameterised along edges (ECBSR: Zhang et al., ACM MM 2021).

    Its kernel is the sum of five linear branches: a plain 3x3, a 1x1 expansion squeezed by a 3x3,
    and a 1x1 each followed by a scaled Sobel-x, Sobel-y and Laplacian filter. `forward` adds the
    branches' kernels up and runs *one* convolution (collapsed training: the same gradients for a
    third of the time); `forward_branches` runs them as drawn in the paper.

    The branches carry no biases but the plain one's: the edge masks sum to zero, so a bias before
    them vanishes, and every other adds to the same constant.
    """

    edge_masks: Tensor

    def __init__(self, num_in: int, num_out: int, expansion: int = 2) -> None:
        super().__init__()
        num_middle = expansion * num_out
        self.plain = nn.Conv2d(num_in, num_out, 3)
        self.expand = nn.Conv2d(num_in, num_middle, 1, bias=False)
        self.squeeze = nn.Conv2d(num_middle, num_out, 3, bias=False)
        bound = num_in**-0.5
        self.edge_points = nn.Parameter(torch.empty(3, num_out, num_in).uniform_(-bound, bound))
        self.edge_scales = nn.Parameter(torch.randn(3, num_out) * 1e-3)
        masks = torch.tensor([SOBEL_X, SOBEL_Y, LAPLACIAN])
        self.register_buffer("edge_masks", masks, persistent=False)

    def folded(self) -> tuple[Tensor, Tensor]:
        """The one 3x3 kernel (out, in, 3, 3) and bias (out,) that the branches amount to."""
        through_middle = torch.einsum(
            "omhw,mi->oihw", self.squeeze.weight, self.expand.weight[:, :, 0, 0]
        )
        along_edges = torch.einsum(
            "eoi,eo,ehw->oihw", self.edge_points, self.edge_scales, self.edge_masks
        )
        return self.plain.weight + through_middle + along_edges, cast(Tensor, self.plain.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        kernel, bias = self.folded()
        return functional.conv2d(x_BCHW, kernel, bias, padding=1)

    def forward_branches(self, x_BCHW: Tensor) -> Tensor:
        """The same, branch by branch: what `folded` is tested against."""
        padded = functional.pad(x_BCHW, (1, 1, 1, 1))
        total: Tensor = self.plain(padded) + self.squeeze(self.expand(padded))
        for points, scales, mask in zip(
            self.edge_points, self.edge_scales, self.edge_masks, strict=True
        ):
            pointwise = functional.conv2d(padded, points[:, :, None, None])
            depthwise = scales[:, None, None, None] * mask
            total = total + functional.conv2d(pointwise, depthwise, groups=len(scales))
        return total


class UpscalingStack(nn.Module):
    """3x3 convolutions with PReLU between, the nearest-neighbour anchor, and a PixelShuffle.

    The last convolution so learns the difference to the input repeated `scale` x `scale` times.
    `block(num_in, num_out)` makes one convolution.
    """

    def __init__(self, spec: ModelSpec, *, reparameterised: bool) -> None:
        super().__init__()
        self.spec = spec
        self.convolutions = nn.ModuleList(
            EdgeBlock(num_in, num_out)
            if reparameterised
            else nn.Conv2d(num_in, num_out, 3, padding=1)
            for num_in, num_out in spec.layer_channels()
        )
        self.activations = nn.ModuleList(
            varied_prelu(spec.channels, layer) for layer in range(spec.layers - 1)
        )

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        x = lr_BCHW
        for convolution, activation in zip(self.convolutions, self.activations, strict=False):
            x = activation(convolution(x))
        x = self.convolutions[-1](x) + lr_BCHW.repeat_interleave(self.spec.scale**2, dim=1)
        return functional.pixel_shuffle(x, self.spec.scale)


def varied_prelu(num_channels: int, layer: int) -> nn.PReLU:
    """A PReLU whose slopes differ from channel to channel and from those of other layers.

    OpenVINO shares equal constants and then doesn't fuse the PReLU: half the speed, which would
    spoil every benchmark of an untrained network.
    """
    prelu = nn.PReLU(num_channels)
    with torch.no_grad():
        prelu.weight.copy_(torch.linspace(0.20, 0.30, num_channels) + 0.003 * layer)
    return prelu


def training_network(spec: ModelSpec) -> UpscalingStack:
    """The network with re-parameterised blocks, as it is trained."""
    network = UpscalingStack(spec, reparameterised=True)
    last = edge_blocks(network)[-1]
    with torch.no_grad():  # begin close to the anchor, so that the first gradients are small
        last.plain.weight.mul_(0.1)
        last.squeeze.weight.mul_(0.1)
        nn.init.zeros_(cast(Tensor, last.plain.bias))
    return network


def edge_blocks(network: UpscalingStack) -> list[EdgeBlock]:
    """The re-parameterised convolutions of a network in training, in order."""
    return [cast(EdgeBlock, block) for block in network.convolutions]


def plain_network(spec: ModelSpec) -> UpscalingStack:
    """The folded network: plain convolutions only, as it is shipped and run."""
    return UpscalingStack(spec, reparameterised=False)


def fold(network: UpscalingStack) -> UpscalingStack:
    """The plain network that computes what a trained, re-parameterised one does."""
    plain = plain_network(network.spec)
    with torch.no_grad():
        for block, convolution in zip(edge_blocks(network), plain.convolutions, strict=True):
            kernel, bias = block.folded()
            convolution.load_state_dict({"weight": kernel, "bias": bias})
    plain.activations.load_state_dict(network.activations.state_dict())
    return plain.eval()


def network_tensors(plain: UpscalingStack) -> Tensors:
    """A folded network's tensors as float32 arrays, named as weight files name them."""
    state = plain.state_dict()
    return {name: value.detach().cpu().numpy().copy() for name, value in state.items()}


def network_from_weights(weights: Weights) -> UpscalingStack:
    """The folded network with these weights, on the CPU, ready to run."""
    network = plain_network(weights.spec)
    network.load_state_dict(
        {name: torch.from_numpy(array.copy()) for name, array in weights.tensors.items()}
    )
    return network.eval().requires_grad_(False)
